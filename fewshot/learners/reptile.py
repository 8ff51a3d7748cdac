"""Reptile (Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms").

| name    | equation                                                                   | shape            |
|---------|----------------------------------------------------------------------------|------------------|
| moment  | v_i: mean of squared gradients over the steps so far, decay 0.999           | (batch, *weight) |
| rate    | alpha / (sqrt(v_i / (1 - 0.999^i)) + 1e-8): Adam without momentum          | (batch, *weight) |
| adapted | theta': after inner steps on mini-batches, by these rates                  | (batch, *weight) |
| update  | theta - theta', averaged over the batch (algorithm 2, equation in line 7)  | (*weight)        |

There is no support and no query in training: all labelled images of an episode are learned from, some at a
time. Steps on different mini-batches are what makes the update more than joint training (section 5). The
update is no gradient of a loss; it is given to the optimiser in a gradient's place, which the paper proposes
for use with Adam (section 3). So here the gradient of `loss` is theta - theta', that of half their squared
distance with theta' held fixed, while its value, which learning curves show, is the cross-entropy that the
adapted weights reach on the same images.

Adam starts afresh in each episode, without momentum as in the paper's experiments. Evaluation takes its steps
on all that was observed at once; the paper's take mini-batches, which of 5-way 1-shot are all as well. By
default transductive in K-shot, by the batch norm that MAML uses (`gradient.py`).
"""

from collections.abc import Iterator
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, KShotBatch
from fewshot.learners.gradient import GradientLearner, NetworkOptions, descend, inner_loss
from fewshot.learners.options import check_at_least
from fewshot.learners.task_network import Weights, same_weights

DECAY, EPSILON = 0.999, 1e-8
"""Adam's, of the squared gradients and beside their root."""


class Reptile(GradientLearner):
    """Reptile as published for Omniglot, 5-way 1-shot (appendix A); there training shows 10 images a class.

    inner_batch: images in a mini-batch of training; all of them where there are fewer.
    """

    second_order: ClassVar[bool] = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        inner_learning_rate: float = 1e-3,
        inner_steps: int = 5,
        inner_steps_test: int = 50,
        inner_batch: int = 10,
        **network: Unpack[NetworkOptions],
    ) -> None:
        super().__init__(
            image_shape,
            way,
            inner_learning_rate=inner_learning_rate,
            inner_steps=inner_steps,
            inner_steps_test=inner_steps_test,
            **network,
        )
        check_at_least(1, inner_batch=inner_batch)
        self.inner_batch = inner_batch

    def trajectory(self, images: Tensor, labels: Tensor, *, second_order: bool) -> Iterator[Weights]:
        """In training, mini-batches follow each other in a random order of the images, over and over."""
        episodes, count = labels.shape
        size = min(self.inner_batch, count) if self.training else count
        row = torch.arange(episodes, device=labels.device).unsqueeze(1)
        order = torch.rand(episodes, count, device=labels.device).argsort(1) if size < count else None

        def loss(weights: Weights, step: int) -> Tensor:
            shown, truth = images, labels
            if order is not None:
                place = (step * size + torch.arange(size, device=labels.device)) % count
                chosen = order[:, place]
                shown, truth = images[row, chosen], labels[row, chosen]
            return inner_loss(self.logits(weights, shown.unsqueeze(1), step)[:, 0], truth)

        initial = same_weights(self.backbone, self.head, episodes)
        return descend(loss, initial, self.rates, self.steps, second_order=False)

    def rates(self, step: int, gradients: Weights, memory: Weights) -> tuple[Weights, Weights]:
        """The memory is the moments."""
        squares = tuple(gradient.square() for gradient in gradients)
        before = memory or tuple(torch.zeros_like(square) for square in squares)
        moments = tuple(square.lerp(v, DECAY) for square, v in zip(squares, before, strict=True))
        part = 1 - DECAY ** (step + 1)
        return tuple(self.inner_learning_rate / ((v / part).sqrt() + EPSILON) for v in moments), moments

    def share(self, part: EpisodeBatch, batch: EpisodeBatch) -> Tensor:
        """See above: the value is a cross-entropy, the gradient Reptile's update."""
        images, labels = _labelled(part)
        with torch.no_grad():
            adapted = self._descend(images, labels)
            reached = self.logits(adapted, images.unsqueeze(1), self.steps - 1)[:, 0]
            value = inner_loss(reached, labels)
        initial = same_weights(self.backbone, self.head, len(images))
        distance = torch.stack(
            [(weight - other).square().sum() / 2 for weight, other in zip(initial, adapted, strict=True)]
        ).sum()
        return (value + (distance - distance.detach())) / len(batch.class_ids)


def _labelled(batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
    """All images of the episodes, (batch, image, channel, height, width), and their labels (batch, image)."""
    if not isinstance(batch, KShotBatch):
        return batch.images, batch.labels
    images = torch.cat([batch.support.images, batch.query_images], dim=1)
    return images, torch.cat([batch.support.labels, batch.query_labels], dim=1)
