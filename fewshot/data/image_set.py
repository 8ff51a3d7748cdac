"""The image set: class-labelled uint8 images that know where they come from.

The whole set is one tensor, memory-mapped from the cache, so that an episode is an index gather
(design decision 4: no DataLoader for sets that fit in memory). Ink is high and paper is zero in
the sets of characters: networks that start near zero then ignore the paper, and the MANN needs it.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewshot.data.class_lists import AS_RGB
from fewshot.errors import DataError

if TYPE_CHECKING:
    from fewshot.data.split import Split

# Of ImageNet's photographs, on the scale [0, 1]: what published backbones for RGB images expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Class-labelled images, sorted by class, with their provenance.

    images: (image, channel, height, width) uint8.
    class_names: one per class, sorted; a group of classes (an alphabet) is what stands before the "/".
    class_start: (class + 1,) int64; the images of class c are rows class_start[c] to class_start[c + 1] - 1.
    image_names: one per image, the publisher's name within its class.
    mean, std: per channel, of pixel values scaled to [0, 1]; how episodes normalise these images.
    digest: SHA-256 over pixels, class names and image names, in hexadecimal.
    """

    name: str
    images: Tensor
    class_names: tuple[str, ...]
    class_start: Tensor
    image_names: tuple[str, ...]
    source: str
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channel, height, width)."""
        channel, height, width = self.images.shape[1:]
        return channel, height, width

    @property
    def images_per_class(self) -> Tensor:
        """(class,) int64."""
        return torch.diff(self.class_start)

    def as_rgb(self) -> "ImageSet":
        """The same images with three equal channels, under the name "omniglot:rgb"; DataError if not grey.

        A view: it takes no memory. It is another image set, with a digest of its own.
        """
        if self.image_shape[0] != 1:
            raise DataError(f"{self.name} is not grey: leave out {AS_RGB}")
        return replace(
            self,
            name=f"{self.name}{AS_RGB}",
            images=self.images.expand(-1, 3, -1, -1),
            mean=3 * self.mean,
            std=3 * self.std,
            digest=hashlib.sha256(f"{self.digest}{AS_RGB}".encode()).hexdigest(),
        )

    def split(self, name: str) -> "Split":
        """The split of that name; see `fewshot.data.splits.split_classes`."""
        from fewshot.data.splits import split_classes  # splits are made of image sets

        return split_classes(self, name)
