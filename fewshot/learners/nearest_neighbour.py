"""Nearest neighbour of raw pixels: what can be had without learning, the row every table starts from."""

import math
from typing import ClassVar

import torch
from torch import Tensor

from fewshot.learners.metric import squared_distances
from fewshot.learners.nearest import Nearest


class NearestNeighbour(Nearest):
    """The label of the nearest stored image by Euclidean distance of pixels; nothing to train.

    Inductive, no batch norm.
    """

    trainable: ClassVar[bool] = False

    def __init__(self, image_shape: tuple[int, int, int], way: int) -> None:
        super().__init__(image_shape, way)
        self.feature_size = math.prod(image_shape)
        # Until calibrated, every image is taken for a new class while there is a label left.
        self.register_buffer("new_score", torch.tensor(0.0))

    def embed(self, images: Tensor) -> Tensor:
        """The pixels as they are."""
        return images.flatten(-3)

    def similarity(self, features: Tensor, stored: Tensor) -> Tensor:
        return -squared_distances(features, stored)
