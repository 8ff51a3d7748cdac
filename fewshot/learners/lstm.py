"""The control experiment: the memory-augmented network's encoder and LSTM, without a memory.

Santoro et al. 2016 compare with it, on pixels (widths=()); what the memory adds is the difference to `Mann`
at equal budgets. With skip the read-out sees the image's features beside what the LSTM shows, as it would see
a memory's reads: then what is missing is the memory alone.
"""

from functools import partial
from typing import ClassVar, Unpack

from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner, SharedOptions
from fewshot.memory.cell import LstmCell


class Lstm(RecurrentLearner):
    """An LSTM over (embedding, previous label); inductive, batch norm frozen."""

    added_options: ClassVar[frozenset[str]] = frozenset({"skip", "metric_weight", "labels"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        hidden_size: int = 200,
        skip: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        check_at_least(1, hidden_size=hidden_size)
        cell = partial(LstmCell, hidden_size=hidden_size, skip=skip)
        super().__init__(image_shape, way, cell=cell, **shared)
