"""The memory module of Kaiser et al. 2017, behind the encoder of `Mann`: see `fewshot.memory.key_value`.

An image is answered by the value of the nearest key. For a score of every label, as all learners give one,
the score of a label is the cosine of its nearest key; a label without a slot (never seen, or its slots all
overwritten) has the "new" score of `fewshot.learners.metric`.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch
from fewshot.errors import LearnerError
from fewshot.learners.encoder import EncoderLearner, EncoderOptions
from fewshot.learners.metric import MetricLearner, best_of_class
from fewshot.learners.options import check_at_least
from fewshot.memory.attribution import Watch, watched
from fewshot.memory.external import Access
from fewshot.memory.key_value import (
    Change,
    KeyValueState,
    at,
    change,
    initial_state,
    margin_loss,
    similarity,
    update,
    usage,
)


class KeyValue(EncoderLearner, MetricLearner):
    """A key-value memory with ages; inductive, batch norm frozen, any way and shot.

    margin: by how much the nearest right key should be nearer than the nearest wrong one.
    """

    has_memory = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        num_slots: int = 128,
        margin: float = 0.1,
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        super().__init__(image_shape, way, **encoder)
        check_at_least(1, num_slots=num_slots)
        self.build_encoder()
        if self.backbone_name is None:
            raise LearnerError(
                "widths must name a convolution block or more: with bare pixels there is nothing to train"
            )
        if margin < 0:
            raise LearnerError(f"margin must be at least 0; got {margin}")
        self.num_slots, self.margin = num_slots, margin
        self.register_buffer("new_score", torch.tensor(0.5))

    def start(self, batch: int, way: int) -> KeyValueState:
        return initial_state(
            batch, num_slots=self.num_slots, key_size=self.feature_size, value_size=way, like=self.new_score
        )

    def observe_features(self, state: KeyValueState, features: Tensor, label: Tensor) -> KeyValueState:
        return update(state, *_pair(state, features, label))

    def scores(self, state: KeyValueState, features: Tensor) -> Tensor:
        cosines = similarity(state, F.normalize(features, dim=-1))
        return best_of_class(cosines, state.values.argmax(-1), state.values.shape[-1])

    def loss_of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        return margin_loss(scores, labels, self.margin)

    def watch_features(self, batch: StreamBatch) -> tuple[Tensor, Watch]:
        """The nearest slot is read, whole, and none where the answer is a label without a slot."""
        state = self.start(len(batch.labels), batch.way)
        nothing = state.keys.new_zeros(len(batch.labels))
        made = Change(slot=nothing.long(), written=nothing, kept=nothing + 1)
        logits, accesses = [], []
        for features, label in zip(batch.images.unbind(1), batch.labels.unbind(1), strict=True):
            query, value = _pair(state, features, label)
            logits.append(self.predict_features(state, features.unsqueeze(1)).squeeze(1))
            best, nearest = similarity(state, query.unsqueeze(1)).squeeze(1).max(-1)
            read = (best >= logits[-1].amax(-1)).to(query)
            accesses.append(_access(state, made, nearest, read))
            made, state = change(state, query, value), update(state, query, value)
        return torch.stack(logits, dim=1), watched(accesses, self.num_slots)


def _access(state: KeyValueState, made: Change, nearest: Tensor, read: Tensor) -> Access:
    """A step of one head for each, which touch one slot; the state is that after the change."""

    def of_head(numbers: Tensor) -> Tensor:
        return numbers.view(-1, 1, 1)

    return Access(
        reads=of_head(read) * at(state.keys, nearest).unsqueeze(1),
        state=state,
        read_weights=of_head(read),
        write_weights=of_head(made.written),
        usage=usage(state),
        read_slots=of_head(nearest),
        write_slots=of_head(made.slot),
        kept=of_head(made.kept),
    )


def _pair(state: KeyValueState, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The query of an image and the value of its label, as they are stored: (batch, feature), (batch,)."""
    return F.normalize(features, dim=-1), F.one_hot(label, state.values.shape[-1]).to(features)
