"""The memory-augmented network with sparse access: Rae et al. 2016, arXiv:1610.09027.

As `Mann` (convolutions, sharp reading, the tied content path), except that a head reads a few slots, and
writes to those and to the one used least recently: what a step costs depends little on the number of slots.

There are twice as many slots as `Mann` has: each of four heads empties a slot at every step, where `Mann`
empties one for all, and 256 are enough for 50 steps in which nothing is overwritten.

The slots may be filled beforehand (`filled`), with words among which those of an episode have to be found: a
million of them take a search that is not exact.
"""

from typing import ClassVar, Unpack

from fewshot.errors import LearnerError
from fewshot.learners.memory_network import MemoryNetwork, NetworkOptions
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.memory.search import SEARCHES, SearchKind
from fewshot.memory.sparse import Sparse
from fewshot.memory.store import OverlayStore, OwnStore, Store, distractors


class MannSparse(MemoryNetwork):
    """Sparse access memory with a convolutional encoder; inductive, batch norm frozen.

    The memory's options are explained at `Sparse`.

    filled: whether each episode begins with `distractors` in all slots, the same in every one, in place of
        empty slots;
    search: how filled slots are searched, see `fewshot.memory.search`; "approximate" needs the extra `ann`.
    """

    added_options: ClassVar[frozenset[str]] = frozenset({"filled", "search"})

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
        filled: bool = False,
        search: SearchKind = "exact",
        **network: Unpack[NetworkOptions],
    ) -> None:
        check_at_least(1, word_size=word_size, read_heads=read_heads, slots_per_head=slots_per_head)
        check_at_least(0, strength_offset=strength_offset)
        check_fraction(access_threshold=access_threshold)
        if search != "exact" and not filled:
            raise LearnerError(
                f'search = "{search}" is for slots that are filled beforehand, and these are not: give '
                'filled = true or search = "exact"'
            )
        memory = Sparse(
            _filled_store(num_slots, word_size, search) if filled else OwnStore(num_slots),
            word_size=word_size,
            read_heads=read_heads,
            slots_per_head=slots_per_head,
            access_threshold=access_threshold,
            strength_offset=strength_offset,
            gate_bias=gate_bias,
        )
        super().__init__(image_shape, way, memory=memory, **network)


def _filled_store(num_slots: int, word_size: int, search: SearchKind) -> Store:
    check_at_least(1, num_slots=num_slots)
    return OverlayStore(SEARCHES[search](distractors(num_slots, word_size)))
