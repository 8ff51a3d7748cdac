"""3x3 convolutions with less than half of the products (Lavin and Gray 2016, F(2x2, 3x3)).

On a CPU core torch's convolutions are as fast as the processor multiplies: faster means to multiply less.
Each 2x2 tile of the output takes 16 products per pair of channels instead of 36, at the price of additions;
the same holds for both gradients (`winograd.c`). Sums are float32 as torch's are, and about as exact.

`fits` says where it gains: on a CPU, stride 1, enough channels, maps that tiles cover well. Elsewhere it is
`conv2d` as ever.
"""

from typing import Any

import torch
from torch import Tensor

from fewshot.kernels.native import call, empty, empty_maps, library

LANES = 16
"""Channels come in vectors of so many."""
FEWEST_CHANNELS = 32
SMALLEST_SIDE = 4
"""Below these the transforms cost what the products save."""
ROOM = 63
"""Tiles that a piece of the work has room for, as in winograd.c."""
PARTS = 8
"""The weights' gradient is summed in so many parts, whatever the number of threads: a fixed order."""


def fits(maps: Tensor, weights: Tensor) -> bool:
    """Whether `convolve` takes these and is faster than torch: the one place that chooses.

    maps: (image, in, height, width); weights: (out, in, 3, 3), for maps padded by one.
    """
    outside, inside = weights.shape[:2]
    return weights.dtype == torch.float32 and maps.shape[1] == inside and gains(maps, outside)


def gains(maps: Tensor, outside: int) -> bool:
    """Whether these maps are convolved faster here, to so many channels at stride 1."""
    return (
        maps.dtype == torch.float32
        and maps.device.type == "cpu"
        and all(size >= FEWEST_CHANNELS and size % LANES == 0 for size in (maps.shape[1], outside))
        and maps.numel() > 0
        and min(maps.shape[2:]) >= SMALLEST_SIDE
        and library("winograd") is not None
    )


def convolve(maps: Tensor, weights: Tensor) -> Tensor:
    """`conv2d(maps, weights, padding=1)`; fast in channels-last memory format, in which the result is."""
    result: Tensor = _Convolve.apply(maps, weights)
    return result


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, maps: Tensor, weights: Tensor) -> Tensor:
        context.save_for_backward(maps, weights)
        return apply(maps, weights.permute(2, 3, 1, 0))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, weights = context.saved_tensors
        by_maps, by_weights = context.needs_input_grad
        if torch.is_grad_enabled():  # for a gradient of this one: torch's, which has one
            options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [by_maps, by_weights, False])
            made = torch.ops.aten.convolution_backward(gradient, maps, weights, None, *options)
            return made[0], made[1]
        return (
            apply(gradient, weights.flip(2, 3).permute(2, 3, 0, 1)) if by_maps else None,
            weights_gradient(maps, gradient).permute(3, 2, 0, 1) if by_weights else None,
        )


def apply(maps: Tensor, weights: Tensor) -> Tensor:
    """The convolution without a graph; weights: (3, 3, in, out)."""
    maps, weights = maps.contiguous(memory_format=torch.channels_last), weights.contiguous()
    images, inside, height, width = maps.shape
    outside = weights.shape[-1]
    threads = torch.get_num_threads()
    out, points = empty_maps(images, outside, height, width), empty(16, inside, outside)
    room = _room(threads, inside + outside)
    numbers = (threads, images, height, width, inside, outside)
    call("winograd", "convolve", *numbers, maps, weights, out, points, room)
    return out


def weights_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    """The gradient by the weights, (3, 3, in, out), without a graph."""
    maps, gradient = (part.contiguous(memory_format=torch.channels_last) for part in (maps, gradient))
    images, inside, height, width = maps.shape
    outside = gradient.shape[1]
    weights, sums = empty(3, 3, inside, outside), empty(PARTS, 16, inside, outside)
    room = _room(PARTS, inside + outside)
    numbers = (torch.get_num_threads(), images, height, width, inside, outside, PARTS)
    call("winograd", "weights_gradient", *numbers, maps, gradient, weights, sums, room)
    return weights


def _room(pieces: int, channels: int) -> Tensor:
    """For the transforms of a few tiles in each piece of the work."""
    return empty(pieces, 16, ROOM, channels)
