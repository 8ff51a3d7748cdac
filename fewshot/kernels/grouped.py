"""3x3 convolutions of groups of images by torch's grouped one, differentiable any number of times.

The groups' channels lie side by side, as torch has them: no map is moved. torch's own backward of the
backward goes group by group. Here, as in `convolve.py`, the convolution and its two gradients are each the
derivative of the others, so that all groups go together however often it is differentiated.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight


def convolve(maps: Tensor, weights: Tensor, stride: int, groups: int) -> Tensor:
    """maps: (image, groups * in, row, column); weights: (groups * out, in, 3, 3)."""
    convolved: Tensor = _Convolve.apply(maps, weights, stride, groups)
    return convolved


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, maps: Tensor, weights: Tensor, stride: int, groups: int) -> Tensor:
        context.save_for_backward(maps, weights)
        context.stride, context.groups = stride, groups
        return F.conv2d(maps, weights, stride=stride, padding=1, groups=groups)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, weights = context.saved_tensors
        how = context.stride, context.groups
        by_maps, by_weights, *_ = context.needs_input_grad
        return (
            _MapsGradient.apply(gradient, weights, maps.shape, *how) if by_maps else None,
            _WeightsGradient.apply(maps, gradient, weights.shape, *how) if by_weights else None,
            None,
            None,
        )


class _MapsGradient(torch.autograd.Function):
    """(output's gradient, weights) -> gradient by the maps; shape: the maps'."""

    @staticmethod
    def forward(
        context: Any, gradient: Tensor, weights: Tensor, shape: torch.Size, stride: int, groups: int
    ) -> Tensor:
        context.save_for_backward(gradient, weights)
        context.stride, context.groups = stride, groups
        by_maps: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            shape, weights, gradient, stride=stride, padding=1, groups=groups
        )
        return by_maps

    @staticmethod
    def backward(context: Any, maps: Tensor) -> tuple[Tensor | None, ...]:
        gradient, weights = context.saved_tensors
        how = context.stride, context.groups
        by_gradient, by_weights, *_ = context.needs_input_grad
        return (
            _Convolve.apply(maps, weights, *how) if by_gradient else None,
            _WeightsGradient.apply(maps, gradient, weights.shape, *how) if by_weights else None,
            None,
            None,
            None,
        )


class _WeightsGradient(torch.autograd.Function):
    """(maps, output's gradient) -> gradient by the weights; shape: theirs."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, gradient: Tensor, shape: torch.Size, stride: int, groups: int
    ) -> Tensor:
        context.save_for_backward(maps, gradient)
        context.stride, context.groups = stride, groups
        by_weights: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            maps, shape, gradient, stride=stride, padding=1, groups=groups
        )
        return by_weights

    @staticmethod
    def backward(context: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        maps, gradient = context.saved_tensors
        how = context.stride, context.groups
        by_maps, by_gradient, *_ = context.needs_input_grad
        return (
            _MapsGradient.apply(gradient, weights, maps.shape, *how) if by_maps else None,
            _Convolve.apply(maps, weights, *how) if by_gradient else None,
            None,
            None,
            None,
        )
