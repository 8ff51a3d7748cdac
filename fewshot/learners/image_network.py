"""What every backbone is: a network from images to flat features, for any leading dimensions."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from fewshot.errors import LearnerError


class ImageNetwork(nn.Module):
    """(..., channel, height, width) -> (..., output_size); subclasses say how, for one leading dimension.

    Trained on a GPU, it computes in bfloat16 (weights, statistics and features stay float32), compiled if
    that was asked for; it answers in float32.

    output_shape: an image's features before they are laid flat, (channel, height, width) where they are maps;
    name: as tables give it; frozen: whether it is not trained, see `freeze`; steady, smallest_window: as
    `Learner` has them.
    """

    output_shape: tuple[int, ...]
    name: str
    smallest_window: int | None = None
    frozen: bool = False
    steady: bool = True
    compiled_maps: Callable[[Tensor], Tensor] | None = None

    @property
    def output_size(self) -> int:
        """How many features an image has."""
        return math.prod(self.output_shape)

    def freeze(self) -> None:
        """Weights, and the statistics of batch norms, stay what they are from now on."""
        self.requires_grad_(False)
        self.eval()
        self.frozen = True
        self.name += " frozen"

    def train(self, mode: bool = True) -> Self:
        """A frozen network stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Where it is trained meanwhile, its layers are fused by `torch.compile`, for each shape of images
        anew; after eight shapes torch leaves further ones as they are.
        """
        self.compiled_maps = torch.compile(self.maps, dynamic=False)
        try:
            yield
        finally:
            self.compiled_maps = None

    @abstractmethod
    def maps(self, images: Tensor) -> Tensor:
        """(image, channel, height, width) -> (image, ...), `output_size` values each."""

    def forward(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., output_size)."""
        leading = images.shape[:-3]
        compute = self.compiled_maps if self.compiled_maps and self.training else self.maps
        with torch.autocast("cuda", torch.bfloat16, enabled=images.is_cuda and self.training):
            maps = compute(images.reshape(-1, *images.shape[-3:]))
        return maps.to(images.dtype).reshape(*leading, self.output_size)


def image_network(learner: nn.Module) -> ImageNetwork:
    """The network that a learner sees images by; LearnerError where it has none."""
    for module in learner.modules():
        if isinstance(module, ImageNetwork):
            return module
    raise LearnerError(
        f"{type(learner).__name__} has no network of images to begin with or to keep: leave out start_from "
        "and generations"
    )
