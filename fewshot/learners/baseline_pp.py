"""Baseline++ (Chen et al. 2019, "A Closer Look at Few-shot Classification", section 3.2): `Baseline` with
cosines in place of products, in both classifiers, "to reduce intra-class variation" (see `fitted_head.py`).

| name     | equation                                                                | shape                 |
|----------|-------------------------------------------------------------------------|-----------------------|
| product  | cos(f(x_i), f(x_j))                                                     | (batch, image, image) |
| score    | s cos(w_c, f(x)), s = 2, that of the authors' code for few classes      | (batch, image, way)   |
| unit     | U, the coefficients of w_c over its length                              | (batch, image, way)   |
| gradient | s (E - (E . KU) U) over the length of w_c: none along w_c itself        | (batch, image, way)   |

The head starts from the classes' mean features. Its classes are those seen; the score of any other is the
"new" one of `metric.py`.
"""

from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from fewshot.learners.class_training import CosineClassifier
from fewshot.learners.fitted_head import FittedHead, HeadOptions, descend
from fewshot.learners.metric import cosines
from fewshot.learners.options import check_above_zero

SHARPNESS = 2.0
"""s, of the head; that of the classifier is learned."""


class BaselinePp(FittedHead):
    """A cosine head on a classifier's encoder; inductive, batch norm frozen, any way and shot."""

    added_options: ClassVar[frozenset[str]] = frozenset({"first_length"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        first_length: float | None = None,
        **shared: Unpack[HeadOptions],
    ) -> None:
        """first_length: of the vectors of the classifier, see `CosineClassifier`."""
        if first_length is not None:
            check_above_zero(first_length=first_length)
        classifier = partial(CosineClassifier, first_length=first_length)
        super().__init__(image_shape, way, classifier=classifier, **shared)

    def products(self, features: Tensor, others: Tensor) -> Tensor:
        return cosines(features, others)

    def head(self, products: Tensor, targets: Tensor) -> Tensor:
        images = max(targets.shape[1], 1)
        counts = targets.sum(1, keepdim=True)

        def gradient(coefficients: Tensor) -> Tensor:
            units, lengths = _units(coefficients, products)
            angles = products @ units
            scores = (SHARPNESS * angles).masked_fill(counts == 0, -torch.inf)
            errors = (scores.softmax(-1) - targets) / images
            along = (errors * angles).sum(1, keepdim=True)
            return SHARPNESS * (errors - along * units) / lengths

        fitted = descend(gradient, targets / counts.clamp(min=1), self.head_steps)
        return SHARPNESS * _units(fitted, products)[0]


def _units(coefficients: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """The coefficients of the weights over their lengths, and these (batch, 1, way), 1 for weights of 0."""
    squares = (coefficients * (products @ coefficients)).sum(1, keepdim=True)
    lengths = torch.where(squares > 0, squares, 1).sqrt()
    return coefficients / lengths, lengths
