"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017), second and first order.

Weights are learned from which a few steps of gradient descent on the support set (the paper's equation 1)
reach a good classifier: the outer loss is taken after the inner steps (algorithm 1). `Maml` differentiates
through the inner gradient; `Fomaml` takes it for a constant (the paper's section 5.2).

Batch norm uses the statistics of the images at hand, as published. Which images those are decides what the
published figures hide, so it is said here: the support seen so far, together with either all queries of one
call of `predict` ("together": transductive) or one query at a time ("single": inductive). In a stream one
image is asked at a time, and the two are the same. Here is a departure: the authors' code, as far as we
recall it, normalises the queries by the queries alone. One rule was wanted for both protocols, and in a
stream an image asked alone would have no statistics but its own.

Episodes of a batch have weights of their own after the first inner step. They go through the network side by
side as groups of one grouped convolution: on a CPU core that was 1.25 times as fast as a loop over episodes,
and 1.15 times as fast as matrix products of unfolded images. (`torch.func.vmap` was as fast, but the
meta-gradient that it takes through batch norm was wrong by 0.4 %, in torch 2.15.)
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.errors import LearnerError
from fewshot.learners.backbones import ConvBackbone, Downsample
from fewshot.learners.base import Learner

Statistics = Literal["together", "single"]


class Adapted(NamedTuple):
    """images: (batch, image, channel, height, width) and labels: (batch, image), all that were observed;
    weights: those reached from them, each with the batch first; empty until somebody asks.
    """

    images: Tensor
    labels: Tensor
    weights: tuple[Tensor, ...] = ()


class GradientLearner(Learner):
    """What first and second order share: everything but `second_order`.

    Labels are tied to rows of the head's initial weights, so a permutation of labels changes answers a
    little. In a stream, an image is answered at a few presentations only, each from the initial weights.
    """

    label_equivariant: ClassVar[bool] = False
    fixed_way: ClassVar[bool] = True
    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "batch"
    presentations: ClassVar[tuple[int, ...] | None] = (1, 2, 3, 5, 10)

    second_order: ClassVar[bool]

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64, 64),
        downsample: Downsample = "stride",
        inner_learning_rate: float = 0.4,
        inner_steps: int = 1,
        inner_steps_test: int = 3,
        statistics: Statistics = "together",
    ) -> None:
        """Defaults are the paper's for Omniglot, 5-way (appendix A.1).

        widths: channels of each convolution block. downsample: by the convolutions' stride, or by pooling.
        inner_steps, inner_steps_test: in training and in evaluation.
        statistics: the queries that share a batch norm with the support, see above.
        """
        super().__init__(image_shape, way)
        if inner_learning_rate <= 0 or inner_steps < 1 or inner_steps_test < 1:
            raise LearnerError(
                "inner_learning_rate must be above 0, inner_steps and inner_steps_test at least 1; got "
                f"{inner_learning_rate}, {inner_steps} and {inner_steps_test}"
            )
        self.transductive = statistics == "together"
        self.inner_learning_rate = inner_learning_rate
        self.inner_steps = inner_steps
        self.inner_steps_test = inner_steps_test
        # These hold the initial weights; the episodes' own go through `_logits`.
        self.backbone = ConvBackbone(image_shape, widths, downsample=downsample, batch_norm="batch")
        self.backbone_name = self.backbone.name
        self.head = nn.Linear(self.backbone.output_size, way)
        for weight in self.parameters():
            # Kernels before a batch norm have no scale, but the smaller they are, the further an inner step
            # turns them: torch's default is 2.4 times smaller than this and learned more slowly.
            if weight.ndim == 4:
                nn.init.kaiming_normal_(weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.stride = 2 if downsample == "stride" else 1

    def start(self, batch: int, way: int) -> Adapted:
        if way != self.way:
            raise LearnerError(f"{type(self).__name__} was built for {self.way}-way episodes; got {way}-way")
        images = self.head.bias.new_zeros(batch, 0, *self.image_shape)
        return Adapted(images, torch.zeros(batch, 0, dtype=torch.int64, device=images.device))

    def observe(self, state: Adapted, image: Tensor, label: Tensor) -> Adapted:
        images = torch.cat([state.images, image.unsqueeze(1)], dim=1)
        return Adapted(images, torch.cat([state.labels, label.unsqueeze(1)], dim=1))

    def adapt(self, support: Support) -> Adapted:
        state = self.start(len(support.images), support.way)
        return state._replace(
            images=support.images,
            labels=support.labels,
            weights=self._descend(support.images, support.labels),
        )

    def predict(self, state: Adapted, images: Tensor) -> Tensor:
        """All labels are equal where nothing was observed."""
        batch, asked = images.shape[:2]
        shown = state.images.shape[1]
        if shown == 0:
            return images.new_zeros(batch, asked, self.way)
        weights = state.weights or self._descend(state.images, state.labels)
        if self.transductive:
            together = torch.cat([state.images, images], dim=1).unsqueeze(1)
            return self._logits(weights, together)[:, 0, shown:]
        stored = state.images.unsqueeze(1).expand(-1, asked, -1, -1, -1, -1)
        return self._logits(weights, torch.cat([stored, images.unsqueeze(2)], dim=2))[:, :, -1]

    def stream(self, batch: StreamBatch) -> Tensor:
        """Only the answers at `presentations`, zero elsewhere; episodes asked at one step go together."""
        asked = self.asked(batch)
        logits = batch.images.new_zeros(*batch.labels.shape, self.way)
        for step in range(1, batch.labels.shape[1]):
            episodes = asked[:, step].nonzero().squeeze(1)
            if len(episodes):
                state = Adapted(batch.images[episodes, :step], batch.labels[episodes, :step])
                logits[episodes, step] = self.predict(state, batch.images[episodes, step : step + 1])[:, 0]
        return logits

    def _descend(self, images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The weights after the inner steps, one set per episode.

        Where gradients are wanted outside, the initial weights stay reachable; else the result is detached.
        """
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            weights = tuple(weight.expand(len(images), *weight.shape) for weight in self.parameters())
            for _ in range(self.inner_steps if self.training else self.inner_steps_test):
                logits = self._logits(weights, images.unsqueeze(1))[:, 0]
                # Summed over episodes, which do not share weights, and averaged over an episode's images.
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                gradients = torch.autograd.grad(
                    loss / labels.shape[1], weights, create_graph=wanted and self.second_order
                )
                weights = tuple(
                    weight - self.inner_learning_rate * gradient
                    for weight, gradient in zip(weights, gradients, strict=True)
                )
        return weights if wanted else tuple(weight.detach() for weight in weights)

    def _logits(self, weights: Sequence[Tensor], images: Tensor) -> Tensor:
        """The network: (batch, set, image, channel, height, width) -> (batch, set, image, way).

        weights: one set per episode, batch first, in the order of `parameters`: of each block the kernel and
        the batch norm's scale and shift, then the head. The images of a set are normalised together.
        """
        batch, sets, count = images.shape[:3]
        maps = images.permute(2, 1, 0, 3, 4, 5).flatten(2, 3).flatten(0, 1)  # (image·set, batch·channel, ...)
        *blocks, head, bias = weights
        for kernel, scale, shift in zip(blocks[::3], blocks[1::3], blocks[2::3], strict=True):
            maps = F.conv2d(maps, kernel.flatten(0, 1), stride=self.stride, padding=1, groups=batch)
            grouped = maps.reshape(count, -1, *maps.shape[2:])
            maps = _batch_norm(grouped, scale.flatten().repeat(sets), shift.flatten().repeat(sets))
            maps = maps.reshape(count * sets, -1, *maps.shape[2:]).relu()
            if self.stride == 1:
                maps = F.max_pool2d(maps, 2)
        features = maps.reshape(count, sets, batch, -1).permute(2, 1, 0, 3)
        return features @ head.mT.unsqueeze(1) + bias[:, None, None]


def _batch_norm(maps: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """By the statistics of these maps. (F.batch_norm would refuse a single image of one pixel.)"""
    return torch.batch_norm(maps, scale, shift, None, None, True, 0.0, 1e-5, torch.backends.cudnn.enabled)


class Maml(GradientLearner):
    """MAML as published: the outer gradient goes through the inner one."""

    second_order: ClassVar[bool] = True


class Fomaml(GradientLearner):
    """First-order MAML: the inner gradient is taken for a constant; about half the time per step."""

    second_order: ClassVar[bool] = False
