"""Ridge regression on features, R2D2 (Bertinetto, Henriques, Torr and Vedaldi 2019, "Meta-learning with
differentiable closed-form solvers").

| name    | symbol | equation                                                      | shape                   |
|---------|--------|---------------------------------------------------------------|-------------------------|
| feature | X      | the encoder's                                                 | (batch, image, feature) |
| target  | Y      | the shown labels as one-hot vectors                           | (batch, image, way)     |
| weights | W      | (X'X + lambda I)^-1 X'Y = X'(XX' + lambda I)^-1 Y             | (batch, feature, way)   |
| score   |        | alpha XW + beta; lambda, alpha > 0 and beta are learned       | (batch, image, way)     |

Of the two forms of W (the second is Woodbury's) the one with the smaller system is solved: that of images
where there are fewer of them than features. A class that was not seen has the "new" score of `metric.py`. In
a stream all images so far are regressed on anew at each step.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.options import check_above_zero
from fewshot.learners.stored import Stored, StoringLearner


class Ridge(BackboneLearner, StoringLearner):
    """Ridge regression in closed form; inductive, batch norm frozen, any way and shot."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        regulariser: float = 50.0,
        scale: float = 10.0,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """regulariser, scale: lambda and alpha, before training."""
        check_above_zero(regulariser=regulariser, scale=scale)
        super().__init__(image_shape, way, **shared)
        self.log_regulariser = nn.Parameter(torch.tensor(math.log(regulariser)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("new_score", torch.tensor(0.5 * scale))

    def scores(self, state: Stored, features: Tensor) -> Tensor:
        weights = ridge_weights(state.features, state.shown, self.log_regulariser.exp())
        scores = self.log_scale.exp() * (features @ weights) + self.bias
        return scores.masked_fill(state.counts.unsqueeze(1) == 0, -torch.inf)


def ridge_weights(features: Tensor, targets: Tensor, regulariser: Tensor) -> Tensor:
    """The weights W that minimise |X W - Y|^2 + regulariser |W|^2: (batch, feature, way).

    features X: (batch, image, feature); targets Y: (batch, image, way).
    """
    images, size = features.shape[-2:]
    if images < size:
        coefficients: Tensor = torch.linalg.solve(_with_ridge(features @ features.mT, regulariser), targets)
        return features.mT @ coefficients
    weights: Tensor = torch.linalg.solve(
        _with_ridge(features.mT @ features, regulariser), features.mT @ targets
    )
    return weights


def _with_ridge(products: Tensor, regulariser: Tensor) -> Tensor:
    return products + regulariser * torch.eye(products.shape[-1]).to(products)
