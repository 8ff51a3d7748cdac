"""Relation networks (Sung, Yang, Zhang, Xiang, Torr and Hospedales 2018, "Learning to Compare: Relation
Network for Few-Shot Learning"): the measure between an image and a class is learned too.

| name     | equation                                                          | shape                   |
|----------|-------------------------------------------------------------------|-------------------------|
| feature  | f(x), the maps of four blocks, of which the first two halve       | (batch, image, feature) |
| class    | the mean of its images' maps                                      | (batch, way, feature)   |
| score    | g(image, class): two blocks on both maps, then two linear layers  | (batch, image, way)     |
| relation | r = sigmoid(score)                                                | (batch, image, way)     |
| loss     | mean over pairs of (r - 1)^2 for an image's own class, else r^2   | number                  |

(The equations are the paper's 1 and 2.) The paper adds up a class's maps; their mean serves any number of
images, as streams show them. The first convolution of g is linear in the two maps that it is given: it is
applied once to each image and once to each class, and the two are added for each pair, which is the same and
many times faster.
"""

import math
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import StreamBatch
from fewshot.errors import LearnerError
from fewshot.learners.backbones import ConvBlock
from fewshot.learners.centroids import CentroidLearner
from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import MetricLearner
from fewshot.learners.options import check_at_least

HALVINGS = 2
"""Of the encoder: what is compared are maps."""

PAIRS_AT_ONCE = 4096
"""In evaluation so many pairs are compared side by side: maps of 64x7x7 then take 51 megabytes a layer."""


class Relation(BackboneLearner, CentroidLearner):
    """A learned measure between images and class means; inductive, batch norm frozen, any way and shot."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        relation_width: int = 64,
        hidden_size: int = 8,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """relation_width: channels of the blocks that compare; hidden_size: units between the linear layers.

        LearnerError for a backbone that gives no maps.
        """
        check_at_least(1, relation_width=relation_width, hidden_size=hidden_size)
        super().__init__(image_shape, way, halvings=HALVINGS, **shared)
        if len(self.backbone.output_shape) != 3:
            raise LearnerError(
                f"relation compares maps, and {self.backbone.name} gives flat features: choose backbone = "
                '{ name = "conv" }, or one of your own that gives maps (image, channel, height, width)'
            )
        self.relation = RelationModule(self.backbone.output_shape, relation_width, hidden_size)
        self.register_buffer("new_score", torch.tensor(0.0))

    def similarity(self, features: Tensor, means: Tensor) -> Tensor:
        # In training all pairs are normalised together.
        together = features.shape[1] if self.training else max(1, PAIRS_AT_ONCE // means[..., 0].numel())
        return torch.cat(
            [self.relation(part, means) for part in torch.split(features, together, dim=1)], dim=1
        )

    def stream_scores(self, batch: StreamBatch) -> Tensor:
        """Step by step: class means are maps, too many to keep those of all steps."""
        return MetricLearner.stream_scores(self, batch)

    def loss_of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean squared error of the relations to the classes seen."""
        same = F.one_hot(labels, scores.shape[-1]).to(scores)
        seen = scores != -torch.inf
        return (scores.sigmoid() - same)[seen].square().sum() / seen.sum().clamp(min=1)


class RelationModule(nn.Module):
    """g: the scores of all pairs of an image and a class; halves maps twice, where they are large enough."""

    def __init__(self, maps: tuple[int, ...], width: int, hidden_size: int) -> None:
        """maps: (channel, height, width) of what is compared."""
        super().__init__()
        self.maps = maps
        channels, *size = maps
        self.of_image = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.of_class = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        halved = [max(length // 2, 1) for length in size]
        self.rest_of_block = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2 if min(size) > 1 else 1)
        )
        self.block = ConvBlock(width, width, downsample="pool" if min(halved) > 1 else "none")
        last = [max(length // 2, 1) for length in halved]
        self.layers = nn.Sequential(
            nn.Linear(width * math.prod(last), hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1)
        )

    def forward(self, features: Tensor, means: Tensor) -> Tensor:
        """(batch, image, feature), (batch, way, feature) -> (batch, image, way)."""
        asked = self._convolved(self.of_image, features)
        shown = self._convolved(self.of_class, means)
        pairs = (asked.unsqueeze(2) + shown.unsqueeze(1)).flatten(0, 2)
        scores: Tensor = self.layers(self.block(self.rest_of_block(pairs)).flatten(1))
        return scores.view(len(features), features.shape[1], means.shape[1])

    def _convolved(self, convolution: nn.Module, features: Tensor) -> Tensor:
        """(batch, image, feature) -> (batch, image, channel, height, width)."""
        maps: Tensor = convolution(features.reshape(-1, *self.maps))
        return maps.view(*features.shape[:2], *maps.shape[1:])
