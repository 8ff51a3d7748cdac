"""SimpleShot (Wang, Chao, Weinberger and van der Maaten 2019, "SimpleShot: Revisiting Nearest-Neighbor
Classification for Few-Shot Learning"): an encoder trained by classification, and nearest centroids.

| name       | equation                                                            | shape                   |
|------------|---------------------------------------------------------------------|-------------------------|
| normalised | f(x) - m over its length; m the mean feature of training images     | (batch, image, feature) |
| score      | minus the squared distance to the mean of the class's normalised    | (batch, image, way)     |

(Centred and normalised by the L2 norm is CL2N in the paper, section 3.)
Nothing is learned inside an episode but the means. The encoder is trained with a linear classifier over all
training classes (`class_training.py`, which says what differs). The paper takes m over all training images
with the final weights; here m is followed in training, as batch norm follows its statistics.
"""

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch
from fewshot.learners.centroids import CentroidLearner
from fewshot.learners.class_training import (
    CLASSES,
    CLASSIFIER,
    classification_loss,
    linear_classifier,
)
from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import all_images, squared_distances

MOMENTUM = 0.1
"""Of the mean feature: the share of a step's images in it, that of batch norm."""


class SimpleShot(BackboneLearner, CentroidLearner):
    """Nearest mean of centred features of unit length; inductive, batch norm frozen, any way and shot."""

    training_only: ClassVar[frozenset[str]] = CLASSIFIER
    steady: bool = True

    mean_feature: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        classes: int = CLASSES,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """classes: training classes at most, turned ones too."""
        super().__init__(image_shape, way, **shared)
        self.classes = classes
        self.classifier = linear_classifier(self.feature_size, classes)
        self.register_buffer("mean_feature", torch.zeros(self.feature_size))
        self.register_buffer("new_score", torch.tensor(-1.0))

    def embed(self, images: Tensor) -> Tensor:
        return F.normalize(super().embed(images) - self.mean_feature, dim=-1)

    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        return -squared_distances(features, means)

    def loss(self, batch: EpisodeBatch) -> Tensor:
        features = self.backbone(all_images(batch))
        if self.training:
            self.mean_feature.lerp_(features.detach().flatten(0, 1).mean(0), MOMENTUM)
        return classification_loss(self.classifier, features, batch)
