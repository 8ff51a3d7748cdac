"""Prototypical networks (Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning").

A class is the mean of its images' features (equation 1); an image belongs to the class whose mean is
nearest by squared Euclidean distance (equation 2). Nothing is learned inside an episode but the means.
With distance = "cosine" an image is compared by cosine, as in the paper's section 3.2; the paper multiplies
it by nothing, here it is multiplied by a constant, or no answer could be certain. metric_scale multiplies
squared distances (Oreshkin, Rodriguez and Lacoste 2018, "TADAM", section 3.1): far below 1, features that
were trained by classification are not torn apart by the first updates.

With refinements, queries asked together move the means before they are answered (soft k-means: Ren et al.
2018, "Meta-Learning for Semi-Supervised Few-Shot Classification", equation 3, there with unlabelled images
apart from the queries): each counts for a class by the probability it is given. That is transductive. A query
asked alone, as in a stream, has no others to learn from, and moves nothing.
"""

from typing import ClassVar, Literal, Unpack

import torch
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners.centroids import CentroidLearner, Centroids
from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import NEW_COSINE, cosines, squared_distances
from fewshot.learners.options import check_above_zero, check_at_least

COSINE_SHARPNESS = 10.0
"""By which cosines are multiplied."""


class Prototypical(BackboneLearner, CentroidLearner):
    """Nearest class mean of features; inductive unless refined, batch norm frozen, any way and shot."""

    added_options: ClassVar[frozenset[str]] = frozenset({"distance", "metric_scale", "refinements"})
    steady: bool = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        distance: Literal["squared_euclidean", "cosine"] = "squared_euclidean",
        metric_scale: float = 1.0,
        refinements: int = 0,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """metric_scale: by which squared distances are multiplied; refinements: how often the queries move
        the means.

        LearnerError for a backbone without a weight to train, a frozen one above all.
        """
        check_at_least(0, refinements=refinements)
        check_above_zero(metric_scale=metric_scale)
        super().__init__(image_shape, way, **shared)
        if not any(weight.requires_grad for weight in self.parameters()):
            raise LearnerError(
                f"prototypes by {self.backbone.name} leave nothing to train: leave frozen out, or choose "
                "nearest_feature"
            )
        if distance == "cosine" and metric_scale != 1:
            raise LearnerError(
                f"metric_scale is of squared distances, and cosines were asked for; got {metric_scale}: "
                "leave it out"
            )
        self.distance = distance
        self.metric_scale = metric_scale
        self.refinements = refinements
        self.transductive = refinements > 0
        # Of the order of the scores of a fresh network, so that streams can be trained on uncalibrated.
        new_score = (
            NEW_COSINE * COSINE_SHARPNESS if distance == "cosine" else -metric_scale * self.feature_size
        )
        self.register_buffer("new_score", torch.tensor(new_score))

    def scores(self, state: Centroids, features: Tensor) -> Tensor:
        moved = state
        for _ in range(self.refinements if features.shape[1] > 1 else 0):
            shares = super().scores(moved, features).softmax(-1).nan_to_num(0.0)  # of no class seen yet
            moved = Centroids(state.sums + shares.mT @ features, state.counts + shares.sum(1))
        return super().scores(moved, features)

    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        if self.distance == "cosine":
            return COSINE_SHARPNESS * cosines(features, means)
        return -self.metric_scale * squared_distances(features, means)
