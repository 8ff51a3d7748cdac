"""The control without any memory: a feedforward network over (embedding, previous label).

Santoro et al. 2016 have it among their baselines, on pixels (widths=()); its size is not stated, and one
hidden layer is our choice. Of an episode it knows the label shown last and nothing else, which helps little
more than guessing: were it far above chance, labels would leak.
"""

from functools import partial
from typing import Unpack

from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner, SharedOptions
from fewshot.memory.cell import FeedforwardCell


class Feedforward(RecurrentLearner):
    """A hidden layer over (embedding, previous label); inductive, batch norm frozen."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        hidden_size: int = 200,
        **shared: Unpack[SharedOptions],
    ) -> None:
        check_at_least(1, hidden_size=hidden_size)
        cell = partial(FeedforwardCell, hidden_size=hidden_size)
        super().__init__(image_shape, way, cell=cell, **shared)
