"""The control experiment: the memory-augmented network's encoder and LSTM, without a memory.

Santoro et al. 2016 compare with it, on pixels (widths=()); what the memory adds is the difference to `Mann`
at equal budgets. With skip the read-out sees the image's features beside what the LSTM shows, as it would see
a memory's reads: then what is missing is the memory alone.
"""

from typing import ClassVar, Literal

from fewshot.episodes.labels import Labels, label_units
from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import LstmCell


class Lstm(RecurrentLearner):
    """An LSTM over (embedding, previous label)."""

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"
    added_options: ClassVar[frozenset[str]] = frozenset({"skip", "metric_weight", "labels"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (32, 32, 64),
        downsample: Downsample = "stride",
        batch_norm: Literal["none", "frozen"] = "frozen",
        embedding_size: int = 64,
        hidden_size: int = 200,
        skip: bool = False,
        metric_weight: float = 0.0,
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(1, hidden_size=hidden_size)
        size = feature_size(image_shape, widths, embedding_size)
        cell = LstmCell(size, label_units(labels, way), hidden_size=hidden_size, skip=skip)
        encoder, backbone_name = image_encoder(
            image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm
        )
        super().__init__(
            image_shape, way, encoder=encoder, cell=cell, metric_weight=metric_weight, labels=labels
        )
        self.backbone_name = backbone_name
