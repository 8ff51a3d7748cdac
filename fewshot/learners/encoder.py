"""What learners behind the encoder of `Mann` share: its options and its features."""

from functools import partial
from typing import ClassVar, Literal, TypedDict

from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.learners.backbones import (
    CONV,
    Backbone,
    Downsample,
    Embedding,
    feature_size,
    image_encoder,
)
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.views import Views, mean_over_views


class EncoderOptions(TypedDict, total=False):
    """The options of every `EncoderLearner`, which explains them and gives the defaults.

    A learner's constructor lists its own options and passes these on: `**encoder: Unpack[EncoderOptions]`.
    """

    widths: tuple[int, ...]
    downsample: Downsample
    batch_norm: Literal["none", "frozen"]
    embedding_size: int
    metric_weight: float
    backbone: Backbone
    views: Views


class EncoderLearner(EmbeddingLearner):
    """A learner whose features are those of `image_encoder`. It comes before whatever else a learner is:
    `class KeyValue(EncoderLearner, MetricLearner)`.

    widths, downsample, batch_norm, embedding_size, backbone: of the encoder, see `image_encoder`.
    metric_weight: how much `across_episodes_loss` of the features weighs beside the answers' loss in training
        on streams.
    views: of so many moved copies of an image the features are averaged when answering, see
        `fewshot.learners.views`.
    feature_size: how many features `embed` gives.
    """

    encoder: nn.Module
    metric_weight: float
    added_options: ClassVar[frozenset[str]] = frozenset({"backbone", "views"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (32, 32, 64),
        downsample: Downsample = "stride",
        batch_norm: Literal["none", "frozen"] = "frozen",
        embedding_size: int = 64,
        metric_weight: float = 0.0,
        backbone: Backbone = CONV,
        views: Views = 1,
    ) -> None:
        """The encoder is made by `build_encoder`, after whatever comes before it in what a seed gives."""
        super().__init__(image_shape, way)
        self.views = views
        self.feature_size = feature_size(image_shape, widths, embedding_size, backbone)
        self.metric_weight = metric_weight
        self._make_encoder = partial(
            image_encoder,
            image_shape,
            widths,
            embedding_size,
            downsample=downsample,
            batch_norm=batch_norm,
            backbone=backbone,
        )
        self.batch_norm = batch_norm

    def build_encoder(self) -> None:
        """Once, in the constructor of a learner.

        LearnerError for a negative metric_weight, and for one where the encoder has no weights.
        """
        self.encoder, self.backbone_name = self._make_encoder()
        if self.backbone_name is None:
            self.batch_norm = "none"
        if isinstance(self.encoder, Embedding):
            self.smallest_window = self.encoder.backbone.smallest_window
        trains = any(True for _ in self.encoder.parameters())
        if self.metric_weight < 0 or (self.metric_weight and not trains):
            raise LearnerError(
                "metric_weight must be at least 0, and 0 where pixels are the features (widths = []), as it "
                f"trains the encoder; got {self.metric_weight}"
            )

    def embed(self, images: Tensor) -> Tensor:
        return mean_over_views(self.encoder, images, 1 if self.training else self.views)
