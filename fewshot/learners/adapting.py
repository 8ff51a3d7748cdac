"""What learners share that keep all images shown, and adapt a network's weights to them when asked."""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners.base import Learner
from fewshot.learners.task_network import Weights


class Adapted(NamedTuple):
    """images: (batch, image, channel, height, width) and labels: (batch, image), all that were observed;
    weights: those reached from them, each with the batch first; empty until somebody asks.
    """

    images: Tensor
    labels: Tensor
    weights: Weights = ()


class AdaptingLearner(Learner):
    """A learner whose answers are those of a network after steps of gradient descent on what was observed.

    Labels are tied to rows of the network's head, so a permutation of labels changes answers a little.
    """

    label_equivariant: ClassVar[bool] = False
    fixed_way: bool = True

    def start(self, batch: int, way: int) -> Adapted:
        if reason := self.way_refusal(way):
            raise LearnerError(reason)
        like = next(self.parameters())
        images = like.new_zeros(batch, 0, *self.image_shape)
        return Adapted(images, torch.zeros(batch, 0, dtype=torch.int64, device=like.device))

    def observe(self, state: Adapted, image: Tensor, label: Tensor) -> Adapted:
        shown = image.unsqueeze(1)  # the empty state is of whole images, this may be a window
        images = torch.cat([state.images, shown], dim=1) if state.images.shape[1] else shown
        return Adapted(images, torch.cat([state.labels, label.unsqueeze(1)], dim=1))

    def predict(self, state: Adapted, images: Tensor) -> Tensor:
        """All labels are equal where nothing was observed."""
        if not state.images.shape[1]:
            return images.new_zeros(*images.shape[:2], self.way)
        return self.adapted_logits(state, images)

    @abstractmethod
    def adapted_logits(self, state: Adapted, images: Tensor) -> Tensor:
        """`predict` after at least one image was observed: (batch, image, ...) -> (batch, image, way)."""
