"""ExternalMemory: what every memory in this folder is to the network around it.

A memory has no will of its own: at each step a controller hands it an *interface*, one row of numbers per
episode, and gets words back. What lies in memory between two steps is a state, a named tuple that goes in and
comes out. The interface of every memory begins alike, so that the cell can tie what an image is looked up
with to what it is stored under (`fewshot.memory.cell`) without knowing which memory it feeds:

| part          | numbers                | meaning, before squashing                             |
|---------------|------------------------|-------------------------------------------------------|
| read keys     | read_heads * word_size | what each read head looks for                         |
| write vectors | add_heads * word_size  | what each write head adds; 0 heads: it adds its key   |
| controls      | controls               | gates, strengths, shifts: each memory's own business  |
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

INITIAL_WORD = 1e-6
"""What fills an empty memory: a constant trains best (Collier and Beel 2018), and zero has no direction."""


class Access(NamedTuple):
    """What one step of a memory gives.

    reads: (batch, read_head, word), what the read heads found; state: the memory after the step;
    read_weights: (batch, read_head, slot) and write_weights: (batch, write_head, slot), where the heads were;
    usage: (batch, slot), how taken each slot is, None where the memory keeps no such count;
    read_slots, write_slots: which slots the weights belong to, (batch, head, k), where a memory is sparse;
    kept: (batch, slot), which share of what a slot held survived the step's erasing, the mean over the word
        where parts of it are erased; in the shape of write_slots where a memory is sparse; None: all of it.
    """

    reads: Tensor
    state: Any
    read_weights: Tensor
    write_weights: Tensor
    usage: Tensor | None = None
    read_slots: Tensor | None = None
    write_slots: Tensor | None = None
    kept: Tensor | None = None


class ExternalMemory(nn.Module, ABC):
    """Slots of words, with heads that read and write them. Subclasses are final.

    add_heads: how many write vectors the interface carries; controls: how many further numbers.
    """

    def __init__(
        self, *, num_slots: int, word_size: int, read_heads: int, add_heads: int, controls: int
    ) -> None:
        super().__init__()
        self.num_slots, self.word_size = num_slots, word_size
        self.read_heads, self.add_heads, self.controls = read_heads, add_heads, controls

    @property
    def vector_size(self) -> int:
        """How many numbers of the interface are words: keys and write vectors."""
        return (self.read_heads + self.add_heads) * self.word_size

    @property
    def interface_size(self) -> int:
        return self.vector_size + self.controls

    @abstractmethod
    def start(self, batch: int, like: Tensor) -> Any:
        """An empty memory for `batch` episodes, on the device and of the data type of `like`.

        A named tuple of tensors, (batch, ...) each; which ones is the memory's own affair.
        """

    @abstractmethod
    def step(self, state: Any, interface: Tensor) -> Access:
        """One step of every episode, in the order of the memory's paper. interface: (batch, interface)."""

    def first_controls(self) -> Tensor | None:
        """(controls,): what the controls' bias starts from; None for what the library draws."""
        return None

    def split(self, interface: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read keys (batch, read_head, word), write vectors (batch, add_head, word), controls, all raw."""
        words = interface[:, : self.vector_size].reshape(len(interface), -1, self.word_size)
        return words[:, : self.read_heads], words[:, self.read_heads :], interface[:, self.vector_size :]
