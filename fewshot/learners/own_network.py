"""A network of one's own as backbone: any module from images to features, or to maps of features."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.learners.image_network import ImageNetwork

Builder = Callable[[tuple[int, int, int]], nn.Module]
"""Makes a network for images of this shape, (channel, height, width)."""


class OwnNetwork(ImageNetwork):
    """What a builder makes, a copy of it: one that gives the same module each time shares no weights.

    How many features there are is found by showing it two blank images in evaluation mode.
    name: the builder's; frozen: whether weights, and the statistics of batch norms, stay what they are.
    Raises LearnerError where no module is made, or it gives no row or map of numbers for each image.
    """

    steady: bool = False  # nobody knows what it does

    def __init__(
        self, image_shape: tuple[int, int, int], name: str, build: Builder, *, frozen: bool = False
    ) -> None:
        super().__init__()
        blank = torch.zeros(2, *image_shape)
        try:
            self.network = copy.deepcopy(build(image_shape)).eval()
            with torch.no_grad():
                found = self.network(blank)
        except Exception as error:  # a stranger's code may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise LearnerError(f"backbone {name!r} fails on images of {image_shape}: {reason}") from error
        if not (
            isinstance(found, Tensor) and found.dtype == blank.dtype and found.numel() and found.ndim > 1
        ):
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise LearnerError(
                f"backbone {name!r} should give features (image, feature) or maps (image, channel, height, "
                f"width) of {blank.dtype}; of two images of {image_shape} it gives {got}"
            )
        if len(found) != len(blank):
            raise LearnerError(
                f"backbone {name!r} should give each image features of its own; of two it gives {len(found)}"
            )
        self.output_shape = tuple(found.shape[1:])
        self.name = f"own {name}"
        self.train()
        if frozen:
            self.freeze()

    def maps(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network(images)
        return maps
