"""Logistic regression on features, LR-D2 (Bertinetto, Henriques, Torr and Vedaldi 2019, "Meta-learning with
differentiable closed-form solvers"): a few of Newton's steps, as iteratively reweighted least squares.

| name     | symbol | equation                                                         | shape               |
|----------|--------|------------------------------------------------------------------|---------------------|
| margin   | f      | X w, from w = 0                                                  | (batch, image, way) |
| estimate | mu     | sigmoid(f)                                                       | (batch, image, way) |
| weight   | s      | mu (1 - mu)                                                      | (batch, image, way) |
| response | z      | f + (y - mu) / s; y is 1 for images of the class, 0 for others   | (batch, image, way) |
| step     | w      | X'(XX' + lambda diag(s)^-1)^-1 z, by Woodbury                    | for each class      |
| score    |        | alpha X w + beta; lambda, alpha > 0 and beta are learned         | (batch, image, way) |

The paper has two classes; here, as it proposes for more, each class is told from all others by a regression
of its own, and the highest score wins. Since X is in w by X' alone, w is kept as its coefficients c, w = X'c,
and each step is a system of as many unknowns as images. A class that was not seen has the "new" score of
`metric.py`. In a stream all images so far are regressed on anew at each step.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.options import check_above_zero, check_at_least
from fewshot.learners.stored import Stored, StoringLearner


class Logistic(BackboneLearner, StoringLearner):
    """Logistic regression by Newton's steps; inductive, batch norm frozen, any way and shot."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        regulariser: float = 10.0,
        scale: float = 2.0,
        newton_steps: int = 5,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """regulariser, scale: lambda and alpha, before training."""
        check_above_zero(regulariser=regulariser, scale=scale)
        check_at_least(1, newton_steps=newton_steps)
        super().__init__(image_shape, way, **shared)
        self.newton_steps = newton_steps
        self.log_regulariser = nn.Parameter(torch.tensor(math.log(regulariser)))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(0.0))
        self.register_buffer("new_score", torch.tensor(0.0))

    def scores(self, state: Stored, features: Tensor) -> Tensor:
        coefficients = logistic_coefficients(
            state.features @ state.features.mT, state.shown, self.log_regulariser.exp(), self.newton_steps
        )
        margins = features @ state.features.mT @ coefficients
        scores = self.log_scale.exp() * margins + self.bias
        return scores.masked_fill(state.counts.unsqueeze(1) == 0, -torch.inf)


def logistic_coefficients(products: Tensor, targets: Tensor, regulariser: Tensor, steps: int) -> Tensor:
    """Of each class's regression, after so many of Newton's steps: c with w = X'c, (batch, image, way).

    It minimises sum of log(1 + exp(f)) - y f, plus regulariser / 2 |w|^2, over f = X w.
    products XX': (batch, image, image); targets: (batch, image, way), 1 or 0. Each step solves
    (XX' + regulariser / s) c = f + (y - mu) / s, here multiplied by s: where an estimate is all but certain,
    s is all but 0.
    """
    coefficients = torch.zeros_like(targets)
    identity = torch.eye(products.shape[-1]).to(products)
    for _ in range(steps):
        margins = products @ coefficients
        estimates = margins.sigmoid()
        weights = (estimates * (1 - estimates)).mT.unsqueeze(-1)  # (batch, way, image, 1)
        systems = weights * products.unsqueeze(-3) + regulariser * identity
        responses = weights.squeeze(-1).mT * margins + targets - estimates
        coefficients = torch.linalg.solve(systems, responses.mT.unsqueeze(-1)).squeeze(-1).mT
    return coefficients
