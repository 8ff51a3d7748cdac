"""Prototypical networks (Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning").

A class is the mean of its images' features (equation 1); an image belongs to the class whose mean is
nearest by squared Euclidean distance (equation 2). Nothing is learned inside an episode but the means.
With distance = "cosine" an image is compared by cosine, as in the paper's section 3.2; the paper multiplies
it by nothing, here it is multiplied by a constant, or no answer could be certain.
"""

from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners.centroids import CentroidLearner
from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import NEW_COSINE, cosines, squared_distances

COSINE_SHARPNESS = 10.0
"""By which cosines are multiplied."""


class Prototypical(BackboneLearner, CentroidLearner):
    """Nearest class mean in a learned feature space; inductive, batch norm frozen, any way and shot."""

    added_options: ClassVar[frozenset[str]] = frozenset({"distance"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        distance: Literal["squared_euclidean", "cosine"] = "squared_euclidean",
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """LearnerError for a backbone without a weight to train, a frozen one above all."""
        super().__init__(image_shape, way, **shared)
        if not any(weight.requires_grad for weight in self.parameters()):
            raise LearnerError(
                f"prototypes by {self.backbone.name} leave nothing to train: leave frozen out, or choose "
                "nearest_feature"
            )
        self.distance = distance
        # Of the order of the scores of a fresh network, so that streams can be trained on uncalibrated.
        new_score = -float(self.feature_size) if distance != "cosine" else NEW_COSINE * COSINE_SHARPNESS
        self.register_buffer("new_score", torch.tensor(new_score))

    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        if self.distance == "cosine":
            return COSINE_SHARPNESS * cosines(features, means)
        return -squared_distances(features, means)
