"""The memory-augmented network with sparse access: Rae et al. 2016, arXiv:1610.09027.

As `Mann` (convolutions, sharp reading, the tied content path), except that a head reads a few slots, and
writes to those and to the one used least recently: what a step costs depends little on the number of slots.

There are twice as many slots as `Mann` has: each of four heads empties a slot at every step, where `Mann`
empties one for all, and 256 are enough for 50 steps in which nothing is overwritten.
"""

from typing import Unpack

from fewshot.learners.memory_network import MemoryNetwork, NetworkOptions
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.memory.sparse import Sparse
from fewshot.memory.store import OwnStore


class MannSparse(MemoryNetwork):
    """Sparse access memory with a convolutional encoder; the memory's options are explained at `Sparse`."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        num_slots: int = 256,
        word_size: int = 40,
        read_heads: int = 4,
        slots_per_head: int = 4,
        access_threshold: float = 0.005,
        strength_offset: float = 5.0,
        gate_bias: float = 0.0,
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_at_least(1, word_size=word_size, read_heads=read_heads, slots_per_head=slots_per_head)
        check_at_least(0, strength_offset=strength_offset)
        check_fraction(access_threshold=access_threshold)
        memory = Sparse(
            OwnStore(num_slots),
            word_size=word_size,
            read_heads=read_heads,
            slots_per_head=slots_per_head,
            access_threshold=access_threshold,
            strength_offset=strength_offset,
            gate_bias=gate_bias,
        )
        super().__init__(image_shape, way, memory=memory, **network)
