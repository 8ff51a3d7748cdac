"""The first block of a convolutional network: images of few channels in, normalised maps out.

Its maps are the largest of all and the cheapest to compute: each value is a sum of 9 products per channel of
the image. So they are never stored. Their mean and variance are those of linear functions of the images' 3x3
patches: with the patches' mean p and covariance C, a map of weights w has mean w p and variance w C w. That
known, one pass (`first_layer.c`) computes, normalises, cuts off and pools each window of maps while it is in
registers. The gradient by the weights takes one more pass; the images need none.

Where a kernel cannot be used (a GPU, another dtype, more than a few channels, images that want a gradient,
no compiler) there is `conv2d` and `fewshot.kernels.normalise`, which give the same to rounding.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.kernels.native import call, empty, empty_maps, library
from fewshot.kernels.normalise import EPSILON, Normalised

MOST_CHANNELS = 4
"""With more, torch's convolutions are faster than maps that are computed again."""
LANES = 16
"""Maps come in vectors of so many."""
PATCHES = 256
"""Their moments are taken of so many at a time (at least a row of them)."""


class PatchMoments(NamedTuple):
    """mean: (tap,) and covariance: (tap, tap) of `size` patches, float64; taps as in a kernel's weights."""

    mean: Tensor
    covariance: Tensor
    size: int


def fits(images: Tensor, weights: Tensor) -> bool:
    """Whether the functions below take these: the one place that chooses.

    images: (image, channel, height, width); weights: (map, channel, 3, 3), for images padded by one.
    """
    return (
        all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (images, weights))
        and images.shape[1] == weights.shape[1] <= MOST_CHANNELS
        and weights.shape[0] % LANES == 0
        and not (images.requires_grad and torch.is_grad_enabled())
        and images.numel() > 0
        and min(images.shape[2:]) > 1
        and library("first_layer") is not None
    )


def convolve_batch_norm_relu(
    images: Tensor, weights: Tensor, scale: Tensor, shift: Tensor, *, stride: int, pool: bool
) -> Normalised:
    """A convolution without bias, then `normalise.batch_norm_relu`; scale, shift: (map,)."""
    padded = _padded(images)
    moments = patch_moments(padded, stride)
    taps = weights.flatten(1).double()
    mean = taps @ moments.mean
    variance = ((taps @ moments.covariance) * taps).sum(1).clamp(min=0)  # below 0 by rounding only
    slope = scale / (variance + EPSILON).sqrt()
    maps: Tensor = _ConvolveRelu.apply(padded, slope.unsqueeze(1) * taps, shift - slope * mean, stride, pool)
    mean, variance = (part.detach().float().unsqueeze(0) for part in (mean, variance))
    return Normalised(maps, mean, variance, moments.size)


def convolve_frozen_norm_relu(
    images: Tensor,
    weights: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    stride: int,
    pool: bool,
) -> Tensor:
    """A convolution without bias, then `normalise.frozen_norm_relu`; all after weights: (map,)."""
    slope = scale / (variance.double() + EPSILON).sqrt()
    taps = slope.unsqueeze(1) * weights.flatten(1)
    maps: Tensor = _ConvolveRelu.apply(_padded(images), taps, shift - slope * mean, stride, pool)
    return maps


def patch_moments(padded: Tensor, stride: int) -> PatchMoments:
    """Of all patches that a convolution of this stride sees."""
    count, channels, rows, columns = padded.shape
    taps = 9 * channels
    high, wide = ((side - 3) // stride + 1 for side in (rows, columns))
    rows_together = max(1, PATCHES // wide)
    places = -(-rows_together * wide // LANES) * LANES
    # Close enough to the mean that squares do not drown the variance. Of each image first, as torch's sum of
    # all of them depends on the number of threads.
    centre = padded.mean((2, 3)).mean(0)
    room = empty(count * (taps + 1) * places)
    parts = empty(count * (taps + 1) * taps, dtype=torch.float64)
    total = empty(taps + 1, taps, dtype=torch.float64)
    numbers = (torch.get_num_threads(), *padded.shape, stride, places)
    call("first_layer", "patch_moments", *numbers, padded, centre, room, parts, total)
    patches = count * high * wide
    moments = total / patches
    products, mean = moments[:-1], moments[-1]
    covariance = products.tril() + products.tril(-1).T - torch.outer(mean, mean)
    return PatchMoments(mean + centre.repeat_interleave(9), covariance, patches)


def _padded(images: Tensor) -> Tensor:
    return F.pad(images.detach(), (1, 1, 1, 1)).contiguous()


class _ConvolveRelu(torch.autograd.Function):
    """padded images, weights (map, tap) and offsets (map,), float64 -> maps; not by the images."""

    @staticmethod
    def forward(
        context: Any, padded: Tensor, weights: Tensor, offsets: Tensor, stride: int, pool: bool
    ) -> Tensor:
        window = 2 if pool else 1
        high, wide = (((side - 3) // stride + 1) // window for side in padded.shape[2:])
        shape = (len(padded), len(weights), high, wide)
        out, code = empty_maps(*shape), empty_maps(*shape, dtype=torch.uint8)
        by_tap, offset = weights.T.float().contiguous(), offsets.float()
        numbers = (torch.get_num_threads(), *padded.shape, stride, window, len(weights))
        call("first_layer", "forward", *numbers, padded, by_tap, offset, out, code)
        context.save_for_backward(padded, code, weights, offsets)
        context.numbers = numbers
        return out

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        padded, code, weights, offsets = context.saved_tensors
        if torch.is_grad_enabled():  # for a gradient of this one
            _, _, channels, _, _, stride, window, _ = context.numbers
            maps = F.conv2d(padded, weights.float().unflatten(1, (channels, 3, 3)), offsets.float(), stride)
            result = maps.relu() if window == 1 else torch.max_pool2d(maps.relu(), 2)
            by_weights, by_offsets = torch.autograd.grad(
                result, (weights, offsets), gradient, create_graph=True
            )
            return None, by_weights, by_offsets, None, None
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows = weights.shape[1] + 1
        parts = empty(len(padded) * rows * len(weights), dtype=torch.float64)
        total = empty(rows, len(weights), dtype=torch.float64)
        numbers = (torch.get_num_threads(), *context.numbers[1:])
        call("first_layer", "backward", *numbers, padded, gradient, code, parts, total)
        return None, total[:-1].T, total[-1], None, None
