"""Learner: the one interface between methods and protocols.

A learner takes labelled images and then names others. What it has learned inside an episode is a *state*:
a value that goes in and comes out and is never kept on the module, so that two episodes cannot meet and a
query cannot teach another (design decision 3). A batch of episodes goes through side by side.

To write your own, give `start`, `observe` and `predict`; everything else has a default.
`fewshot.check_learner` says whether the promises hold. (A learner that looks at each image by itself is
better an `EmbeddingLearner`, see `fewshot.learners.embedding`: evaluation is many times faster.)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.episodes.labels import Labels
from fewshot.episodes.protocol import Protocol, Range, Stream, bounds
from fewshot.errors import LearnerError, check_kind

State = Any
"""What a learner knows inside a batch of episodes; a (nested) tuple of tensors with the batch first."""

_STRINGS = 'ask it in streams with labels = "string"'


class Learner(nn.Module, ABC):
    """A few-shot method. Subclasses are final; their constructor's keywords are the method's options, as are
    those that it passes on to a base (`**shared: Unpack[SharedOptions]`, see `fewshot.learners.recurrent`).

    version: raised by hand when the method's figures may move.
    transductive: whether the answer to a K-shot query may depend on the other queries; an option may decide
        it. In a stream one image is asked at a time, so nothing is transductive there.
    label_equivariant: whether permuting the labels permutes the logits exactly (else accuracy only stays).
    labels: what a label is to the learner: "one_hot" the number of a class, in 0..way-1, and an answer is a
        logit for each; "string" its code, and an answer is a logit for each value of each letter
        (`fewshot.episodes.labels`). An option may decide it.
    fixed_way: whether the learner answers only the way it was built for; an option may decide it.
    batch_norm: "none"; "frozen" (statistics from training); "batch" (of the images shown together); an option
        may decide it.
    trainable: whether there is anything to train.
    training_only: names of the modules that only training needs; a checkpoint leaves them out.
    classes: how many training classes there may be, where training tells all of them apart; None for any.
    backbone_name: what turns images into features, as tables name it; None for learners on pixels.
    smallest_window: the side, in pixels, of the smallest windows of its images that it can be trained on;
        None for whole images alone. Whatever it is trained on, it answers whole ones.
    steady: whether an update does the same for every batch of K-shot episodes of a shape, changes what it
        remembers in place and waits for no number from the device, so that a GPU can replay it; an option
        may decide it. What is derived from a steady learner and has a `loss` of its own says it anew.
    presentations: the presentations that the learner answers in a stream, None for all; where answering is
        expensive, the record says which were asked.
    added_options: options that came after figures were recorded, and whose defaults do what was done before:
        at its default such an option is no part of a result's key, so that older results keep theirs. Those
        of a base count too.
    """

    version: ClassVar[int] = 1
    transductive: bool = False
    label_equivariant: ClassVar[bool] = True
    labels: Labels = "one_hot"
    fixed_way: bool = False
    batch_norm: Literal["none", "frozen", "batch"] = "none"
    trainable: ClassVar[bool] = True
    training_only: ClassVar[frozenset[str]] = frozenset()
    classes: int | None = None
    backbone_name: str | None = None
    smallest_window: int | None = None
    steady: bool = False
    presentations: ClassVar[tuple[int, ...] | None] = None
    added_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, image_shape: tuple[int, int, int], way: int) -> None:
        """image_shape: (channel, height, width); way: classes per episode, binding only where fixed_way."""
        super().__init__()
        self.image_shape = image_shape
        self.way = way

    @abstractmethod
    def start(self, batch: int, way: int) -> State:
        """The state before anything was seen, for `batch` episodes."""

    @abstractmethod
    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        """Learn one labelled image per episode.

        image: (batch, channel, height, width); label: (batch,), or (batch, letter) where labels are strings.
        """

    @abstractmethod
    def predict(self, state: State, images: Tensor) -> Tensor:
        """Name images without learning from them.

        images: (batch, image, channel, height, width) -> logits (batch, image, way), or of strings' letters
        (batch, image, letter * value).
        """

    def adapt(self, support: Support) -> State:
        """The state after the whole support set; by default, its images observed in their order."""
        self.check_images(support.images.shape, support.images.dtype, windows=self.training)
        start = self.start(len(support.images), support.way)
        return observe_in_turn(self.observe, start, support.images, support.labels)

    def stream(self, batch: StreamBatch) -> Tensor:
        """Name each image, then be shown its label: (batch, length, way) logits.

        Logits where nothing is `asked` are unspecified, even NaN. Override it for speed only.
        """
        start = self.start(len(batch.images), batch.way)
        return name_in_turn(self.predict, self.observe, start, batch.images, self.shown(batch))

    def shown(self, batch: StreamBatch) -> Tensor:
        """The labels of a stream as `observe` takes them: (batch, length), or (batch, length, letter)."""
        if self.labels == "one_hot":
            return batch.labels
        if batch.codes is None:
            raise LearnerError(
                f"{type(self).__name__} reads strings, and these streams have none: {_STRINGS}"
            )
        return batch.strings

    def asked(self, batch: StreamBatch) -> Tensor:
        """The steps of a stream that the learner answers, as `presentations` says: (batch, length) bool."""
        if self.presentations is None:
            return torch.ones_like(batch.presentation, dtype=torch.bool)
        return torch.isin(batch.presentation, batch.presentation.new_tensor(self.presentations))

    def refusal(self, protocol: Protocol) -> str | None:
        """Why the learner cannot be asked under a protocol, in one line; None where it can.

        To a label-equivariant learner a label is a mere name, which a string is as well.
        """
        name = type(self).__name__
        strings = isinstance(protocol, Stream) and protocol.labels == "string"
        if self.labels == "string":
            return None if strings else f"{name} answers with strings: {_STRINGS}"
        if strings and not self.label_equivariant:
            return f'{name} answers with a unit for each label: train one with the option labels = "string"'
        return self.way_refusal(protocol.way)

    def way_refusal(self, way: Range) -> str | None:
        """Why the learner cannot answer episodes of this way, in one line; None where it can."""
        low, high = bounds(way)
        if not self.fixed_way or low == high == self.way:
            return None
        asked = f"{low}-way" if low == high else f"{low}- to {high}-way"
        return (
            f"{type(self).__name__} was built for {self.way}-way episodes and cannot answer {asked} ones: "
            f"train one with way {high}"
        )

    def check_images(
        self, shape: Sequence[int], dtype: torch.dtype = torch.float32, *, windows: bool = False
    ) -> None:
        """Raise LearnerError unless it reads images of this shape, (..., channel, height, width).

        windows: whether windows of such images, from `smallest_window` on, are read too.
        """
        there = tuple(shape[-3:]), dtype
        weights = (weight.dtype for weight in self.parameters())
        asked = tuple(self.image_shape), next(weights, dtype)
        if windows and self.smallest_window is not None and len(there[0]) == 3:
            sides = zip(there[0][1:], self.image_shape[1:], strict=True)
            if all(self.smallest_window <= side <= whole for side, whole in sides):
                asked = (self.image_shape[0], *there[0][1:]), asked[1]
        if there != asked:
            told, got = (
                f"{image_shape} in {str(kind).removeprefix('torch.')}" for image_shape, kind in (asked, there)
            )
            raise LearnerError(
                f"{type(self).__name__} reads images of (channel, height, width) {told}; got {got}: convert "
                "them, or build a learner for these"
            )

    def answer(self, batch: EpisodeBatch) -> Tensor:
        """Logits for all that is asked: (batch, way * query, way) or (batch, length, way).

        Raises LearnerError for images of another shape than the learner was built for.
        """
        shown = batch.query_images if isinstance(batch, KShotBatch) else batch.images
        self.check_images(shown.shape, shown.dtype, windows=self.training)
        if isinstance(batch, KShotBatch):
            return self.predict(self.adapt(batch.support), batch.query_images)
        return self.stream(batch)

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """What training minimises: by default the mean cross-entropy of all answers asked for, in nats.

        Raises LearnerError for answers without a number for each class.
        """
        logits = self.answer(batch)
        way = batch.support.way if isinstance(batch, KShotBatch) else batch.way
        if logits.shape[-1] < way:
            raise LearnerError(
                f"{type(self).__name__} gives {logits.shape[-1]} logits for {way} classes: predict gives "
                "(batch, image, way)"
            )
        if isinstance(batch, KShotBatch):
            return F.cross_entropy(logits.flatten(0, 1), batch.query_labels.flatten())
        asked = self.asked(batch)
        return F.cross_entropy(logits[asked], batch.labels[asked])

    def calibrate(self, batch: StreamBatch) -> None:
        """Set, from a batch of streams over validation classes, whatever training does not (after it)."""


def check_is_learner(given: object) -> None:
    """Raise FewshotError for what is no learner."""
    check_kind("learner", given, Learner, "give an instance, as fewshot.build_learner makes one")


def observe_in_turn(
    observe: Callable[[State, Tensor, Tensor], State], state: State, images: Tensor, labels: Tensor
) -> State:
    """The state after images with their labels, one by one in their order."""
    for image, label in zip(images.unbind(1), labels.unbind(1), strict=True):
        state = observe(state, image, label)
    return state


def name_in_turn(
    predict: Callable[[State, Tensor], Tensor],
    observe: Callable[[State, Tensor, Tensor], State],
    state: State,
    images: Tensor,
    labels: Tensor,
) -> Tensor:
    """(batch, length, way) logits of a stream: each image is named, then observed with its label."""
    logits = []
    for image, label in zip(images.unbind(1), labels.unbind(1), strict=True):
        logits.append(predict(state, image.unsqueeze(1)).squeeze(1))
        state = observe(state, image, label)
    return torch.stack(logits, dim=1)
