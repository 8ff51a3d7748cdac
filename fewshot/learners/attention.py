"""A transformer over all that was shown (Vaswani et al. 2017), the modern reference.

It is `fewshot.memory.attention` behind the encoder of `Mann`. Labels come to it as they do there, one step
late.
"""

from functools import partial
from typing import Unpack

from fewshot.errors import LearnerError
from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner, SharedOptions
from fewshot.memory.attention import AttentionCell


class Attention(RecurrentLearner):
    """Attention over the stored pairs; inductive, batch norm frozen.

    tie: whether an image is looked up with the key that it will be stored under.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        hidden_size: int = 128,
        num_layers: int = 2,
        read_heads: int = 4,
        tie: bool = True,
        **shared: Unpack[SharedOptions],
    ) -> None:
        check_at_least(1, hidden_size=hidden_size, num_layers=num_layers, read_heads=read_heads)
        if hidden_size % read_heads:
            raise LearnerError(
                f"hidden_size must be a multiple of read_heads, which share it; got {hidden_size} and "
                f"{read_heads}"
            )
        cell = partial(
            AttentionCell, hidden_size=hidden_size, num_layers=num_layers, read_heads=read_heads, tie=tie
        )
        super().__init__(image_shape, way, cell=cell, **shared)
