"""The memory-augmented network with a neural Turing machine's memory: Graves et al. 2014, arXiv:1410.5401.

As `Mann` (convolutions, sharp reading, the tied content path), except that a write head goes where it moves,
not to the least used slot. Santoro et al. 2016 compare with it as published and on pixels: widths=(),
tie=False, strength_offset=0, role_bias=0.

Heads start in their roles (`role_bias`, see `fewshot.memory.ntm`), as nothing else tells a write head where
there is room. That is what makes it learn: with role_bias=0 it still guesses when it otherwise names most.
"""

from typing import Unpack

from fewshot.learners.memory_network import MemoryNetwork, NetworkOptions
from fewshot.learners.options import check_at_least
from fewshot.memory.ntm import Ntm


class MannNtm(MemoryNetwork):
    """Neural Turing machine with a convolutional encoder; inductive, batch norm frozen.

    The memory's options are explained at `Ntm`.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 4,
        write_heads: int = 1,
        shift_range: int = 1,
        strength_offset: float = 5.0,
        role_bias: float = 4.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_at_least(
            1,
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            write_heads=write_heads,
            shift_range=shift_range,
        )
        check_at_least(0, strength_offset=strength_offset, role_bias=role_bias)
        memory = Ntm(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            write_heads=write_heads,
            shift_range=shift_range,
            strength_offset=strength_offset,
            role_bias=role_bias,
        )
        super().__init__(image_shape, way, memory=memory, **network)
