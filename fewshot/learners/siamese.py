"""Siamese networks (Koch, Zemel and Salakhutdinov 2015, "Siamese Neural Networks for One-shot Image
Recognition"): are two images of one class?

| name    | equation                                                           | shape                   |
|---------|--------------------------------------------------------------------|-------------------------|
| feature | h = sigmoid(linear(backbone(x)))                                   | (batch, image, feature) |
| score   | bias - sum of alpha_j times the size of h_j - h'_j, over feature j | (batch, image, stored)  |
| same    | sigmoid(score), the chance that both are of one class              | (batch, image, stored)  |

An image is of the class of the stored image that it is most likely the same as. Training asks of each image
and each class shown whether they are the same, by binary cross-entropy; where a class has several images, of
the most similar one. Half of the paper's pairs are the same; here an image meets each class, and pairs of one
class weigh as much together as those of two. (The paper draws pairs without
episodes, and has another, larger backbone on images of 105x105.)
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.nearest import Nearest
from fewshot.learners.options import check_at_least


class Siamese(BackboneLearner, Nearest):
    """Nearest stored image by a learned distance; inductive, batch norm frozen, any way and shot."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        embedding_size: int = 256,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """embedding_size: units that are compared."""
        check_at_least(1, embedding_size=embedding_size)
        super().__init__(image_shape, way, **shared)
        self.feature_size = embedding_size
        self.linear = nn.Linear(self.backbone.output_size, embedding_size)
        # Of two unlike images units differ by about a fifth at first: the score begins around 0.
        self.feature_weights = nn.Parameter(torch.full((embedding_size,), 20.0 / embedding_size))
        self.bias = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("new_score", torch.tensor(0.0))

    def embed(self, images: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(super().embed(images)))

    def similarity(self, features: Tensor, stored: Tensor) -> Tensor:
        differences = (features.unsqueeze(2) - stored.unsqueeze(1)).abs()
        return self.bias - differences @ self.feature_weights

    def loss_of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean binary cross-entropy of same pairs and that of others, in equal parts, in nats."""
        same = F.one_hot(labels, scores.shape[-1]).bool()
        shown = scores != -torch.inf
        loss = F.softplus(torch.where(same, -scores, scores))
        parts = (loss[pairs].sum() / pairs.sum().clamp(min=1) for pairs in (shown & same, shown & ~same))
        return torch.stack(list(parts)).mean()
