"""Batch norm, ReLU and 2x2 max pooling in one pass over the maps, differentiable twice.

In a convolution block these three take almost half of the time on a CPU, nearly all of it to carry the maps
through memory between them. The kernel (`normalise.c`, which has the formulae) reads the maps twice forward
and twice backward. Its backward of the backward is there for second-order MAML. Batch norm is that of Ioffe
and Szegedy 2015 with the biased variance of the maps at hand.

Where a kernel cannot be used (a GPU, another dtype or memory format, no compiler) plain torch computes the
same, to rounding.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot.kernels.native import call, empty, empty_maps, library

EPSILON = 1e-5
"""Added to the variance, as `nn.BatchNorm2d` does; normalise.c has it too."""
LANES = 16
"""The kernel takes channels in vectors of so many; with fewer it would gain nothing."""


class Normalised(NamedTuple):
    """maps: (groups * images, channel, height, width), pooled if that was asked for;
    mean, variance: (groups, channel), of the maps before, the variance biased; without gradients;
    size: of how many values of a channel.
    """

    maps: Tensor
    mean: Tensor
    variance: Tensor
    size: int


def batch_norm_relu(maps: Tensor, scale: Tensor, shift: Tensor, *, pool: bool, groups: int = 1) -> Tensor:
    """Normalise each group by its own statistics, scale, shift, ReLU, and 2x2 max pooling (floor) if `pool`.

    maps: (groups * images, channel, height, width), the images of a group side by side; fast in channels-last
    memory format. scale, shift: (channel,), or (groups, channel) where each group has its own.
    """
    if not fits(maps, scale, shift, pool=pool, groups=groups):
        return _plain_batch_norm_relu(maps, scale, shift, pool=pool, groups=groups)
    return batch_norm_relu_statistics(maps, scale, shift, pool=pool, groups=groups).maps


def batch_norm_relu_statistics(
    maps: Tensor, scale: Tensor, shift: Tensor, *, pool: bool, groups: int = 1
) -> Normalised:
    """`batch_norm_relu`, and the statistics by which it normalised."""
    size = maps[:, 0].numel() // groups
    if not fits(maps, scale, shift, pool=pool, groups=groups):
        with torch.no_grad():
            apart = maps.reshape(groups, -1, *maps.shape[1:])
            variance, mean = torch.var_mean(apart, (1, 3, 4), correction=0)
        normalised = _plain_batch_norm_relu(maps, scale, shift, pool=pool, groups=groups)
        return Normalised(normalised, mean, variance, size)
    per_group = (values.expand(groups, maps.shape[1]).contiguous() for values in (scale, shift))
    normalised, mean, variance = _BatchNormRelu.apply(maps, *per_group, pool)
    return Normalised(normalised, mean, variance, size)


def frozen_norm_relu(
    maps: Tensor, mean: Tensor, variance: Tensor, scale: Tensor, shift: Tensor, *, pool: bool
) -> Tensor:
    """`batch_norm_relu` by statistics that are given, as in evaluation; all but maps: (channel,)."""
    slope = scale / (variance + EPSILON).sqrt()
    wanted = torch.is_grad_enabled() and any(part.requires_grad for part in (maps, slope, shift))
    if wanted or not fits(maps, mean, slope, shift, pool=pool):
        mean, slope, shift = (values[:, None, None] for values in (mean, slope, shift))
        return _relu_pool((maps - mean) * slope + shift, pool)
    out, code = _made_of(maps, pool)
    given = (values.contiguous() for values in (mean, slope, shift))
    _call("affine_relu", maps, 1, pool, maps, *given, out, code)
    return out


def _plain_batch_norm_relu(maps: Tensor, scale: Tensor, shift: Tensor, *, pool: bool, groups: int) -> Tensor:
    """A group's channels become channels of their own, so that one batch norm does all groups."""
    images, (channels, *size) = len(maps) // groups, maps.shape[1:]
    apart = maps.reshape(groups, images, channels, *size).transpose(0, 1).reshape(images, -1, *size)
    scale, shift = (values.expand(groups, channels).flatten() for values in (scale, shift))
    normalised = torch.batch_norm(
        apart, scale, shift, None, None, True, 0.0, EPSILON, torch.backends.cudnn.enabled
    )
    together = normalised.reshape(images, groups, channels, *size).transpose(0, 1).reshape(maps.shape)
    return _relu_pool(together, pool)


def _relu_pool(maps: Tensor, pool: bool) -> Tensor:
    maps = maps.relu()
    return torch.max_pool2d(maps, 2) if pool else maps


def fits(maps: Tensor, *others: Tensor, pool: bool, groups: int = 1) -> bool:
    """Whether the kernel takes these maps (and scale, shift), or plain torch has to: the one place that
    chooses.
    """
    return (
        all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (maps, *others))
        and all(part.shape[-1] == maps.shape[1] for part in others)
        and len(maps) % groups == 0
        and maps.is_contiguous(memory_format=torch.channels_last)
        and maps.shape[1] % LANES == 0
        and maps.numel() > 0
        and (not pool or min(maps.shape[2:]) > 1)
        and library("normalise") is not None
    )


def _call(function: str, maps: Tensor, groups: int, pool: bool, *tensors: Tensor) -> None:
    """Every function takes threads, groups, images, height, width, channels, window, then its tensors."""
    images, channels, height, width = maps.shape
    window = 2 if pool else 1
    numbers = (torch.get_num_threads(), groups, images // groups, height, width, channels, window)
    call("normalise", function, *numbers, *tensors)


def _made_of(maps: Tensor, pool: bool) -> tuple[Tensor, Tensor]:
    """Room for the result and for its code: which of a window's positions it is, 255 where it is zero."""
    images, channels, height, width = maps.shape
    window = 2 if pool else 1
    shape = (images, channels, height // window, width // window)
    return empty_maps(*shape), empty_maps(*shape, dtype=torch.uint8)


def _scratch(maps: Tensor, groups: int, sums: int) -> Tensor:
    """Room for so many sums per channel: in double of each image and of all, in float of each image's row,
    and for what is made of them for each group.
    """
    doubles = len(maps) + 1 + (len(maps) + groups) / 2
    return empty(int(doubles * sums * maps.shape[1]), dtype=torch.float64)


class _BatchNormRelu(torch.autograd.Function):
    """maps, scale, shift (groups, channel), pool -> out, mean, variance."""

    @staticmethod
    def forward(
        context: Any, maps: Tensor, scale: Tensor, shift: Tensor, pool: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups = len(scale)
        out, code = _made_of(maps, pool)
        mean, variance, spread = empty(3, *scale.shape).unbind()
        scratch = _scratch(maps, groups, 2)
        made = (out, code, mean, variance, spread)
        _call("forward", maps, groups, pool, maps, scale, shift, *made, scratch)
        context.save_for_backward(maps, scale, mean, spread, code)
        context.pool = pool
        context.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(context: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return *_BatchNormReluBackward.apply(gradient, *context.saved_tensors, context.pool), None


class _BatchNormReluBackward(torch.autograd.Function):
    """Its gradient, as a function of the gradient of out, the maps and the scale; the rest is constant.

    (Mean and spread are functions of the maps: the backward of this one knows.)
    """

    @staticmethod
    def forward(
        context: Any,
        gradient: Tensor,
        maps: Tensor,
        scale: Tensor,
        mean: Tensor,
        spread: Tensor,
        code: Tensor,
        pool: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups = len(scale)
        d_maps, d_scale, d_shift = (torch.empty_like(part) for part in (maps, scale, scale))
        given = (gradient, maps, scale, mean, spread, code)
        scratch = _scratch(maps, groups, 2)
        _call("backward", maps, groups, pool, *given, d_maps, d_scale, d_shift, scratch)
        context.save_for_backward(*given, d_scale, d_shift)
        context.pool = pool
        return d_maps, d_scale, d_shift

    @staticmethod
    @once_differentiable
    def backward(context: Any, v: Tensor, v_scale: Tensor, v_shift: Tensor) -> tuple[Tensor | None, ...]:
        gradient, maps, scale, *_ = context.saved_tensors
        groups = len(scale)
        v = v.contiguous(memory_format=torch.channels_last)
        made = tuple(torch.empty_like(part) for part in (gradient, maps, scale))
        given = (v, v_scale.contiguous(), v_shift.contiguous(), *context.saved_tensors)
        scratch = _scratch(maps, groups, 3)
        _call("backward_twice", maps, groups, context.pool, *given, *made, scratch)
        return *made, None, None, None, None
