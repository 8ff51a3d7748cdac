"""Prototypical networks (Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning").

A class is the mean of its images' features (equation 1); an image belongs to the class whose mean is
nearest by squared Euclidean distance (equation 2). Nothing is learned inside an episode but the means.
"""

from itertools import repeat
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.learners.backbones import ConvBackbone
from fewshot.learners.embedding import EmbeddingLearner, embed_in_parts
from fewshot.learners.metric import best_new_score, counts_before, squared_distances, with_new_score

EPISODES_AT_ONCE = 8
"""In calibration: so many streams are scored side by side, to bound the memory."""


class Prototypes(NamedTuple):
    """sums: (batch, way, feature), of the features of each class's images; counts: (batch, way)."""

    sums: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """(batch, way, feature); zero for a class not seen."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(-1)


class Prototypical(EmbeddingLearner):
    """Nearest class mean in a learned feature space; inductive, any way and shot."""

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"

    new_score: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64, 64),
    ) -> None:
        """widths: channels of each convolution block of the backbone."""
        super().__init__(image_shape, way)
        self.backbone = ConvBackbone(image_shape, widths)
        self.backbone_name = self.backbone.name
        # Of the order of the distances of a fresh network, so that streams can be trained on uncalibrated.
        self.register_buffer("new_score", torch.tensor(-float(self.backbone.output_size)))

    def start(self, batch: int, way: int) -> Prototypes:
        sums = self.new_score.new_zeros(batch, way, self.backbone.output_size)
        return Prototypes(sums, sums.new_zeros(batch, way))

    def embed(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features

    def observe_features(self, state: Prototypes, features: Tensor, label: Tensor) -> Prototypes:
        shown = F.one_hot(label, state.counts.shape[1]).to(state.counts)
        return Prototypes(state.sums + shown.unsqueeze(-1) * features.unsqueeze(1), state.counts + shown)

    def adapt_features(self, support: Support) -> Prototypes:
        return _prototypes(support.images, support.labels, support.way)

    def predict_features(self, state: Prototypes, features: Tensor) -> Tensor:
        scores = -squared_distances(features, state.means)
        return with_new_score(scores, state.counts.unsqueeze(1), self.new_score)

    def stream_features(self, batch: StreamBatch) -> Tensor:
        scores = _stream_scores(batch.images, batch.labels, batch.way)
        return with_new_score(scores, counts_before(batch.labels, batch.way), self.new_score)

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """Cross-entropy of the queries; support and query share one batch norm, as published."""
        if not isinstance(batch, KShotBatch):
            return super().loss(batch)
        support = batch.support
        features = self.backbone(torch.cat([support.images, batch.query_images], dim=1))
        shown = support.images.shape[1]
        means = _prototypes(features[:, :shown], support.labels, batch.way).means
        logits = -squared_distances(features[:, shown:], means)
        return F.cross_entropy(logits.flatten(0, 1), batch.query_labels.flatten())

    @torch.no_grad()
    def calibrate(self, batch: StreamBatch) -> None:
        """Choose the new score with which these streams are answered best."""
        parts = (
            torch.split(part, EPISODES_AT_ONCE) for part in (embed_in_parts(self, batch.images), batch.labels)
        )
        scores = torch.cat(list(map(_stream_scores, *parts, repeat(batch.way))))
        self.new_score.copy_(best_new_score(scores, batch))


def _stream_scores(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """(batch, length, way), each from the images before it; features: (batch, length, feature)."""
    shown = F.one_hot(labels, way).to(features)
    contributions = shown.unsqueeze(-1) * features.unsqueeze(2)
    sums = contributions.cumsum(1) - contributions
    before = Prototypes(sums.flatten(0, 1), counts_before(labels, way).flatten(0, 1))
    scores = -squared_distances(features.flatten(0, 1).unsqueeze(1), before.means)
    return scores.reshape(*labels.shape, way)


def _prototypes(features: Tensor, labels: Tensor, way: int) -> Prototypes:
    """features: (batch, image, feature); labels: (batch, image)."""
    shown = F.one_hot(labels, way).to(features)
    return Prototypes(shown.mT @ features, shown.sum(1))
