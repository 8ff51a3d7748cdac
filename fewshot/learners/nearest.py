"""What learners by nearest neighbour share: every image shown is stored with its label, for good."""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.learners.metric import MetricLearner, best_of_class


class Stored(NamedTuple):
    """Every image so far.

    features: (batch, image, feature); labels: (batch, image); counts: (batch, way), images of each class.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor


class Nearest(MetricLearner):
    """The score of a class comes from the similarity of its stored images alone.

    feature_size: how many features `embed` gives.
    """

    feature_size: int

    @abstractmethod
    def similarity(self, features: Tensor, stored: Tensor) -> Tensor:
        """(batch, image, feature), (batch, stored, feature) -> (batch, image, stored)."""

    def of_class(self, similarity: Tensor, labels: Tensor, way: int) -> Tensor:
        """The score of each class, by default that of its nearest image.

        similarity: (batch, image, stored), -inf to an image not there yet; labels: (batch, stored)
        -> (batch, image, way).
        """
        return best_of_class(similarity, labels, way)

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

    def scores(self, state: Stored, features: Tensor) -> Tensor:
        similarity = self.similarity(features, state.features)
        return self.of_class(similarity, state.labels, state.counts.shape[1])

    def stream_scores(self, batch: StreamBatch) -> Tensor:
        return self.of_class(self.stream_similarity(batch), batch.labels, batch.way)

    def stream_similarity(self, batch: StreamBatch) -> Tensor:
        """Of each image to those before it, -inf to the others: (batch, length, length)."""
        similarity = self.similarity(batch.images, batch.images)
        not_before = torch.ones_like(similarity[0], dtype=torch.bool).triu()
        return similarity.masked_fill(not_before, -torch.inf)
