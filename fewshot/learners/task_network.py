"""The convolutional network of `backbones.py` with weights of its own for every episode of a batch.

Weights are a tuple of tensors, each with the batch first: of each block the kernel (batch, 3, 3, in, out) and
the batch norm's scale and shift (batch, out), then the head (batch, way, feature) and its bias (batch, way).
Scales and shifts are missing where all episodes share their norms.

What is fast, measured with 16 episodes and Conv4-64 on one CPU core (`benchmarks/speed/maml_step.py`): all
episodes go through each layer together, in channels-last order, by two kernels of our own that are
differentiable twice, `convolve` and `batch_norm_relu`. A loop over episodes with torch's operations takes
twice as long, for its backward of the backward and its pooling above all. Grouped convolutions were little
better than the loop, and so were matrix products of unfolded images; `torch.func.vmap` was no faster, and
the meta-gradient that it takes through batch norm was wrong by 0.4 % (torch 2.15).

On a GPU the episodes' channels lie side by side instead, for torch's grouped convolutions, where each episode
has one set of images and norms of its own: no map is moved between two layers. What is left goes through the
plain forms of the two operations. How much that gains is not measured apart.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from fewshot.kernels import grouped
from fewshot.kernels.convolve import convolve
from fewshot.kernels.normalise import (
    EPSILON,
    batch_norm_relu,
    batch_norm_relu_statistics,
    frozen_norm_relu,
)
from fewshot.learners.backbones import ConvBackbone, Layout, normalise_as

Weights = tuple[Tensor, ...]


def packed(weights: Iterable[Tensor]) -> Iterator[Tensor]:
    """Weights as modules have them, in the axis order of this file: of kernels (3, 3, in, out)."""
    return (weight.permute(2, 3, 1, 0).contiguous() if weight.ndim == 4 else weight for weight in weights)


def same_weights(backbone: ConvBackbone, head: nn.Linear, batch: int) -> Weights:
    """The modules' own weights for each of `batch` episodes: expanded, so that sharing them can be seen."""
    own = packed((*backbone.parameters(), *head.parameters()))
    return tuple(weight.expand(batch, *weight.shape) for weight in own)


def logits(weights: Weights, images: Tensor, layout: Layout, norms: Sequence[nn.BatchNorm2d] = ()) -> Tensor:
    """(batch, set, image, channel, row, column) -> (batch, set, image, way); a set is normalised together.

    norms: of each block, where all episodes share them; the weights are then those of kernels and head.
    """
    *body, head, bias = weights
    return named((head, bias), features(body, images, layout, norms))


def features(
    body: Sequence[Tensor], images: Tensor, layout: Layout, norms: Sequence[nn.BatchNorm2d] = ()
) -> Tensor:
    """(batch, set, image, channel, row, column) -> (batch, set, image, feature); body: all but the head."""
    batch, sets, count = images.shape[:3]
    if images.is_cuda and sets == 1 and not norms:
        return features_side_by_side(body, images, layout)
    maps = images.flatten(0, 2)
    groups = batch * sets
    for block, (kernel, halving) in enumerate(
        zip(body if norms else body[::3], layout.downsample, strict=True)
    ):
        maps = convolve(maps, kernel, stride=2 if halving == "stride" else 1)
        pool = halving == "pool"
        if norms:
            by_batch = partial(batch_norm_relu_statistics, maps, pool=pool, groups=groups)
            maps = normalise_as(norms[block], by_batch, partial(frozen_norm_relu, maps, pool=pool))
        else:
            affine = body[3 * block + 1 : 3 * block + 3]
            scale, shift = (values.repeat_interleave(sets, dim=0) for values in affine)
            maps = batch_norm_relu(maps, scale, shift, pool=pool, groups=groups)
    if layout.averaged:
        maps = maps.mean((2, 3))
    return maps.reshape(batch, sets, count, -1)


def features_side_by_side(body: Sequence[Tensor], images: Tensor, layout: Layout) -> Tensor:
    """`features` of one set an episode, each with norms of its own, by torch's operations."""
    batch, _, count = images.shape[:3]
    maps = images[:, 0].transpose(0, 1).flatten(1, 2)
    blocks = zip(body[::3], body[1::3], body[2::3], layout.downsample, strict=True)
    for kernel, scale, shift, halving in blocks:
        weights = kernel.permute(0, 4, 3, 1, 2).flatten(0, 1)
        maps = grouped.convolve(maps, weights, 2 if halving == "stride" else 1, batch)
        affine = scale.flatten(), shift.flatten()
        by_batch = (*affine, None, None, True, 0.0, EPSILON, torch.backends.cudnn.enabled)
        maps = torch.batch_norm(maps, *by_batch).relu()
        if halving == "pool":
            maps = torch.max_pool2d(maps, 2)
    if layout.averaged:
        maps = maps.mean((2, 3))
    return maps.reshape(count, batch, -1).transpose(0, 1).unsqueeze(1)


def named(head: Sequence[Tensor], features: Tensor) -> Tensor:
    """(batch, set, image, feature) -> (batch, set, image, way), by the head's weight and bias."""
    weight, bias = head
    batch, sets, count, size = features.shape
    answers = features.reshape(batch, sets * count, size) @ weight.mT + bias.unsqueeze(1)
    return answers.reshape(batch, sets, count, -1)


def map_sizes(backbone: ConvBackbone) -> tuple[int, int]:
    """Numbers per image: those kept for the backward pass, and those that pass through it at its widest."""
    rows, columns = backbone.image_shape[1:]
    sizes = []
    widths = (weight.shape[0] for weight in backbone.parameters() if weight.ndim == 4)
    for width, halving in zip(widths, backbone.layout.downsample, strict=True):
        if halving == "stride":
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        convolved = width * rows * columns
        if halving == "pool":
            rows, columns = rows // 2, columns // 2
        sizes.append(convolved + width * rows * columns)
    return sum(sizes), max(sizes)
