"""3x3 convolutions with a kernel for each group of images, differentiable any number of times.

A learner that adapts its weights has weights of its own for every episode. torch then convolves episode by
episode, or in one grouped convolution; either way small maps cost more to hand over than to compute, and
torch's own backward of the backward takes gradients of kernels for kernels as large as the maps. Here the
three operations (the convolution, its gradient by the maps, its gradient by the kernels) are all derivatives
of one form that is linear in maps, kernels and output's gradient. So each is the derivative of the others,
and three operations that are fast are all that any order of gradient takes: those of `convolve.c` or, where
fewer products gain, those of `winograd.c`, group by group.

Where a kernel cannot be used (a GPU, another dtype, channels that do not fill vectors, no compiler) torch's
grouped convolutions compute the same, to rounding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fewshot.errors import LearnerError
from fewshot.kernels import winograd
from fewshot.kernels.native import call, empty, empty_maps, library

SIDE = 3
"""Of the kernels, which are square; maps are padded by one pixel of zeros on each side."""


def convolve(maps: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """Convolve each group of images with its own kernel.

    maps: (groups * images, in, row, column), the images of a group side by side; fast in channels-last memory
    format, in which the result is. kernels: (groups, 3, 3, in, out), an axis order that keeps the sums of one
    pixel side by side; where groups share one kernel, an expanded tensor (no stride from group to group).
    Raises LearnerError for maps of other channels, or that are no whole number of groups.
    """
    if maps.shape[1] != kernels.shape[3] or len(maps) % len(kernels):
        raise LearnerError(
            f"{len(kernels)} kernels for {kernels.shape[3]} channels cannot share {len(maps)} images of "
            f"{maps.shape[1]}: give images of the kernels' channels, as many to each kernel"
        )
    convolved: Tensor = _Convolve.apply(maps, kernels, stride)
    return convolved


def fits(maps: Tensor, weights: Tensor) -> bool:
    """Whether the convolution and its gradient by the maps both have a kernel; weights: (out, in, 3, 3)."""
    matching = maps.shape[1] == weights.shape[1]
    return matching and all(_suits(width, maps, weights) for width in weights.shape[:2])


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, maps: Tensor, kernels: Tensor, stride: int) -> Tensor:
        context.save_for_backward(maps, kernels)
        context.stride = stride
        size = [(side - 1) // stride + 1 for side in maps.shape[2:]]
        if not _suits(kernels.shape[-1], maps, kernels):
            return _plain_convolve(maps, kernels, stride)
        return _run(maps, kernels, size, stride, backward=False)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, kernels = context.saved_tensors
        by_maps, by_kernels, _ = context.needs_input_grad
        return (
            _MapsGradient.apply(gradient, kernels, maps.shape, context.stride) if by_maps else None,
            _KernelGradient.apply(maps, gradient, len(kernels), context.stride) if by_kernels else None,
            None,
        )


class _MapsGradient(torch.autograd.Function):
    """(output's gradient, kernels) -> gradient by the maps; shape: the maps'."""

    @staticmethod
    def forward(context: Any, gradient: Tensor, kernels: Tensor, shape: torch.Size, stride: int) -> Tensor:
        context.save_for_backward(gradient, kernels)
        context.stride = stride
        if not _suits(shape[1], gradient, kernels):
            return _plain_maps_gradient(gradient, kernels, shape, stride)
        return _run(gradient, kernels.mT, shape[2:], stride, backward=True)

    @staticmethod
    def backward(context: Any, maps: Tensor) -> tuple[Tensor | None, ...]:
        gradient, kernels = context.saved_tensors
        by_gradient, by_kernels, *_ = context.needs_input_grad
        return (
            _Convolve.apply(maps, kernels, context.stride) if by_gradient else None,
            _KernelGradient.apply(maps, gradient, len(kernels), context.stride) if by_kernels else None,
            None,
            None,
        )


class _KernelGradient(torch.autograd.Function):
    """(maps, output's gradient) -> gradient by the kernels, one of each group."""

    @staticmethod
    def forward(context: Any, maps: Tensor, gradient: Tensor, groups: int, stride: int) -> Tensor:
        context.save_for_backward(maps, gradient)
        context.stride = stride
        if not _suits(gradient.shape[1], maps, gradient):
            return _plain_kernel_gradient(maps, gradient, groups, stride)
        maps, gradient = _channels_last(maps), _channels_last(gradient)
        if stride == 1 and winograd.gains(maps, gradient.shape[1]):
            pairs = zip(_grouped(maps, groups), _grouped(gradient, groups), strict=True)
            return torch.stack([winograd.weights_gradient(*pair) for pair in pairs])
        kernels = empty(groups, SIDE, SIDE, maps.shape[1], gradient.shape[1])
        images, (channels, *size) = len(maps) // groups, maps.shape[1:]
        out_channels, *out_size = gradient.shape[1:]
        numbers = (groups, images, *size, channels, *out_size, out_channels, stride)
        call("convolve", "kernel_gradient", maps, gradient, kernels, *numbers, torch.get_num_threads())
        return kernels

    @staticmethod
    def backward(context: Any, kernels: Tensor) -> tuple[Tensor | None, ...]:
        maps, gradient = context.saved_tensors
        by_maps, by_gradient, *_ = context.needs_input_grad
        return (
            _MapsGradient.apply(gradient, kernels, maps.shape, context.stride) if by_maps else None,
            _Convolve.apply(maps, kernels, context.stride) if by_gradient else None,
            None,
            None,
        )


def _suits(width: int, *given: Tensor) -> bool:
    """The one place that chooses between the kernel and plain torch; width: channels of the result."""
    if not all(part.dtype == torch.float32 and part.device.type == "cpu" and part.numel() for part in given):
        return False
    kernels = library("convolve")
    return kernels is not None and width % kernels.lanes_of_a_vector() == 0


def _run(maps: Tensor, kernels: Tensor, size: Sequence[int], stride: int, *, backward: bool) -> Tensor:
    """kernels: (groups, 3, 3, from, to); size: rows and columns of the result."""
    groups, width = len(kernels), kernels.shape[-1]
    maps = _channels_last(maps)
    told_apart = _told_apart(kernels)
    if stride == 1 and winograd.gains(maps, width):
        turned = told_apart.flip(1, 2) if backward else told_apart
        pairs = zip(_grouped(maps, len(turned)), turned, strict=True)
        parts = [winograd.apply(*pair) for pair in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    out = empty_maps(len(maps), width, *size)
    packed = told_apart.contiguous()
    kernel_stride = packed[0].numel() if len(packed) > 1 else 0
    channels, *from_size = maps.shape[1:]
    numbers = (groups, len(maps) // groups, *from_size, channels, *size, width, kernel_stride, stride)
    call("convolve", "convolve", maps, packed, out, *numbers, backward, torch.get_num_threads())
    return out


def _grouped(maps: Tensor, groups: int) -> tuple[Tensor, ...]:
    return maps.reshape(groups, -1, *maps.shape[1:]).unbind()


def _channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def _told_apart(kernels: Tensor) -> Tensor:
    """The kernels that differ: one where all groups share it."""
    return kernels[:1] if kernels.stride(0) == 0 else kernels


def _plain_convolve(maps: Tensor, kernels: Tensor, stride: int) -> Tensor:
    groups, weights = _as_torch(kernels)
    return _apart(F.conv2d(_beside(maps, groups), weights, stride=stride, padding=1, groups=groups), groups)


def _plain_maps_gradient(gradient: Tensor, kernels: Tensor, shape: torch.Size, stride: int) -> Tensor:
    groups, weights = _as_torch(kernels)
    count, channels, *size = shape
    beside = [count // groups, groups * channels, *size]
    by_maps = conv2d_input(  # type: ignore[no-untyped-call]
        beside, weights, _beside(gradient, groups), stride=stride, padding=1, groups=groups
    )
    return _apart(by_maps, groups)


def _plain_kernel_gradient(maps: Tensor, gradient: Tensor, groups: int, stride: int) -> Tensor:
    channels, out_channels = maps.shape[1], gradient.shape[1]
    by_kernels: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        _beside(maps, groups),
        [groups * out_channels, channels, SIDE, SIDE],
        _beside(gradient, groups),
        stride=stride,
        padding=1,
        groups=groups,
    )
    return by_kernels.reshape(groups, out_channels, channels, SIDE, SIDE).permute(0, 3, 4, 2, 1).contiguous()


def _as_torch(kernels: Tensor) -> tuple[int, Tensor]:
    """The number of groups that torch has to tell apart, and their kernels: (groups * out, in, 3, 3)."""
    told_apart = _told_apart(kernels)
    return len(told_apart), told_apart.permute(0, 4, 3, 1, 2).flatten(0, 1)


def _beside(maps: Tensor, groups: int) -> Tensor:
    """(groups * images, channel, ...) -> (images, groups * channel, ...)."""
    size = maps.shape[2:]
    return maps.reshape(groups, -1, *maps.shape[1:]).transpose(0, 1).reshape(len(maps) // groups, -1, *size)


def _apart(maps: Tensor, groups: int) -> Tensor:
    """The inverse of `_beside`, in channels-last memory format."""
    images, size = len(maps), maps.shape[2:]
    apart = maps.reshape(images, groups, -1, *size).transpose(0, 1).reshape(images * groups, -1, *size)
    return _channels_last(apart)
