"""Learners that read one image at a time, each with the label of the image before (Santoro et al. 2016).

At step t the network sees (image_t, label_{t-1}) and names image_t. So a label is taken in one step late:
after `observe` the state holds the label shown last as pending, and the next image, whether to be learned
or only to be named, arrives together with it. A query is answered by one such step from its own copy of the
state, and the copy is dropped: no query learns from another.

A label is shown as one of `way` units, or, where it is a string, as five groups of five, which binds the
learner to no way (the paper's section 4.1).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch, StreamBatch, Support
from fewshot.episodes.labels import LETTERS, VALUES, Labels, label_units
from fewshot.errors import LearnerError
from fewshot.learners.encoder import EncoderLearner, EncoderOptions
from fewshot.learners.metric import across_episodes_loss
from fewshot.memory.attribution import Watch
from fewshot.memory.cell import Cell, WatchedCell


class RecurrentState(NamedTuple):
    """cell: the cell's own state; pending: (batch, unit), the last label as units, or zeros at first."""

    cell: Any
    pending: Tensor


class SharedOptions(EncoderOptions, total=False):
    """The options that all these learners have; `RecurrentLearner` explains them and gives the defaults.

    A learner's constructor lists its own options and passes these on: `**shared: Unpack[SharedOptions]`.
    """

    labels: Labels


class RecurrentLearner(EncoderLearner):
    """An encoder of images, a cell, and a linear read-out; subclasses choose the cell.

    labels: see `Learner`.
    """

    label_equivariant: ClassVar[bool] = False

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        cell: Callable[[int, int], Cell],
        labels: Labels = "one_hot",
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        """cell: makes one, given how many features an image has and how many units a label."""
        super().__init__(image_shape, way, **encoder)
        units = label_units(labels, way)
        made = cell(self.feature_size, units)  # first, as its weights come in what a seed gives
        self.build_encoder()
        self.labels = labels
        self.fixed_way = labels == "one_hot"
        self.cell = made
        self.has_memory = isinstance(made, WatchedCell)
        self.output = nn.Linear(made.output_size, units)

    def start(self, batch: int, way: int) -> RecurrentState:
        """Raises LearnerError for another way than the learner was built for."""
        if reason := self.way_refusal(way):
            raise LearnerError(reason)
        return RecurrentState(
            self.cell.start(batch), self.output.weight.new_zeros(batch, self.output.out_features)
        )

    def observe_features(self, state: RecurrentState, features: Tensor, label: Tensor) -> RecurrentState:
        return self._run(state, features.unsqueeze(1), label.unsqueeze(1))[1]

    def predict_features(self, state: RecurrentState, features: Tensor) -> Tensor:
        logits: Tensor = self.output(self.cell.ask(state.cell, features, state.pending))
        return logits

    def adapt_features(self, support: Support) -> RecurrentState:
        if self.labels == "string":
            raise LearnerError(
                f"{type(self).__name__} reads strings, and a support set has none: show it streams"
            )
        state = self.start(len(support.images), support.way)
        return self._run(state, support.images, support.labels)[1]

    def stream_features(self, batch: StreamBatch) -> Tensor:
        state = self.start(len(batch.images), batch.way)
        logits: Tensor = self.output(self._run(state, batch.images, self.shown(batch))[0])
        return logits

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """The mean cross-entropy of all answers, in nats; that of a string is the sum over its letters.

        On streams the encoder's own loss is added, if asked for.
        """
        if not isinstance(batch, StreamBatch):
            return super().loss(batch)
        features = self.embed(batch.images)
        logits = self.stream_features(batch._replace(images=features))
        if self.labels == "one_hot":
            answers = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        else:
            answers = LETTERS * F.cross_entropy(logits.reshape(-1, VALUES), self.shown(batch).flatten())
        if self.metric_weight:
            answers = answers + self.metric_weight * across_episodes_loss(features, batch)
        return answers

    def watch_features(self, batch: StreamBatch) -> tuple[Tensor, Watch]:
        if not isinstance(self.cell, WatchedCell):
            return super().watch_features(batch)
        state = self.start(len(batch.images), batch.way)
        _, previous = self._units(state, self.shown(batch))
        outputs, watch = self.cell.watch(state.cell, batch.images, previous)
        logits: Tensor = self.output(outputs)
        return logits, watch

    def _run(self, state: RecurrentState, features: Tensor, labels: Tensor) -> tuple[Tensor, RecurrentState]:
        """Go through features (batch, step, feature), labels (batch, step): outputs, and the state then.

        labels: (batch, step, letter) where they are strings.
        """
        shown, previous = self._units(state, labels)
        outputs, cell = self.cell(state.cell, features, previous)
        return outputs, RecurrentState(cell, shown[:, -1])

    def _units(self, state: RecurrentState, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Labels as units, (batch, step, unit), and those that come in at each step, one step late."""
        units = (
            F.one_hot(labels, self.way) if self.labels == "one_hot" else F.one_hot(labels, VALUES).flatten(-2)
        )
        shown = units.to(state.pending.dtype)
        return shown, torch.cat([state.pending.unsqueeze(1), shown[:, :-1]], dim=1)
