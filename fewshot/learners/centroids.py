"""What learners share that know a class by the mean of its images' features (Snell et al. 2017, eq. 1)."""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.learners.metric import MetricLearner, counts_before


class Centroids(NamedTuple):
    """sums: (batch, way, feature), of the features of each class's images; counts: (batch, way)."""

    sums: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """(batch, way, feature); zero for a class not seen."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(-1)


class CentroidLearner(MetricLearner):
    """The score of a class comes from the mean of its images' features alone; any way and shot.

    feature_size: how many features `embed` gives.
    """

    feature_size: int

    @abstractmethod
    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        """(batch, image, feature), (batch, way, feature) -> (batch, image, way); means of no image are 0."""

    def start(self, batch: int, way: int) -> Centroids:
        sums = self.new_score.new_zeros(batch, way, self.feature_size)
        return Centroids(sums, sums.new_zeros(batch, way))

    def observe_features(self, state: Centroids, features: Tensor, label: Tensor) -> Centroids:
        shown = F.one_hot(label, state.counts.shape[1]).to(state.counts)
        return Centroids(state.sums + shown.unsqueeze(-1) * features.unsqueeze(1), state.counts + shown)

    def adapt_features(self, support: Support) -> Centroids:
        shown = F.one_hot(support.labels, support.way).to(support.images)
        return Centroids(shown.mT @ support.images, shown.sum(1))

    def scores(self, state: Centroids, features: Tensor) -> Tensor:
        scores = self.similarity(features, state.means)
        return scores.masked_fill(state.counts.unsqueeze(1) == 0, -torch.inf)

    def stream_scores(self, batch: StreamBatch) -> Tensor:
        features, labels = batch.images, batch.labels
        shown = F.one_hot(labels, batch.way).to(features)
        contributions = shown.unsqueeze(-1) * features.unsqueeze(2)
        sums = contributions.cumsum(1) - contributions
        before = Centroids(sums.flatten(0, 1), counts_before(labels, batch.way).flatten(0, 1))
        return self.scores(before, features.flatten(0, 1).unsqueeze(1)).reshape(*labels.shape, batch.way)
