"""learn2learn's MAML as a learner of ours, around whatever network it wraps.

    maml = learn2learn.algorithms.MAML(network, lr=0.4)
    learner = Learn2LearnMaml(image_shape, way=5, maml=maml)       # fewshot.train, evaluate, check_learner

It follows learn2learn's own examples: the support goes through a clone of the network once per inner step,
then the queries go through it by themselves. That is our `Maml` with `statistics="apart"`, to which a test
holds it: from the same weights, on the same episodes, with the same losses and gradients.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.learners.adapting import Adapted, AdaptingLearner
from fewshot.learners.options import check_at_least


class Learn2LearnMaml(AdaptingLearner):
    """An episode is answered by a clone of the network, adapted to all that was observed.

    Batch norms use the statistics of the images at hand, always: the examples never leave training mode, and
    running statistics are of no use here, as clones share them. With a batch norm in the network the learner
    is therefore transductive in K-shot, and in a stream an image has no statistics but its own.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        maml: Any,
        inner_steps: int = 1,
        inner_steps_test: int = 3,
    ) -> None:
        """maml: of learn2learn, around a network (image, channel, height, width) -> (image, way).

        inner_steps, inner_steps_test: in training and in evaluation.
        """
        super().__init__(image_shape, way)
        check_at_least(1, inner_steps=inner_steps, inner_steps_test=inner_steps_test)
        self.maml = maml
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        self.transductive = bool(_batch_norms(maml))
        self.batch_norm = "batch" if self.transductive else "none"

    def adapted_logits(self, state: Adapted, images: Tensor) -> Tensor:
        adapted = (self._adapted(*shown) for shown in zip(state.images, state.labels, strict=True))
        return torch.stack([network(asked) for network, asked in zip(adapted, images, strict=True)])

    def _adapted(self, images: Tensor, labels: Tensor) -> Any:
        """A clone of the network after the inner steps on one episode's (image, ...) and (image,).

        Where no gradient is wanted outside, the inner one is taken for a constant: the clone is the same.
        """
        first_order = self.maml.first_order or not torch.is_grad_enabled()
        with torch.enable_grad():
            clone = self.maml.clone()
            for norm in _batch_norms(clone):  # both together: by the images at hand, following none
                norm.training, norm.track_running_stats = True, False
            for _ in range(self.inner_steps if self.training else self.inner_steps_test):
                clone.adapt(F.cross_entropy(clone(images), labels), first_order=first_order)
        return clone


def _batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
