"""The memory-augmented network as published: Santoro et al. 2016, arXiv:1605.06065.

Raw pixels, a memory of 128 words of 40 numbers, four heads that write what they look up with, one mask of
least used slots for all of them, a bare cosine, and an LSTM of 200 units (a feedforward controller did far
worse). It is here to compare with, not to win.

Where the paper does not settle the matter, these are our choices: tanh on the keys; the start state (reads
and controller zero, a memory of one small constant, all heads looking at slot 0, which alone counts as used);
ReLU in the feedforward controller.
"""

from typing import ClassVar

from torch import nn

from fewshot.episodes.labels import Labels, label_units
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import MemoryCell
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.lrua import Lrua


class MannPaper(RecurrentLearner):
    """Memory-augmented network as the paper describes it."""

    added_options: ClassVar[frozenset[str]] = frozenset({"labels"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        controller: ControllerKind = "lstm",
        hidden_size: int = 200,
        usage_decay: float = 0.99,
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(1, hidden_size=hidden_size)
        check_fraction(usage_decay=usage_decay)
        channel, height, width = image_shape
        cell = MemoryCell(
            channel * height * width,
            label_units(labels, way),
            controller=controller,
            hidden_size=hidden_size,
            memory=Lrua(usage_decay=usage_decay),
            tie=False,
        )
        super().__init__(image_shape, way, encoder=nn.Flatten(-3), cell=cell, labels=labels)
