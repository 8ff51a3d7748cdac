"""Baseline (Chen et al. 2019, "A Closer Look at Few-shot Classification", section 3.2): two linear
classifiers, one over all training classes in training, and one fitted to the images shown (`fitted_head.py`).

| name     | equation                                                                | shape                 |
|----------|-------------------------------------------------------------------------|-----------------------|
| product  | f(x_i) . f(x_j) + 1: a feature that is always 1 stands for the bias     | (batch, image, image) |
| score    | w_c . f(x) + b_c                                                        | (batch, image, way)   |
| gradient | of w_c the sum over images of E_ic f(x_i): as coefficients, E           | (batch, image, way)   |

The head starts from 0, where no class is preferred. A class that was not seen is among its classes, with no
image: what is shown is not of it. Its score is the "new" one of `metric.py`.
"""

from typing import Unpack

import torch
from torch import Tensor

from fewshot.learners.class_training import linear_classifier
from fewshot.learners.fitted_head import FittedHead, HeadOptions, descend


class Baseline(FittedHead):
    """A linear head on a classifier's encoder; inductive, batch norm frozen, any way and shot."""

    def __init__(self, image_shape: tuple[int, int, int], way: int, **shared: Unpack[HeadOptions]) -> None:
        super().__init__(image_shape, way, classifier=linear_classifier, **shared)

    def products(self, features: Tensor, others: Tensor) -> Tensor:
        return features @ others.mT + 1

    def head(self, products: Tensor, targets: Tensor) -> Tensor:
        images = max(targets.shape[1], 1)

        def gradient(coefficients: Tensor) -> Tensor:
            return ((products @ coefficients).softmax(-1) - targets) / images

        return descend(gradient, torch.zeros_like(targets), self.head_steps)
