"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017), second and first order.

Weights are learned from which a few steps of gradient descent on the support set (the paper's equation 1)
reach a good classifier: the outer loss is taken after the inner steps (algorithm 1). `Maml` differentiates
through the inner gradient; `Fomaml` takes it for a constant (the paper's section 5.2).

Batch norm uses the statistics of the images at hand, as published. Which images those are decides what the
published figures hide, so it is said here. The support is normalised by itself while weights are adapted to
it. Then there are three rules for the queries: the support seen so far with all queries of one call of
`predict` ("together": transductive); all queries of one call without the support ("apart": transductive, the
rule of learn2learn and, as far as we recall it, of the authors' code); the support with one query at a time
("single": inductive). In a stream one image is asked at a time: "together" and "single" are the same there,
and "apart" leaves an image no statistics but its own. That is why "together" is the default.

Episodes of a batch have weights of their own after the first inner step; `task_network.py` says how they go
through the network side by side. The graph of a second-order step is large and soon used up, so the loss of a
batch is computed with its gradient, as many episodes at a time as memory allows: a batch that would not fit
is only taken in more pieces.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support, some_episodes
from fewshot.errors import LearnerError
from fewshot.learners.backbones import ConvBackbone, Downsample
from fewshot.learners.base import Learner
from fewshot.learners.task_network import Weights, logits, map_sizes, same_weights

Statistics = Literal["together", "apart", "single"]

BYTES_TOGETHER = 2**30
"""Memory that the episodes of a batch may take together on a CPU; what needs more goes in parts."""


class Adapted(NamedTuple):
    """images: (batch, image, channel, height, width) and labels: (batch, image), all that were observed;
    weights: those reached from them, each with the batch first; empty until somebody asks.
    """

    images: Tensor
    labels: Tensor
    weights: Weights = ()


class GradientLearner(Learner):
    """What first and second order share: everything but `second_order`.

    Labels are tied to rows of the head's initial weights, so a permutation of labels changes answers a
    little. In a stream, an image is answered at a few presentations only, each from the initial weights.
    """

    label_equivariant: ClassVar[bool] = False
    fixed_way: bool = True
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
        statistics: the images that share a batch norm with a query, see above.
        """
        super().__init__(image_shape, way)
        if inner_learning_rate <= 0 or inner_steps < 1 or inner_steps_test < 1:
            raise LearnerError(
                "inner_learning_rate must be above 0, inner_steps and inner_steps_test at least 1; got "
                f"{inner_learning_rate}, {inner_steps} and {inner_steps_test}"
            )
        self.transductive = statistics != "single"
        self.statistics = statistics
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
        self.downsample = downsample

    def start(self, batch: int, way: int) -> Adapted:
        if reason := self.way_refusal(way):
            raise LearnerError(reason)
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
        if self.statistics == "apart":
            return self._logits(weights, images.unsqueeze(1))[:, 0]
        if self.statistics == "together":
            together = torch.cat([state.images, images], dim=1).unsqueeze(1)
            return self._logits(weights, together)[:, 0, shown:]
        stored = state.images.unsqueeze(1).expand(-1, asked, -1, -1, -1, -1)
        return self._logits(weights, torch.cat([stored, images.unsqueeze(2)], dim=2))[:, :, -1]

    def stream(self, batch: StreamBatch) -> Tensor:
        """Only the answers at `presentations`, zero elsewhere; episodes asked at one step go together."""
        asked = self.asked(batch)
        answers = batch.images.new_zeros(*batch.labels.shape, self.way)
        for step in range(1, batch.labels.shape[1]):
            episodes = asked[:, step].nonzero().squeeze(1)
            if len(episodes):
                state = Adapted(batch.images[episodes, :step], batch.labels[episodes, :step])
                answers[episodes, step] = self.predict(state, batch.images[episodes, step : step + 1])[:, 0]
        return answers

    def answer(self, batch: EpisodeBatch) -> Tensor:
        """As any learner does it, with as many episodes at a time as memory allows."""
        parts = self._parts(batch)
        return torch.cat([super(GradientLearner, self).answer(part) for part in parts])

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """The mean cross-entropy of all answers asked for, in nats.

        Where gradients are wanted, they are computed with it: it can be differentiated by the learner's
        parameters alone, and once.
        """
        if not torch.is_grad_enabled():
            return super().loss(batch)
        asked = batch.query_labels.numel() if isinstance(batch, KShotBatch) else self.asked(batch).sum()
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]

        def share(part: EpisodeBatch) -> Tensor:
            """Of a few episodes in the mean over all."""
            if isinstance(part, KShotBatch):
                answers, labels = self.answer(part).flatten(0, 1), part.query_labels.flatten()
            else:
                chosen = self.asked(part)
                answers, labels = self.answer(part)[chosen], part.labels[chosen]
            return F.cross_entropy(answers, labels, reduction="sum") / asked

        loss: Tensor = _SumWithGradients.apply(share, self._parts(batch), *parameters)
        return loss

    def bytes_per_episode(self, shown: int, asked: int) -> int:
        """The memory that an episode of a batch takes at most, to about a quarter, beside images and weights.

        shown: images to learn from; asked: images to name in one call of `predict`.
        """
        steps = self.inner_steps if self.training else self.inner_steps_test
        kept_steps = steps if self.training and self.second_order else 0
        named = {"together": shown + asked, "apart": asked, "single": asked * (shown + 1)}[self.statistics]
        kept, passing = map_sizes(self.backbone, self.downsample)
        weights = sum(parameter.numel() for parameter in self.parameters())
        # The backward of a kept inner step needs as much again as its forward.
        numbers = max(named, shown) * (kept + passing) + 2 * kept_steps * shown * kept
        return (numbers + (2 + kept_steps) * weights) * self.head.bias.element_size()

    def _parts(self, batch: EpisodeBatch) -> list[EpisodeBatch]:
        """The batch, in as few parts as memory allows."""
        if isinstance(batch, KShotBatch):
            needed = self.bytes_per_episode(batch.support.images.shape[1], batch.query_images.shape[1])
        else:
            length = batch.images.shape[1]
            needed = self.bytes_per_episode(length, 1)
            if torch.is_grad_enabled():  # then what is kept for each image asked adds up
                needed *= length
        episodes = len(batch.class_ids)
        together = max(1, min(_free_bytes(self.head.bias.device) // needed, episodes))
        return [
            some_episodes(batch, slice(first, first + together)) for first in range(0, episodes, together)
        ]

    def _descend(self, images: Tensor, labels: Tensor) -> Weights:
        """The weights after the inner steps, one set per episode.

        Where gradients are wanted outside, the initial weights stay reachable; else the result is detached.
        """
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            weights = same_weights(self.backbone, self.head, len(images))
            for _ in range(self.inner_steps if self.training else self.inner_steps_test):
                answers = self._logits(weights, images.unsqueeze(1))[:, 0]
                # Summed over episodes, which do not share weights, and averaged over an episode's images.
                loss = F.cross_entropy(answers.flatten(0, 1), labels.flatten(), reduction="sum")
                gradients = torch.autograd.grad(
                    loss / labels.shape[1], weights, create_graph=wanted and self.second_order
                )
                weights = tuple(
                    torch.sub(weight, gradient, alpha=self.inner_learning_rate)
                    for weight, gradient in zip(weights, gradients, strict=True)
                )
        return weights if wanted else tuple(weight.detach() for weight in weights)

    def _logits(self, weights: Weights, images: Tensor) -> Tensor:
        return logits(weights, images, self.downsample)


class Maml(GradientLearner):
    """MAML as published: the outer gradient goes through the inner one."""

    second_order: ClassVar[bool] = True


class Fomaml(GradientLearner):
    """First-order MAML: the inner gradient is taken for a constant; about half the time per step."""

    second_order: ClassVar[bool] = False


def _free_bytes(device: torch.device) -> int:
    """What a part of a batch may take: half of a GPU's free memory, a gigabyte elsewhere.

    (More at a time is no faster on a CPU: with four Conv4-64 episodes together a step took 1.05 times as long
    as with sixteen.)
    """
    if device.type != "cuda":
        return BYTES_TOGETHER
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (free + reserved) // 2


class _SumWithGradients(torch.autograd.Function):
    """The sum of `share(part)` over the parts; only one part's graph is in memory at a time."""

    @staticmethod
    def forward(
        context: Any,
        share: Callable[[EpisodeBatch], Tensor],
        parts: Sequence[EpisodeBatch],
        *parameters: Tensor,
    ) -> Tensor:
        total = parameters[0].new_zeros(())
        context.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for part in parts:
            with torch.enable_grad():
                loss = share(part)
            total += loss.detach()
            found = torch.autograd.grad(loss, parameters)
            for gradient, more in zip(context.gradients, found, strict=True):
                gradient += more
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * found for found in context.gradients)
