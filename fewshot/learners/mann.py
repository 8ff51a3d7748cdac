"""The memory-augmented network, made strong: Santoro et al. 2016 (arXiv:1605.06065), with four departures.

Convolutions see the images; reading has a learned sharpness (as in the neural Turing machine, Graves et al.
2014); every write head has a slot and an add vector of its own; and the tied content path of
`fewshot.memory.cell` joins what an image is stored under to what it is looked up with. Each is an option that
can be taken away again: widths=() sees the pixels, strength_offset=None reads with a bare cosine. `MannPaper`
is the network as published.
"""

from typing import ClassVar, Unpack

from fewshot.learners.memory_network import MemoryNetwork, NetworkOptions
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.memory.lrua import AddVector, LeastUsed, Lrua, Order


class Mann(MemoryNetwork):
    """Memory-augmented network with a convolutional encoder; inductive, batch norm frozen.

    The memory's options are explained at `Lrua`.
    """

    added_options: ClassVar[frozenset[str]] = frozenset(
        {"add_vector", "intervention", "labels", "metric_weight", "order"}
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 4,
        usage_decay: float = 0.99,
        least_used: LeastUsed = "per_head",
        add_vector: AddVector = "apart",
        order: Order = "write_first",
        strength_offset: float | None = 5.0,
        gate_bias: float = 0.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_at_least(1, word_size=word_size, read_heads=read_heads)
        check_at_least(0, strength_offset=strength_offset)
        check_fraction(usage_decay=usage_decay)
        memory = Lrua(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            usage_decay=usage_decay,
            least_used=least_used,
            add_vector=add_vector,
            strength_offset=strength_offset,
            gate_bias=gate_bias,
            order=order,
        )
        super().__init__(image_shape, way, memory=memory, **network)
