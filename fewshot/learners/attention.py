"""A transformer over all that was shown, the modern reference: see `fewshot.memory.attention`.

It has the encoder of `Mann`, and labels come to it as they do there, one step late.
"""

from typing import ClassVar, Literal

from fewshot.episodes.labels import Labels, label_units
from fewshot.errors import LearnerError
from fewshot.learners.backbones import Downsample, feature_size, image_encoder
from fewshot.learners.options import check_at_least
from fewshot.learners.recurrent import RecurrentLearner
from fewshot.memory.attention import AttentionCell


class Attention(RecurrentLearner):
    """Attention over the stored pairs.

    tie: whether an image is looked up with the key that it will be stored under.
    """

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
        hidden_size: int = 128,
        num_layers: int = 2,
        read_heads: int = 4,
        tie: bool = True,
        metric_weight: float = 0.0,
        labels: Labels = "one_hot",
    ) -> None:
        check_at_least(1, hidden_size=hidden_size, num_layers=num_layers, read_heads=read_heads)
        if hidden_size % read_heads:
            raise LearnerError(
                f"hidden_size must be a multiple of read_heads, which share it; got {hidden_size} and "
                f"{read_heads}"
            )
        cell = AttentionCell(
            feature_size(image_shape, widths, embedding_size),
            label_units(labels, way),
            hidden_size=hidden_size,
            num_layers=num_layers,
            read_heads=read_heads,
            tie=tie,
        )
        encoder, backbone_name = image_encoder(
            image_shape, widths, embedding_size, downsample=downsample, batch_norm=batch_norm
        )
        super().__init__(
            image_shape, way, encoder=encoder, cell=cell, metric_weight=metric_weight, labels=labels
        )
        self.backbone_name = backbone_name
