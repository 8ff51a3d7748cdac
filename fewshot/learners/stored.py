"""What learners share that store every image shown with its label, for good, and answer from all of them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import Support
from fewshot.learners.metric import MetricLearner


class Stored(NamedTuple):
    """Every image so far.

    features: (batch, image, feature); labels: (batch, image); counts: (batch, way), images of each class.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor

    @property
    def shown(self) -> Tensor:
        """(batch, image, way): the labels as one-hot vectors."""
        return F.one_hot(self.labels, self.counts.shape[1]).to(self.features)


class StoringLearner(MetricLearner):
    """A learner whose answers are a function of all images shown; it gives `embed` and `scores`.

    feature_size: how many features `embed` gives.
    """

    feature_size: int

    def start(self, batch: int, way: int) -> Stored:
        features = self.new_score.new_zeros(batch, 0, self.feature_size)
        labels = features.new_zeros(batch, 0, dtype=torch.int64)
        return Stored(features, labels, labels.new_zeros(batch, way))

    def observe_features(self, state: Stored, features: Tensor, label: Tensor) -> Stored:
        return Stored(
            torch.cat([state.features, features.unsqueeze(1)], dim=1),
            torch.cat([state.labels, label.unsqueeze(1)], dim=1),
            state.counts + F.one_hot(label, state.counts.shape[1]),
        )

    def adapt_features(self, support: Support) -> Stored:
        return Stored(support.images, support.labels, F.one_hot(support.labels, support.way).sum(1))
