"""Convolutional encoders shared by the learners: images in, flat features out.

Conv4-64, the field's standard (Vinyals et al. 2016; Snell et al. 2017), is `widths=(64, 64, 64, 64)` with
pooling: 64 features of a 28x28 image, 1600 of an 84x84 one.
"""

from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.kernels import first_layer, normalise
from fewshot.learners.options import check_at_least

Downsample = Literal["pool", "stride"]
BatchNormMode = Literal["none", "frozen", "batch"]


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU; halves the image by 2x2 max-pooling or by the convolution's stride.

    batch_norm: "frozen" uses the statistics of training when evaluating; "batch" always those of the images
    shown together, which makes an answer depend on its neighbours; "none" leaves it out.

    On a CPU what follows the convolution is one pass over its maps, and a first block is one altogether.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        downsample: Downsample = "pool",
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
        """(image, channel, height, width) -> (image, width, half of height, half of width)."""
        convolution, *others = self
        norm, weight = others[0], convolution.weight
        if isinstance(norm, nn.BatchNorm2d) and first_layer.fits(images, weight):
            by_batch = partial(first_layer.convolve_batch_norm_relu, images, weight, stride=self.stride)
            frozen = partial(first_layer.convolve_frozen_norm_relu, images, weight, stride=self.stride)
        else:
            maps = convolution(images.contiguous(memory_format=torch.channels_last))
            if not isinstance(norm, nn.BatchNorm2d) or not normalise.fits(maps, pool=self.pool):
                for layer in others:
                    maps = layer(maps)
                return maps
            by_batch = partial(normalise.batch_norm_relu_statistics, maps)
            frozen = partial(normalise.frozen_norm_relu, maps)
        if norm.running_mean is None or norm.training:
            normalised = by_batch(norm.weight, norm.bias, pool=self.pool)
            _follow(norm, normalised)
            return normalised.maps
        return frozen(norm.running_mean, norm.running_var, norm.weight, norm.bias, pool=self.pool)


@torch.no_grad()
def _follow(norm: nn.BatchNorm2d, seen: normalise.Normalised) -> None:
    """Update running statistics, where there are some, as `nn.BatchNorm2d` does: with unbiased variance."""
    if norm.running_mean is not None:
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(seen.mean[0], norm.momentum)
        norm.running_var.lerp_(seen.variance[0] * (seen.count / max(seen.count - 1, 1)), norm.momentum)


class ConvBackbone(nn.Module):
    """A stack of `ConvBlock`s, flattened: (..., channel, height, width) -> (..., output_size).

    Works in channels-last memory format throughout: about twice as fast on a CPU, same answers.
    Raises LearnerError where the image is too small to be halved once per block, or a width is below 1.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...] = (64, 64, 64, 64),
        *,
        downsample: Downsample = "pool",
        batch_norm: BatchNormMode = "frozen",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        rounding = 1 if downsample == "stride" else 0  # a stride rounds odd sizes up, pooling rounds down
        for _ in widths:
            height, width = (height + rounding) // 2, (width + rounding) // 2
        if not widths or min(height, width) < 1:
            raise LearnerError(
                f"{len(widths)} convolution blocks, each halving the image, do not fit "
                f"{image_shape[1]}x{image_shape[2]}: give fewer widths (at least one) or a larger image"
            )
        check_at_least(1, widths=min(widths))
        self.image_shape = image_shape
        self.output_size = widths[-1] * height * width
        self.blocks = nn.Sequential(
            *(
                ConvBlock(before, after, downsample=downsample, batch_norm=batch_norm)
                for before, after in pairwise((channels, *widths))
            )
        )
        self.to(memory_format=torch.channels_last)
        same = len(set(widths)) == 1
        sizes = str(widths[0]) if same else "-".join(map(str, widths))
        self.name = f"Conv{len(widths)}-{sizes}" + (" strided" if downsample == "stride" else "")

    def forward(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., output_size)."""
        leading = images.shape[:-3]
        features: Tensor = self.blocks(images.reshape(-1, *images.shape[-3:]))
        return features.reshape(*leading, self.output_size)


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
