"""Learners that adapt a network's weights to what they observed, by gradient descent from learned weights.

| name       | symbol  | equation                                                  | shape              |
|------------|---------|-----------------------------------------------------------|--------------------|
| weights    | theta   | learned; where every episode starts                       | of the network     |
| adapted    | theta_i | theta_{i+1} = theta_i - rate * gradient of L_S at theta_i | (batch, *weight)   |
| rate       | alpha   | a number, or learned                                      | () up to (*weight) |
| inner loss | L_S     | mean cross-entropy of what was observed, the support      | (batch,), summed   |
| outer loss | L_Q     | mean cross-entropy of the queries after the last step     | number             |

That is MAML (Finn, Abbeel and Levine 2017, equation 1 and algorithm 1). The others say in their files what
they do otherwise: which weights adapt, at which rates, and what the learned weights are trained by.

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

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support, some_episodes
from fewshot.errors import LearnerError
from fewshot.learners.adapting import Adapted, AdaptingLearner
from fewshot.learners.backbones import BatchNormMode, ConvBackbone, Downsample
from fewshot.learners.task_network import Weights, logits, map_sizes, same_weights

Statistics = Literal["together", "apart", "single"]
Rates = Callable[[int, Weights, Weights], tuple[Weights, Weights]]
"""(step, gradients, memory) -> a rate for each weight, and the memory for the next step, () at first."""

BYTES_TOGETHER = 2**30
"""Memory that the episodes of a batch may take together on a CPU; what needs more goes in parts."""


class NetworkOptions(TypedDict, total=False):
    """The options that all these learners have; `GradientLearner` explains them and gives the defaults."""

    widths: tuple[int, ...]
    downsample: Downsample
    averaged: bool
    statistics: Statistics


class DescentOptions(NetworkOptions, total=False):
    """Those too of learners that descend as MAML does."""

    inner_learning_rate: float
    inner_steps: int
    inner_steps_test: int


class GradientLearner(AdaptingLearner):
    """What the family shares, which is MAML but for `second_order`.

    In a stream, an image is answered at a few presentations only, each from the initial weights.

    second_order: whether the outer gradient goes through the inner one, or takes it for a constant.
    """

    batch_norm: BatchNormMode = "batch"
    steady: bool = True
    presentations: ClassVar[tuple[int, ...] | None] = (1, 2, 3, 5, 10)
    added_options: ClassVar[frozenset[str]] = frozenset({"averaged"})

    second_order: ClassVar[bool]

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64, 64),
        downsample: Downsample = "stride",
        averaged: bool = False,
        inner_learning_rate: float = 0.4,
        inner_steps: int = 1,
        inner_steps_test: int = 3,
        statistics: Statistics = "together",
    ) -> None:
        """Defaults are those of MAML's paper for Omniglot, 5-way (appendix A.1).

        widths: channels of each convolution block. downsample: by the convolutions' stride, or by pooling.
        averaged: whether the head stands on the last maps' means, see `fewshot.learners.backbones.Backbone`.
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
        # These hold the initial weights; the episodes' own go through `logits`.
        self.backbone = ConvBackbone(
            image_shape, widths, downsample=downsample, batch_norm="batch", averaged=averaged
        )
        self.smallest_window = self.backbone.smallest_window
        self.backbone_name = self.backbone.name
        self.head = nn.Linear(self.backbone.output_size, way)
        for weight in self.parameters():
            # Kernels before a batch norm have no scale, but the smaller they are, the further an inner step
            # turns them: torch's default is 2.4 times smaller than this and learned more slowly.
            if weight.ndim == 4:
                nn.init.kaiming_normal_(weight)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def steps(self) -> int:
        """Inner steps, in the mode that the learner is in."""
        return self.inner_steps if self.training else self.inner_steps_test

    # --- What a learner of the family may do otherwise ------------------------------------------------------

    def trajectory(self, images: Tensor, labels: Tensor, *, second_order: bool) -> Iterator[Weights]:
        """The network's weights after each inner step, one set per episode.

        images: (batch, image, channel, height, width); labels: (batch, image). Gradients must be enabled.
        """

        def loss(weights: Weights, step: int) -> Tensor:
            return inner_loss(self.logits(weights, images.unsqueeze(1), step)[:, 0], labels)

        initial = same_weights(self.backbone, self.head, len(images))
        return descend(loss, initial, self.rates, self.steps, second_order=second_order)

    def rates(self, step: int, gradients: Weights, memory: Weights) -> tuple[Weights, Weights]:
        """See `Rates`: by default the one that the options give."""
        rate = self.head.bias.new_full((), self.inner_learning_rate)
        return (rate,) * len(gradients), memory

    def logits(self, weights: Weights, images: Tensor, step: int) -> Tensor:
        """(batch, set, image, channel, height, width) -> (batch, set, image, way); a set is normalised
        together. step: the inner step that the weights are about to take, or took last.
        """
        return logits(weights, images, self.backbone.layout)

    def importances(self) -> Sequence[float]:
        """How much the queries' loss after each inner step counts in the outer loss."""
        return [0.0] * (self.steps - 1) + [1.0]

    def share(self, part: EpisodeBatch, batch: EpisodeBatch) -> Tensor:
        """What some episodes of a batch add to its loss, a mean over all."""
        summed = torch.stack([self._outer_loss(*question) for question in self._questions(part)]).sum()
        asked = batch.query_labels.numel() if isinstance(batch, KShotBatch) else self.asked(batch).sum()
        return summed / asked

    def kept_passes(self) -> int:
        """How many passes of the support through the network a training step keeps for its gradient.

        (The backward of a kept inner step needs as much again as its forward.)
        """
        return 2 * self.steps if self.second_order else 0

    # --- What they share ------------------------------------------------------------------------------------

    def adapt(self, support: Support) -> Adapted:
        self.check_images(support.images.shape, support.images.dtype, windows=self.training)
        state = self.start(len(support.images), support.way)
        return state._replace(
            images=support.images,
            labels=support.labels,
            weights=self._descend(support.images, support.labels),
        )

    def adapted_logits(self, state: Adapted, images: Tensor) -> Tensor:
        weights = state.weights or self._descend(state.images, state.labels)
        return self._named(state, weights, images, self.steps - 1)

    def stream(self, batch: StreamBatch) -> Tensor:
        """Only the answers at `presentations`, zero elsewhere; episodes asked at one step go together."""
        answers = batch.images.new_zeros(*batch.labels.shape, self.way)
        for episodes, step, state in self._stops(batch):
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
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        share = partial(self.share, batch=batch)
        loss: Tensor = _SumWithGradients.apply(share, self._parts(batch), *parameters)
        return loss

    def bytes_per_episode(self, shown: int, asked: int) -> int:
        """The memory that an episode of a batch takes at most, to about a quarter, beside images and weights.

        shown: images to learn from; asked: images to name in one call of `predict`.
        """
        named = {"together": shown + asked, "apart": asked, "single": asked * (shown + 1)}[self.statistics]
        kept, passing = map_sizes(self.backbone)
        weights = sum(parameter.numel() for parameter in self.parameters())
        numbers, sets = max(named, shown) * (kept + passing), 2
        if self.training:
            passes, counted = self.kept_passes(), sum(map(bool, self.importances()))
            numbers += (passes * shown + (counted - 1) * named) * kept
            sets += self.steps if passes else 0
        return (numbers + sets * weights) * self.head.bias.element_size()

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
        weights: Weights = ()
        with torch.enable_grad():
            for reached in self.trajectory(images, labels, second_order=wanted and self.second_order):
                weights = reached
        return weights if wanted else tuple(weight.detach() for weight in weights)

    def _stops(self, batch: StreamBatch) -> Iterator[tuple[Tensor, int, Adapted]]:
        """Where streams are asked: (the episodes that are, the step, what those observed before it)."""
        asked = self.asked(batch)
        for step in range(batch.labels.shape[1]):
            episodes = asked[:, step].nonzero().squeeze(1)
            if len(episodes):
                yield episodes, step, Adapted(batch.images[episodes, :step], batch.labels[episodes, :step])

    def _questions(self, batch: EpisodeBatch) -> Iterator[tuple[Adapted, Tensor, Tensor]]:
        """What is asked at once: (what was observed, the images to be named, their labels)."""
        if isinstance(batch, KShotBatch):
            yield Adapted(batch.support.images, batch.support.labels), batch.query_images, batch.query_labels
            return
        for episodes, step, state in self._stops(batch):
            here = slice(step, step + 1)
            yield state, batch.images[episodes, here], batch.labels[episodes, here]

    def _outer_loss(self, state: Adapted, images: Tensor, labels: Tensor) -> Tensor:
        """Of a question, summed over its images."""
        if not state.images.shape[1]:
            return _summed(self.predict(state, images), labels)
        reached = self.trajectory(state.images, state.labels, second_order=self.second_order)
        losses = [
            importance * _summed(self._named(state, weights, images, step), labels)
            for step, (importance, weights) in enumerate(zip(self.importances(), reached, strict=True))
            if importance
        ]
        return torch.stack(losses).sum()

    def _named(self, state: Adapted, weights: Weights, images: Tensor, step: int) -> Tensor:
        """(batch, image, way) logits by the weights after a step, normalised as `statistics` says."""
        asked, shown = images.shape[1], state.images.shape[1]
        if self.statistics == "apart":
            return self.logits(weights, images.unsqueeze(1), step)[:, 0]
        if self.statistics == "together":
            together = torch.cat([state.images, images], dim=1).unsqueeze(1)
            return self.logits(weights, together, step)[:, 0, shown:]
        stored = state.images.unsqueeze(1).expand(-1, asked, -1, -1, -1, -1)
        return self.logits(weights, torch.cat([stored, images.unsqueeze(2)], dim=2), step)[:, :, -1]


def descend(
    loss: Callable[[Weights, int], Tensor], weights: Weights, rates: Rates, steps: int, *, second_order: bool
) -> Iterator[Weights]:
    """Gradient descent: the weights after each step.

    loss: of weights that take a step, and the step's number. second_order: whether what comes out can be
    differentiated through the gradients too.
    """
    memory: Weights = ()
    for step in range(steps):
        gradients = torch.autograd.grad(loss(weights, step), weights, create_graph=second_order)
        widths, memory = rates(step, gradients, memory)
        weights = tuple(
            torch.addcmul(weight, width, gradient, value=-1)
            for weight, width, gradient in zip(weights, widths, gradients, strict=True)
        )
        yield weights


def inner_loss(answers: Tensor, labels: Tensor) -> Tensor:
    """Summed over episodes, which do not share weights, and averaged over an episode's images.

    answers: (batch, image, way); labels: (batch, image).
    """
    return _summed(answers, labels) / labels.shape[1]


def _summed(answers: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(answers.flatten(0, 1), labels.flatten(), reduction="sum")


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
