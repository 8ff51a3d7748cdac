"""What learners by nearest neighbour share: an image is compared with each image stored."""

from abc import abstractmethod

import torch
from torch import Tensor

from fewshot.episodes.batch import StreamBatch
from fewshot.learners.metric import best_of_class
from fewshot.learners.stored import Stored, StoringLearner


class Nearest(StoringLearner):
    """The score of a class comes from the similarity of its stored images alone."""

    @abstractmethod
    def similarity(self, features: Tensor, stored: Tensor) -> Tensor:
        """(batch, image, feature), (batch, stored, feature) -> (batch, image, stored)."""

    def of_class(self, similarity: Tensor, labels: Tensor, way: int) -> Tensor:
        """The score of each class, by default that of its nearest image.

        similarity: (batch, image, stored), -inf to an image not there yet; labels: (batch, stored)
        -> (batch, image, way).
        """
        return best_of_class(similarity, labels, way)

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
