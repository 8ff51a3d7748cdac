"""Nearest neighbour of raw pixels: what can be had without learning, the row every table starts from."""

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.learners.base import Learner
from fewshot.learners.metric import best_new_score, counts_before, squared_distances, with_new_score


class Stored(NamedTuple):
    """pixels: (batch, image, pixel); labels: (batch, image); counts: (batch, way), images of each class."""

    pixels: Tensor
    labels: Tensor
    counts: Tensor


class NearestNeighbour(Learner):
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

    def observe(self, state: Stored, image: Tensor, label: Tensor) -> Stored:
        pixels = torch.cat([state.pixels, image.flatten(1).unsqueeze(1)], dim=1)
        labels = torch.cat([state.labels, label.unsqueeze(1)], dim=1)
        return Stored(pixels, labels, state.counts + F.one_hot(label, state.counts.shape[1]))

    def adapt(self, support: Support) -> Stored:
        counts = F.one_hot(support.labels, support.way).sum(1)
        return Stored(support.images.flatten(2), support.labels, counts)

    def predict(self, state: Stored, images: Tensor) -> Tensor:
        similarity = -squared_distances(images.flatten(2), state.pixels)
        scores = _best_of_class(similarity, state.labels, state.counts.shape[1])
        return with_new_score(scores, state.counts.unsqueeze(1), self.new_score)

    def stream(self, batch: StreamBatch) -> Tensor:
        counts = counts_before(batch.labels, batch.way)
        return with_new_score(self._stream_scores(batch), counts, self.new_score)

    def calibrate(self, batch: StreamBatch) -> None:
        """Choose the new score with which these streams are answered best."""
        self.new_score.copy_(best_new_score(self._stream_scores(batch), batch))

    def _stream_scores(self, batch: StreamBatch) -> Tensor:
        """(batch, length, way), from the images before each step."""
        pixels = batch.images.flatten(2)
        length = pixels.shape[1]
        not_before = torch.ones(length, length, dtype=torch.bool, device=pixels.device).triu()
        similarity = (-squared_distances(pixels, pixels)).masked_fill(not_before, -torch.inf)
        return _best_of_class(similarity, batch.labels, batch.way)


def _best_of_class(similarity: Tensor, labels: Tensor, way: int) -> Tensor:
    """The greatest similarity to any image of each class, -inf where there is none.

    similarity: (batch, image, stored); labels: (batch, stored) -> (batch, image, way).
    """
    none = similarity.new_full((*similarity.shape[:2], way), -torch.inf)
    index = labels.unsqueeze(1).expand_as(similarity)
    return none.scatter_reduce(2, index, similarity, "amax")
