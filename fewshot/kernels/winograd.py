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
    return (
        all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (maps, weights))
        and all(size >= FEWEST_CHANNELS and size % LANES == 0 for size in weights.shape[:2])
        and maps.shape[1] == weights.shape[1]
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
        return _run(maps, weights.permute(2, 3, 1, 0))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, weights = context.saved_tensors
        by_maps, by_weights = context.needs_input_grad
        if torch.is_grad_enabled():  # for a gradient of this one: torch's, which has one
            options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, [by_maps, by_weights, False])
            made = torch.ops.aten.convolution_backward(gradient, maps, weights, None, *options)
            return made[0], made[1]
        return (
            _run(gradient, weights.flip(2, 3).permute(2, 3, 0, 1)) if by_maps else None,
            _weights_gradient(maps, gradient) if by_weights else None,
        )


def _run(maps: Tensor, weights: Tensor) -> Tensor:
    """weights: (3, 3, from, to)."""
    maps, weights = maps.contiguous(memory_format=torch.channels_last), weights.contiguous()
    images, inside, height, width = maps.shape
    outside = weights.shape[-1]
    threads = torch.get_num_threads()
    out, points = empty_maps(images, outside, height, width), empty(16, inside, outside)
    room = _room(threads, inside + outside)
    numbers = (threads, images, height, width, inside, outside)
    call("winograd", "convolve", *numbers, maps, weights, out, points, room)
    return out


def _weights_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    maps, gradient = (part.contiguous(memory_format=torch.channels_last) for part in (maps, gradient))
    images, inside, height, width = maps.shape
    outside = gradient.shape[1]
    weights, sums = empty(3, 3, inside, outside), empty(PARTS, 16, inside, outside)
    room = _room(PARTS, inside + outside)
    numbers = (torch.get_num_threads(), images, height, width, inside, outside, PARTS)
    call("winograd", "weights_gradient", *numbers, maps, gradient, weights, sums, room)
    return weights.permute(3, 2, 0, 1)


def _room(pieces: int, channels: int) -> Tensor:
    """For the transforms of a few tiles in each piece of the work."""
    return empty(pieces, 16, ROOM, channels)
