"""The memory-augmented network with a differentiable neural computer's memory: Graves et al. 2016.

As `Mann` (convolutions, sharp reading, the tied content path), except that one head writes, to what it finds
or to what is free, and can erase and free again. The corrections of Csordas and Schmidhuber 2019 are made;
temporal links are left out, as no question about a drawing follows them; with them it learned Omniglot's
streams a little later.
"""

from typing import Unpack

from fewshot.learners.memory_network import MemoryNetwork, NetworkOptions
from fewshot.learners.options import check_at_least
from fewshot.memory.dnc import Dnc


class MannDnc(MemoryNetwork):
    """Differentiable neural computer with a convolutional encoder; inductive, batch norm frozen.

    The memory's options are explained at `Dnc`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 4,
        masked: bool = True,
        erase_on_free: bool = True,
        links: bool = False,
        sharp_links: bool = True,
        strength_offset: float = 5.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_at_least(1, num_slots=num_slots, word_size=word_size, read_heads=read_heads)
        check_at_least(0, strength_offset=strength_offset)
        memory = Dnc(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            masked=masked,
            erase_on_free=erase_on_free,
            links=links,
            sharp_links=sharp_links,
            strength_offset=strength_offset,
        )
        super().__init__(image_shape, way, memory=memory, **network)
