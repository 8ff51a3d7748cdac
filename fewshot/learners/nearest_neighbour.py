"""Nearest neighbour of raw pixels: what can be had without learning, the row every table starts from."""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.metric import best_new_score, counts_before, squared_distances, with_new_score


class Stored(NamedTuple):
    """pixels: (batch, image, pixel); labels: (batch, image); counts: (batch, way), images of each class."""

    pixels: Tensor
    labels: Tensor
    counts: Tensor


class NearestNeighbour(EmbeddingLearner):
    """The label of the nearest stored image by Euclidean distance of pixels; nothing to train."""

    trainable: ClassVar[bool] = False

    new_score: Tensor

    def __init__(self, image_shape: tuple[int, int, int], way: int) -> None:
        super().__init__(image_shape, way)
        channel, height, width = image_shape
        self.pixels = channel * height * width
        # Until calibrated, every image is taken for a new class while there is a label left.
        self.register_buffer("new_score", torch.tensor(0.0))

    def start(self, batch: int, way: int) -> Stored:
        device = self.new_score.device
        pixels = torch.zeros(batch, 0, self.pixels, device=device)
        labels = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return Stored(pixels, labels, torch.zeros(batch, way, dtype=torch.int64, device=device))

    def embed(self, images: Tensor) -> Tensor:
        """The pixels as they are."""
        return images.flatten(-3)

    def observe_features(self, state: Stored, features: Tensor, label: Tensor) -> Stored:
        pixels = torch.cat([state.pixels, features.unsqueeze(1)], dim=1)
        labels = torch.cat([state.labels, label.unsqueeze(1)], dim=1)
        return Stored(pixels, labels, state.counts + F.one_hot(label, state.counts.shape[1]))

    def adapt_features(self, support: Support) -> Stored:
        return Stored(support.images, support.labels, F.one_hot(support.labels, support.way).sum(1))

    def predict_features(self, state: Stored, features: Tensor) -> Tensor:
        similarity = -squared_distances(features, state.pixels)
        scores = _best_of_class(similarity, state.labels, state.counts.shape[1])
        return with_new_score(scores, state.counts.unsqueeze(1), self.new_score)

    def stream_features(self, batch: StreamBatch) -> Tensor:
        scores = _stream_scores(batch.images, batch.labels, batch.way)
        return with_new_score(scores, counts_before(batch.labels, batch.way), self.new_score)

    def calibrate(self, batch: StreamBatch) -> None:
        """Choose the new score with which these streams are answered best."""
        scores = _stream_scores(self.embed(batch.images), batch.labels, batch.way)
        self.new_score.copy_(best_new_score(scores, batch))


def _stream_scores(pixels: Tensor, labels: Tensor, way: int) -> Tensor:
    """(batch, length, way), each from the images before it; pixels: (batch, length, pixel)."""
    length = pixels.shape[1]
    not_before = torch.ones(length, length, dtype=torch.bool, device=pixels.device).triu()
    similarity = (-squared_distances(pixels, pixels)).masked_fill(not_before, -torch.inf)
    return _best_of_class(similarity, labels, way)


def _best_of_class(similarity: Tensor, labels: Tensor, way: int) -> Tensor:
    """The greatest similarity to any image of each class, -inf where there is none.

    similarity: (batch, image, stored); labels: (batch, stored) -> (batch, image, way).
    """
    none = similarity.new_full((*similarity.shape[:2], way), -torch.inf)
    index = labels.unsqueeze(1).expand_as(similarity)
    return none.scatter_reduce(2, index, similarity, "amax")
