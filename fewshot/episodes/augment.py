"""Small random distortions of each image, for training only (Santoro et al. 2016, section 4.1).

They are drawn from the hash of (episode, image), so that a distorted episode is as reproducible as any other.
"""

import math
from dataclasses import dataclass
from numbers import Integral
from types import NoneType

import torch
from torch import Tensor

from fewshot.episodes.hashing import fold, uniform
from fewshot.errors import EpisodeError, check_kind


@dataclass(frozen=True)
class Augment:
    """How far an image may be distorted; each amount is uniform in plus or minus the limit given.

    angle_degrees: rotation; 11.25 is the paper's pi / 16.
    shift: translation, down and across, as a fraction of the side.
    scale: change of size, as a fraction.
    shear: slant, as the tangent of its angle.
    mirror: whether every other image, by chance, has left and right exchanged first; for photographs, where
        that makes no other class.
    crop: side, in pixels, of the window in the middle that is left of an image after all that; None leaves it
        whole. A shift moves what is seen through it. For learners that can be trained on windows: these cost
        less, and what is answered in the end are whole images (Touvron et al. 2019, "Fixing the train-test
        resolution discrepancy").
    """

    angle_degrees: float = 11.25
    shift: float = 0.1
    scale: float = 0.0
    shear: float = 0.0
    mirror: bool = False
    crop: int | None = None

    def __post_init__(self) -> None:
        limits = (("angle_degrees", 180.0), ("shift", 1.0), ("scale", 0.9), ("shear", 1.0))
        for name, largest in limits:
            value = getattr(self, name)
            if not 0 <= value <= largest:
                raise EpisodeError(f"augmentation's {name} must lie in 0..{largest:g}; got {value}")
        check_kind("crop", self.crop, (Integral, NoneType), "give a side in pixels, or leave it out")
        if self.crop is not None and self.crop < 1:
            raise EpisodeError(f"augmentation's crop must be at least 1 pixel; got {self.crop}")

    def check_fits(self, image_shape: tuple[int, int, int]) -> None:
        """Raise EpisodeError for a crop that is larger than (channel, height, width) images."""
        if self.crop is not None and self.crop > min(image_shape[1:]):
            raise EpisodeError(
                f"augmentation's crop of {self.crop} pixels does not fit images of {image_shape[1]}x"
                f"{image_shape[2]}: lower it, or leave it out"
            )

    def cropped(self, images: Tensor) -> Tensor:
        """What is left of images (..., channel, height, width): the window in the middle, or all."""
        if self.crop is None:
            return images
        top, left = ((size - self.crop) // 2 for size in images.shape[-2:])
        return images[..., top : top + self.crop, left : left + self.crop].contiguous()

    def maps(self, keys: Tensor) -> Tensor:
        """(..., 2, 3) float32 affine maps, drawn from int64 hashes (...), as `warp` takes them."""
        draws = fold(keys.unsqueeze(-1), torch.arange(6, device=keys.device))
        angle, across, down, size, slant, side = (2 * uniform(draws) - 1).unbind(-1)
        angle = angle * math.radians(self.angle_degrees)
        size = 1 / (1 + size * self.scale)
        slant = slant * self.shear
        cos, sin = size * angle.cos(), size * angle.sin()
        # An image spans two units, so a shift by a fraction of the side is twice that fraction.
        first = torch.stack((cos, cos * slant - sin, 2 * self.shift * across), dim=-1)
        second = torch.stack((sin, sin * slant + cos, 2 * self.shift * down), dim=-1)
        maps = torch.stack((first, second), dim=-2)
        if self.mirror:  # where an output pixel is read from, in the image exchanged: the other side
            maps[..., 0, :] *= torch.where(side < 0, -1.0, 1.0).unsqueeze(-1)
        return maps
