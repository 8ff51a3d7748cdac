"""Meta-Baseline (Chen, Liu, Xu, Darrell and Wang 2021, "Meta-Baseline: Exploring Simple Meta-Learning for
Few-Shot Learning"): classification first, then episodes with the measure that is used in the end.

| name  | equation                                               | shape               |
|-------|--------------------------------------------------------|---------------------|
| score | sharpness cos(f(x), mean of f over the class) (eq. 3)  | (batch, image, way) |

First the encoder is trained with a linear classifier over all training classes (`class_training.py`), for
so many steps; then the classifier is forgotten, and encoder and sharpness (from 10, as published) learn from
the scores of episodes. Here both stages are one training, under one schedule of the learning rate: which
stage it is, a counter of steps says, which is kept with the weights as batch norm keeps its own. (The paper
trains each stage by itself, until it is done.)
"""

import math
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch
from fewshot.learners.centroids import CentroidLearner
from fewshot.learners.class_training import (
    CLASSES,
    CLASSIFIER,
    classification_loss,
    linear_classifier,
)
from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import NEW_COSINE, all_images, cosines
from fewshot.learners.options import check_at_least

SHARPNESS = 10.0
"""Before it is learned."""


class MetaBaseline(BackboneLearner, CentroidLearner):
    """Nearest class mean by sharpened cosine; inductive, batch norm frozen, any way and shot."""

    training_only: ClassVar[frozenset[str]] = CLASSIFIER
    steady: bool = True

    steps_done: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        classes: int = CLASSES,
        classification_steps: int = 1000,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """classes: training classes at most, turned ones too; classification_steps: how many steps of
        training are classification, the rest are episodes.
        """
        check_at_least(0, classification_steps=classification_steps)
        super().__init__(image_shape, way, **shared)
        self.classes = classes
        self.classification_steps = classification_steps
        self.classifier = linear_classifier(self.feature_size, classes)
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(SHARPNESS)))
        self.register_buffer("steps_done", torch.tensor(0))
        self.register_buffer("new_score", torch.tensor(NEW_COSINE * SHARPNESS))

    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        return self.log_sharpness.exp() * cosines(features, means)

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """Both stages' losses come from one pass of the encoder, and the counter picks one: to look at the
        counter itself would have a GPU wait in each step.
        """
        features = self.embed(all_images(batch))
        chosen = torch.where(
            self.steps_done < self.classification_steps,
            classification_loss(self.classifier, features, batch),
            self.loss_of_features(features, batch),
        )
        if self.training:
            self.steps_done += 1
        return chosen
