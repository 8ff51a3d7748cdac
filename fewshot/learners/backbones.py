"""Encoders shared by the learners: images in, flat features out; and how a learner's options choose one.

Conv4-64, the field's standard (Vinyals et al. 2016; Snell et al. 2017), is `widths=(64, 64, 64, 64)` with
pooling: 64 features of a 28x28 image, 1600 of an 84x84 one. Conv4-32 (Ravi and Larochelle 2017) has half the
widths, and MAML's strided one (Finn et al. 2017, for Omniglot) `downsample="stride"`. `Backbone` names the
others, those that somebody registers among them.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.kernels import convolve, first_layer, normalise, winograd
from fewshot.learners.image_network import ImageNetwork
from fewshot.learners.known import Known
from fewshot.learners.options import check_at_least, check_fraction
from fewshot.learners.own_network import Builder, OwnNetwork
from fewshot.learners.pretrained import Architecture, TorchvisionResNet
from fewshot.learners.resnet12 import ResNet12

Downsample = Literal["pool", "stride"]
Halving = Downsample | Literal["none"]
BatchNormMode = Literal["none", "frozen", "batch"]
RESNET12_WIDTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet12": (64, 160, 320, 640),
    "resnet12_narrow": (64, 128, 256, 512),
}

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
        downsample: Halving = "pool",
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
        return normalise_as(norm, partial(by_batch, pool=self.pool), partial(frozen, pool=self.pool))


def normalise_as(
    norm: nn.BatchNorm2d, by_batch: Callable[..., normalise.Normalised], frozen: Callable[..., Tensor]
) -> Tensor:
    """What a batch norm makes of maps, in the mode that it is in, by one of two functions of its weights.

    by_batch: normalises by the maps at hand, whose statistics the norm then follows; frozen: by those given.
    """
    affine = {"scale": norm.weight, "shift": norm.bias}
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
    """Update running statistics, where there are some, as `nn.BatchNorm2d` does: with unbiased variance.

    Of several groups, by the mean of theirs.
    """
    mean, variance, batches = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is not None and variance is not None and batches is not None:
        assert norm.momentum is not None
        batches += 1
        mean.lerp_(seen.mean.mean(0), norm.momentum)
        variance.lerp_(seen.variance.mean(0) * (seen.size / max(seen.size - 1, 1)), norm.momentum)


class Layout(NamedTuple):
    """What a stack of blocks is beside its weights: how each halves the image, if it does, and whether
    features are the means of the last maps.
    """

    downsample: tuple[Halving, ...]
    averaged: bool = False


class ConvBackbone(ImageNetwork):
    """A stack of `ConvBlock`s, laid flat or averaged: (..., channel, height, width) -> (..., output_size).

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
        halvings: int | None = None,
        averaged: bool = False,
    ) -> None:
        """averaged: features are the means of the last maps, and not these laid flat (`Backbone`).

        halvings: how many of the blocks, from the first on, halve the image; None for all, and for all but
        the last where features are averaged.
        """
        super().__init__()
        channels, height, width = image_shape
        rounding = 1 if downsample == "stride" else 0  # a stride rounds odd sizes up, pooling rounds down
        halvings = max(len(widths) - averaged, 0) if halvings is None else halvings
        for _ in widths[:halvings]:
            height, width = (height + rounding) // 2, (width + rounding) // 2
        if not widths or min(height, width) < 1:
            raise LearnerError(
                f"{len(widths)} convolution blocks, {halvings} of them halving the image, do not fit "
                f"{image_shape[1]}x{image_shape[2]}: give fewer widths (at least one) or a larger image"
            )
        check_at_least(1, widths=min(widths))
        self.image_shape = image_shape
        self.output_shape = (widths[-1],) if averaged else (widths[-1], height, width)
        if averaged:
            self.smallest_window = 1 if downsample == "stride" else 2**halvings
        each: list[Halving] = [downsample] * halvings + ["none"] * (len(widths) - halvings)
        self.layout = Layout(tuple(each), averaged)
        self.blocks = nn.Sequential(
            *(
                ConvBlock(before, after, downsample=halving, batch_norm=batch_norm)
                for (before, after), halving in zip(
                    pairwise((channels, *widths)), self.layout.downsample, strict=True
                )
            )
        )
        self.to(memory_format=torch.channels_last)
        same = len(set(widths)) == 1
        sizes = str(widths[0]) if same else "-".join(map(str, widths))
        self.name = f"Conv{len(widths)}-{sizes}" + (" strided" if downsample == "stride" else "")
        self.name += " averaged" if averaged else ""

    def maps(self, images: Tensor) -> Tensor:
        maps: Tensor = self.blocks(images)
        return maps.mean((2, 3)) if self.layout.averaged else maps


_OWN = Known[Builder](
    kind="backbone",
    noun="function",
    example='"package.module:function"',
    fits=callable,
    things={},
    reserved=("conv", *RESNET12_WIDTHS, *get_args(Architecture)),
)


def register_backbone(name: str, build: Builder) -> None:
    """Make a network of one's own known by name, for the option `backbone` of every learner that has it.

    build: from the shape of images, (channel, height, width), to a module that makes of images (image,
    channel, height, width) features (image, feature), or maps of them (image, channel, height, width).
    Raises LearnerError where the name is taken or malformed.
    """
    _OWN.register(name, build)


@dataclass(frozen=True)
class Backbone:
    """Which network turns images into features; in a suite a table, `backbone = {name = "resnet18"}`.

    name: "conv", of the widths that the learner has an option for; "resnet12", the few-shot one, or
        "resnet12_narrow" (`resnet12.py`); "resnet18" or "resnet50", torchvision's (`pretrained.py`); one's
        own, by the name that it is registered by or as "package.module:function" (`own_network.py`). The
        other options of convolutions mean nothing to these.
    weights: of torchvision's alone, see there. frozen: of torchvision's and one's own, which are not trained
        then. drop_rate: of DropBlock in ResNet-12.
    averaged: of convolutions alone: the last block does not halve, and features are the means of its maps
        (64 numbers with Conv4-64), which say what is in an image and not where (Tian et al. 2020,
        "Rethinking Few-Shot Image Classification"). Such a network can be trained on windows of its images.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str = "conv"
    weights: str | None = None
    frozen: bool = False
    drop_rate: float = 0.0
    averaged: bool = False

    def __post_init__(self) -> None:
        check_fraction(drop_rate=self.drop_rate)
        if self.averaged and self.name != "conv":
            raise LearnerError(f"averaged is of convolutions alone; got {self.name!r}")
        if self.own:
            _OWN.find(self.name)
        elif self.frozen and self.name not in get_args(Architecture):
            raise LearnerError(f"a frozen {self.name} would stay random: leave frozen out")
        if self.weights and self.name not in get_args(Architecture):
            raise LearnerError(f"weights are of torchvision's ResNets alone; got {self.name!r}")
        if self.drop_rate and self.name not in RESNET12_WIDTHS:
            raise LearnerError(f"drop_rate is of ResNet-12 alone; got {self.name!r}")

    @property
    def own(self) -> bool:
        """Whether it is a network of somebody's own."""
        return self.name not in _OWN.reserved

    def build(
        self,
        image_shape: tuple[int, int, int],
        widths: tuple[int, ...],
        *,
        downsample: Downsample = "pool",
        batch_norm: BatchNormMode = "frozen",
        halvings: int | None = None,
    ) -> ImageNetwork:
        """The network; the other options are those of `ConvBackbone`. LearnerError where it cannot be."""
        if self.name != "conv" and batch_norm != "frozen":
            raise LearnerError(f'{self.name} takes batch_norm = "frozen"; got {batch_norm!r}')
        match self.name:
            case "conv":
                return ConvBackbone(
                    image_shape,
                    widths,
                    downsample=downsample,
                    batch_norm=batch_norm,
                    halvings=halvings,
                    averaged=self.averaged,
                )
            case "resnet12" | "resnet12_narrow":
                return ResNet12(image_shape, RESNET12_WIDTHS[self.name], self.drop_rate)
            case "resnet18" | "resnet50":
                return TorchvisionResNet(image_shape, self.name, self.weights, self.frozen)
            case own:
                return OwnNetwork(image_shape, own, _OWN.find(own), frozen=self.frozen)


CONV = Backbone()


class Embedding(nn.Module):
    """A backbone and a linear map to a short code.

    Unless batch_norm is "none" the code is normalised too: centred and of unit variance, it tells images
    apart from the first update on. (Left to the usual initialisation, codes of different images differ by a
    fifth of their mean; a memory then finds any image everywhere, and training stays long at chance.)
    """

    def __init__(self, backbone: ImageNetwork, embedding_size: int, batch_norm: BatchNormMode) -> None:
        super().__init__()
        self.output_size = embedding_size
        self.backbone = backbone
        self.linear = nn.Linear(self.backbone.output_size, embedding_size)
        self.norm: nn.Module = nn.Identity()
        if batch_norm != "none":
            self.norm = nn.BatchNorm1d(embedding_size, track_running_stats=batch_norm == "frozen")

    def forward(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., embedding_size)."""
        code: Tensor = self.norm(self.linear(self.backbone(images)).reshape(-1, self.output_size))
        return code.reshape(*images.shape[:-3], self.output_size)


def feature_size(
    image_shape: tuple[int, int, int],
    widths: tuple[int, ...],
    embedding_size: int,
    backbone: Backbone = CONV,
) -> int:
    """How many features `image_encoder` gives, known before it is built. LearnerError for a size below 1."""
    check_at_least(1, embedding_size=embedding_size)
    return embedding_size if widths or backbone.name != "conv" else math.prod(image_shape)


def image_encoder(
    image_shape: tuple[int, int, int],
    widths: tuple[int, ...],
    embedding_size: int,
    *,
    downsample: Downsample,
    batch_norm: BatchNormMode,
    backbone: Backbone = CONV,
) -> tuple[nn.Module, str | None]:
    """What stands before a memory, (..., channel, height, width) -> (..., feature), and its name in tables.

    An `Embedding`; or, of convolutions without widths, the pixels as they are: the other options then mean
    nothing.
    """
    if not widths and backbone.name == "conv":
        if backbone.averaged:
            raise LearnerError("pixels as they are (widths = []) have no maps: leave averaged out")
        return nn.Flatten(-3), None
    network = backbone.build(image_shape, widths, downsample=downsample, batch_norm=batch_norm)
    return Embedding(network, embedding_size, batch_norm), network.name
