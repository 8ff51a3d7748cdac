"""Meta-SGD (Li, Zhou, Chen and Li 2017): MAML that learns how far to step as well as where to start.

| name    | equation                                                                | shape             |
|---------|-------------------------------------------------------------------------|-------------------|
| rates   | alpha, learned: of each weight its own, which may turn its direction    | of the weights    |
| adapted | theta' = theta - alpha * gradient of L_S at theta (the paper's equation | (batch, *weight)  |
|         | 2; the product is taken weight by weight)                               |                   |

Weights and rates are trained together through the one inner step (algorithm 1). By default transductive in
K-shot, by the batch norm that MAML uses (`gradient.py`).
"""

from typing import ClassVar, Unpack

import torch
from torch import nn

from fewshot.learners.gradient import GradientLearner, NetworkOptions
from fewshot.learners.task_network import Weights, packed


class MetaSgd(GradientLearner):
    """Meta-SGD as published; where more steps than one are asked for, all take the same rates."""

    second_order: ClassVar[bool] = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        inner_learning_rate: float = 0.1,
        inner_steps: int = 1,
        inner_steps_test: int = 1,
        **network: Unpack[NetworkOptions],
    ) -> None:
        """inner_learning_rate: what all rates are before training; the paper draws it from 0.005 to 0.1."""
        super().__init__(
            image_shape,
            way,
            inner_learning_rate=inner_learning_rate,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            **network,
        )
        weights = (*self.backbone.parameters(), *self.head.parameters())
        self.learned_rates = nn.ParameterList(
            torch.full_like(weight, inner_learning_rate) for weight in weights
        )

    def rates(self, step: int, gradients: Weights, memory: Weights) -> tuple[Weights, Weights]:
        return tuple(packed(self.learned_rates)), memory
