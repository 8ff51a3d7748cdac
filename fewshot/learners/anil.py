"""Almost no inner loop (Raghu, Raghu, Bengio and Vinyals 2020, "Rapid Learning or Feature Reuse?").

MAML (`gradient.py`) in which the head alone adapts, in training and in evaluation (the paper's section 5.1):
the backbone's features are what it learns between episodes, and an inner step costs one linear layer. The
support goes through the backbone once, whatever the number of steps. By default transductive in K-shot, by
the batch norm that MAML uses.
"""

from collections.abc import Iterator
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from fewshot.learners.gradient import DescentOptions, GradientLearner, descend, inner_loss
from fewshot.learners.task_network import Weights, features, named, same_weights


class Anil(GradientLearner):
    """ANIL as published, with MAML's options."""

    second_order: ClassVar[bool] = True

    def __init__(
        self, image_shape: tuple[int, int, int], way: int, **options: Unpack[DescentOptions]
    ) -> None:
        super().__init__(image_shape, way, **options)

    def trajectory(self, images: Tensor, labels: Tensor, *, second_order: bool) -> Iterator[Weights]:
        *body, head, bias = same_weights(self.backbone, self.head, len(images))
        with torch.set_grad_enabled(second_order):
            shown = features(body, images.unsqueeze(1), self.backbone.layout)

        def loss(head: Weights, step: int) -> Tensor:
            return inner_loss(named(head, shown)[:, 0], labels)

        for adapted in descend(loss, (head, bias), self.rates, self.steps, second_order=second_order):
            yield *body, *adapted

    def kept_passes(self) -> int:
        """The one through the backbone."""
        return 1
