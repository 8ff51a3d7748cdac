"""The control without any memory: a feedforward network over (embedding, previous label).

Santoro et al. 2016 have it among their baselines, on pixels (widths=()); its size is not stated, and one
hidden layer is our choice. Of an episode it knows the label shown last and nothing else, which helps little
more than guessing: were it far above chance, labels would leak.
"""

from typing import ClassVar, Literal

from fewshot.episodes.labels import Labels, label_units
from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.cell import FeedforwardCell


class Feedforward(RecurrentLearner):
    """A hidden layer over (embedding, previous label)."""

    batch_norm: ClassVar[Literal["none", "frozen", "batch"]] = "frozen"

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
        metric_weight: float = 0.0,
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(1, hidden_size=hidden_size)
        size = feature_size(image_shape, widths, embedding_size)
        cell = FeedforwardCell(size, label_units(labels, way), hidden_size=hidden_size)
        encoder, backbone_name = image_encoder(
            image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm
        )
        super().__init__(
            image_shape, way, encoder=encoder, cell=cell, metric_weight=metric_weight, labels=labels
        )
        self.backbone_name = backbone_name
