"""The memory-augmented network as published: Santoro et al. 2016, arXiv:1605.06065.

Raw pixels, a memory of 128 words of 40 numbers, four heads that write what they look up with, one mask of
least used slots for all of them, a bare cosine, and an LSTM of 200 units (a feedforward controller did far
worse). It is here to compare with, not to win.

Where the paper does not settle the matter, these are our choices: tanh on the keys; the start state (reads
and controller zero, a memory of one small constant, all heads looking at slot 0, which alone counts as used);
ReLU in the feedforward controller.

Each departure of `Mann` but the encoder is an option here too, so that one alone can be added to the paper's
network: which is the smallest that makes it learn?
"""

from typing import ClassVar

from fewshot.episodes.labels import Labels
from fewshot.learners.memory_network import MemoryNetwork
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.lrua import AddVector, LeastUsed, Lrua, Order


class MannPaper(MemoryNetwork):
    """Memory-augmented network as the paper describes it; inductive, without batch norm.

    Departures are other values than the defaults of least_used, add_vector, strength_offset and order (see
    `Lrua`), and tie, the tied content path (see `fewshot.memory.cell`), which needs add_vector "apart".
    """

    added_options: ClassVar[frozenset[str]] = frozenset(
        {"least_used", "add_vector", "strength_offset", "order", "tie", "labels"}
    )

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        controller: ControllerKind = "lstm",
        hidden_size: int = 200,
        usage_decay: float = 0.99,
        least_used: LeastUsed = "shared",
        add_vector: AddVector = "key",
        strength_offset: float | None = None,
        order: Order = "write_first",
        tie: bool = False,
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(0, strength_offset=strength_offset)
        check_fraction(usage_decay=usage_decay)
        memory = Lrua(
            usage_decay=usage_decay,
            least_used=least_used,
            add_vector=add_vector,
            strength_offset=strength_offset,
            order=order,
        )
        super().__init__(
            image_shape,
            way,
            memory=memory,
            controller=controller,
            hidden_size=hidden_size,
            tie=tie,
            widths=(),
            labels=labels,
        )
