"""Prototypical networks (Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning").

A class is the mean of its images' features (equation 1); an image belongs to the class whose mean is
nearest by squared Euclidean distance (equation 2). Nothing is learned inside an episode but the means.
With distance = "cosine" an image is compared by cosine, as in the paper's section 3.2; the paper multiplies
it by nothing, here it is multiplied by a constant, or no answer could be certain.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners.backbones import CONV, Backbone
from fewshot.learners.centroids import CentroidLearner
from fewshot.learners.metric import NEW_COSINE, cosines, squared_distances

COSINE_SHARPNESS = 10.0
"""By which cosines are multiplied."""


class Prototypical(CentroidLearner):
    """Nearest class mean in a learned feature space; inductive, batch norm frozen, any way and shot."""

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"
    added_options: ClassVar[frozenset[str]] = frozenset({"backbone", "distance"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64, 64),
        distance: Literal["squared_euclidean", "cosine"] = "squared_euclidean",
        backbone: Backbone = CONV,
    ) -> None:
        """widths: channels of each convolution block, where the backbone is one of convolution blocks.

        LearnerError for a frozen backbone, which would leave nothing to train.
        """
        super().__init__(image_shape, way)
        if backbone.frozen:
            raise LearnerError(
                "prototypes of a frozen backbone leave nothing to train: leave frozen out, or choose "
                "nearest_feature"
            )
        self.backbone = backbone.build(image_shape, widths)
        self.backbone_name = self.backbone.name
        self.feature_size = self.backbone.output_size
        self.distance = distance
        # Of the order of the scores of a fresh network, so that streams can be trained on uncalibrated.
        new_score = -float(self.feature_size) if distance != "cosine" else NEW_COSINE * COSINE_SHARPNESS
        self.register_buffer("new_score", torch.tensor(new_score))

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features

    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        if self.distance == "cosine":
            return COSINE_SHARPNESS * cosines(features, means)
        return -squared_distances(features, means)
