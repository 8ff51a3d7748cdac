"""Convolutional encoders shared by the learners: images in, flat features out.

Conv4-64, the field's standard (Vinyals et al. 2016; Snell et al. 2017), is `widths=(64, 64, 64, 64)` with
pooling: 64 features of a 28x28 image, 1600 of an 84x84 one.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.kernels import convolve, first_layer, normalise, winograd
from fewshot.learners.options import check_at_least

Downsample = Literal["pool", "stride"]
BatchNormMode = Literal["none", "frozen", "batch"]

SHARES = 8
"""Threads share the images of a strided convolution in so many parts at most, which decide how it rounds."""


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU; halves the image by 2x2 max-pooling or by the convolution's stride,
    or leaves its size as it is ("none").

    batch_norm: "frozen" uses the statistics of training when evaluating; "batch" always those of the images
    shown together, which makes an answer depend on its neighbours; "none" leaves it out.

    On a CPU the block is made of kernels of our own where they fit: `first_layer` for all of a first block;
    else `_convolve`, and one pass of `normalise` over the maps. The layers then only hold the weights.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        downsample: Downsample | Literal["none"] = "pool",
        batch_norm: BatchNormMode = "frozen",
    ) -> None:
        stride = 2 if downsample == "stride" else 1
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=batch_norm == "none")
        ]
        if batch_norm != "none":
            layers.append(nn.BatchNorm2d(width, track_running_stats=batch_norm == "frozen"))
        layers.append(nn.ReLU())
        if downsample == "pool":
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers)
        self.pool = downsample == "pool"
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """(image, channel, height, width) -> (image, width, height, width), the last two halved or not."""
        convolution, norm, *others = self
        assert isinstance(convolution, nn.Conv2d)
        if not isinstance(norm, nn.BatchNorm2d):
            return _in_turn(self, _channels_last(images))
        by_batch: Callable[..., normalise.Normalised]
        frozen: Callable[..., Tensor]
        if first_layer.fits(images, convolution.weight):
            given: dict[str, Any] = {"images": images, "weights": convolution.weight, "stride": self.stride}
            by_batch = partial(first_layer.convolve_batch_norm_relu, **given)
            frozen = partial(first_layer.convolve_frozen_norm_relu, **given)
        else:
            maps = _convolve(_channels_last(images), convolution)
            if not normalise.fits(maps, norm.weight, pool=self.pool):
                return _in_turn((norm, *others), maps)
            by_batch = partial(normalise.batch_norm_relu_statistics, maps)
            frozen = partial(normalise.frozen_norm_relu, maps)
        affine: dict[str, Any] = {"scale": norm.weight, "shift": norm.bias, "pool": self.pool}
        if norm.running_mean is None or norm.training:
            normalised = by_batch(**affine)
            _follow(norm, normalised)
            return normalised.maps
        return frozen(mean=norm.running_mean, variance=norm.running_var, **affine)


def _in_turn(layers: Iterable[nn.Module], maps: Tensor) -> Tensor:
    for layer in layers:
        maps = layer(maps)
    return maps


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _convolve(images: Tensor, convolution: nn.Conv2d) -> Tensor:
    """By what was fastest: fewer products at stride 1; at stride 2, where torch's gradient by the images is
    slow (half as fast as its other two), the convolution made for MAML; else torch's.
    """
    weights = convolution.weight
    if convolution.stride == (1, 1) and winograd.fits(images, weights):
        return winograd.convolve(images, weights)
    if convolution.stride == (2, 2) and convolve.fits(images, weights):
        shares = math.gcd(len(images), SHARES)
        return convolve.convolve(images, weights.permute(2, 3, 1, 0).expand(shares, -1, -1, -1, -1), stride=2)
    maps: Tensor = convolution(images)
    return maps


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, seen: normalise.Normalised) -> None:
    """Update running statistics, where there are some, as `nn.BatchNorm2d` does: with unbiased variance."""
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is not None and variance is not None and batches is not None:
        assert norm.momentum is not None
        batches += 1
        mean.lerp_(seen.mean[0], norm.momentum)
        variance.lerp_(seen.variance[0] * (seen.size / max(seen.size - 1, 1)), norm.momentum)


class ConvBackbone(nn.Module):
    """A stack of `ConvBlock`s, flattened: (..., channel, height, width) -> (..., output_size).

    Works in channels-last memory format throughout: about twice as fast on a CPU, same answers. Trained on a
    GPU, it convolves in bfloat16 (weights, statistics and features stay float32); it answers in float32.
    Raises LearnerError where the image is too small to be halved once per block, or a width is below 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...] = (64, 64, 64, 64),
        *,
        downsample: Downsample = "pool",
        batch_norm: BatchNormMode = "frozen",
        halvings: int | None = None,
    ) -> None:
        """halvings: how many of the blocks, from the first on, halve the image; None for all."""
        super().__init__()
        channels, height, width = image_shape
        rounding = 1 if downsample == "stride" else 0  # a stride rounds odd sizes up, pooling rounds down
        halvings = len(widths) if halvings is None else halvings
        for _ in widths[:halvings]:
            height, width = (height + rounding) // 2, (width + rounding) // 2
        if not widths or min(height, width) < 1:
            raise LearnerError(
                f"{len(widths)} convolution blocks, {halvings} of them halving the image, do not fit "
                f"{image_shape[1]}x{image_shape[2]}: give fewer widths (at least one) or a larger image"
            )
        check_at_least(1, widths=min(widths))
        self.image_shape = image_shape
        self.output_shape = (widths[-1], height, width)
        self.output_size = math.prod(self.output_shape)
        self.blocks = nn.Sequential(
            *(
                ConvBlock(
                    before,
                    after,
                    downsample=downsample if number < halvings else "none",
                    batch_norm=batch_norm,
                )
                for number, (before, after) in enumerate(pairwise((channels, *widths)))
            )
        )
        self.to(memory_format=torch.channels_last)
        same = len(set(widths)) == 1
        sizes = str(widths[0]) if same else "-".join(map(str, widths))
        self.name = f"Conv{len(widths)}-{sizes}" + (" strided" if downsample == "stride" else "")

    def forward(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., output_size)."""
        leading = images.shape[:-3]
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda and self.training):
            features: Tensor = self.blocks(images.reshape(-1, *images.shape[-3:]))
        return features.to(images.dtype).reshape(*leading, self.output_size)


class ConvEmbedding(nn.Module):
    """A `ConvBackbone` and a linear map to a short code.

    Unless batch_norm is "none" the code is normalised too: centred and of unit variance, it tells images
    apart from the first update on. (Left to the usual initialisation, codes of different images differ by a
    fifth of their mean; a memory then finds any image everywhere, and training stays long at chance.)
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...],
        embedding_size: int,
        *,
        downsample: Downsample = "pool",
        batch_norm: BatchNormMode = "frozen",
    ) -> None:
        super().__init__()
        self.output_size = embedding_size
        self.backbone = ConvBackbone(image_shape, widths, downsample=downsample, batch_norm=batch_norm)
        self.linear = nn.Linear(self.backbone.output_size, embedding_size)
        self.norm: nn.Module = nn.Identity()
        if batch_norm != "none":
            self.norm = nn.BatchNorm1d(embedding_size, track_running_stats=batch_norm == "frozen")

    def forward(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., embedding_size)."""
        code: Tensor = self.norm(self.linear(self.backbone(images)).reshape(-1, self.output_size))
        return code.reshape(*images.shape[:-3], self.output_size)


def feature_size(image_shape: tuple[int, int, int], widths: tuple[int, ...], embedding_size: int) -> int:
    """How many features `image_encoder` gives, known before it is built. LearnerError for a size below 1."""
    check_at_least(1, embedding_size=embedding_size)
    return embedding_size if widths else math.prod(image_shape)


def image_encoder(
    image_shape: tuple[int, int, int],
    widths: tuple[int, ...],
    embedding_size: int,
    *,
    downsample: Downsample,
    batch_norm: BatchNormMode,
) -> tuple[nn.Module, str | None]:
    """What stands before a memory, (..., channel, height, width) -> (..., feature), and its name in tables.

    A `ConvEmbedding`; or, where widths is empty, the pixels as they are: the other options then mean nothing.
    """
    if not widths:
        return nn.Flatten(-3), None
    encoder = ConvEmbedding(image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm)
    return encoder, encoder.backbone.name
