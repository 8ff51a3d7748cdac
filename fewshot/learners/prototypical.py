"""Prototypical networks (Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning").

A class is the mean of its images' features (equation 1); an image belongs to the class whose mean is
nearest by squared Euclidean distance (equation 2). Nothing is learned inside an episode but the means.
"""

from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.errors import LearnerError
from fewshot.learners.backbones import CONV, Backbone
from fewshot.learners.metric import MetricLearner, counts_before, squared_distances


class Prototypes(NamedTuple):
    """sums: (batch, way, feature), of the features of each class's images; counts: (batch, way)."""

    sums: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """(batch, way, feature); zero for a class not seen."""
        return self.sums / self.counts.clamp(min=1).unsqueeze(-1)


class Prototypical(MetricLearner):
    """Nearest class mean in a learned feature space; inductive, any way and shot."""

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"
    added_options: ClassVar[frozenset[str]] = frozenset({"backbone"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64, 64),
        backbone: Backbone = CONV,
    ) -> None:
        """widths: channels of each convolution block, where the backbone is one of convolution blocks.

        LearnerError for a frozen backbone, which would leave nothing to train.
        """
        super().__init__(image_shape, way)
        if backbone.frozen:
            raise LearnerError(
                "prototypes of a frozen backbone leave nothing to train: leave frozen out, or choose "
                "nearest_feature"
            )
        self.backbone = backbone.build(image_shape, widths)
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
        shown = F.one_hot(support.labels, support.way).to(support.images)
        return Prototypes(shown.mT @ support.images, shown.sum(1))

    def scores(self, state: Prototypes, features: Tensor) -> Tensor:
        scores = -squared_distances(features, state.means)
        return scores.masked_fill(state.counts.unsqueeze(1) == 0, -torch.inf)

    def stream_scores(self, batch: StreamBatch) -> Tensor:
        features, labels = batch.images, batch.labels
        shown = F.one_hot(labels, batch.way).to(features)
        contributions = shown.unsqueeze(-1) * features.unsqueeze(2)
        sums = contributions.cumsum(1) - contributions
        before = Prototypes(sums.flatten(0, 1), counts_before(labels, batch.way).flatten(0, 1))
        return self.scores(before, features.flatten(0, 1).unsqueeze(1)).reshape(*labels.shape, batch.way)
