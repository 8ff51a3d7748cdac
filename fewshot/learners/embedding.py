"""Learners that see of each image only its features, so that images asked often are embedded once.

In evaluation such features depend on nothing but the image's own pixels: not on the episode, not on its
neighbours in a batch (batch norm "frozen" or "none"). Ten thousand test episodes show some eight thousand
drawings eight hundred thousand times, so `fewshot.evaluate` embeds each drawing once and answers from what
it kept; answers are the same but for rounding, and `fewshot.check_learner` holds the two together.

To write your own, give `start`, `embed`, `observe_features` and `predict_features`; or have the backbone of a
`BackboneLearner` for `embed`.
"""

from abc import abstractmethod
from typing import ClassVar, TypedDict

import torch
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.errors import LearnerError
from fewshot.learners.backbones import CONV, Backbone, BatchNormMode
from fewshot.learners.base import Learner, State, name_in_turn, observe_in_turn
from fewshot.learners.views import Views, mean_over_views
from fewshot.memory.attribution import Watch

PIXELS_AT_ONCE = 2**17
"""Pixels (height x width) embedded side by side: a layer of 64 float32 channels then takes 32 megabytes. On a
CPU core, 8 times as many were no faster, and a tenth a fifth slower."""


class EmbeddingLearner(Learner):
    """A `Learner` whose answers are a function of each image's features.

    The methods named *_features are those of `Learner` with features where it has images: in a `Support`,
    `KShotBatch` or `StreamBatch` too, the images are then (batch, image, feature).

    has_memory: whether it stores what it is shown in slots that `watch_features` can look into; an option may
        decide it.
    """

    has_memory: bool = False

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """(..., channel, height, width) -> (..., feature), in evaluation each image by itself."""

    @abstractmethod
    def observe_features(self, state: State, features: Tensor, label: Tensor) -> State:
        """Learn one labelled image per episode. features: (batch, feature); label: (batch,)."""

    @abstractmethod
    def predict_features(self, state: State, features: Tensor) -> Tensor:
        """Name images without learning from them: (batch, image, feature) -> logits (batch, image, way)."""

    def adapt_features(self, support: Support) -> State:
        """The state after the whole support set; by default, its images observed in their order."""
        start = self.start(len(support.images), support.way)
        return observe_in_turn(self.observe_features, start, support.images, support.labels)

    def stream_features(self, batch: StreamBatch) -> Tensor:
        """Name each image, then be shown its label: (batch, length, way) logits."""
        start = self.start(len(batch.images), batch.way)
        return name_in_turn(
            self.predict_features, self.observe_features, start, batch.images, self.shown(batch)
        )

    def answer_features(self, batch: EpisodeBatch) -> Tensor:
        """Logits for all that is asked: (batch, way * query, way) or (batch, length, way)."""
        if isinstance(batch, KShotBatch):
            return self.predict_features(self.adapt_features(batch.support), batch.query_images)
        return self.stream_features(batch)

    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        return self.observe_features(state, self.embed(image), label)

    def predict(self, state: State, images: Tensor) -> Tensor:
        return self.predict_features(state, self.embed(images))

    def adapt(self, support: Support) -> State:
        self.check_images(support.images.shape, support.images.dtype, windows=self.training)
        return self.adapt_features(support._replace(images=self.embed(support.images)))

    def stream(self, batch: StreamBatch) -> Tensor:
        return self.stream_features(batch._replace(images=self.embed(batch.images)))

    def watch_features(self, batch: StreamBatch) -> tuple[Tensor, Watch]:
        """`stream_features`, and what the memory did at each step; what step t stores is image t - 1.

        A step begins with what the label of the image before makes known, and then reads to name its own
        image. Raises LearnerError where there is no memory.
        """
        raise LearnerError(f"{type(self).__name__} has no memory to look into: watch a learner that has one")

    @property
    def answers_from_features(self) -> bool:
        """Whether answers to images are those to their features: not where one of these does otherwise."""
        ways = ("observe", "predict", "adapt", "stream", "answer")
        own = (getattr(getattr(self, way), "__func__", None) for way in ways)
        return all(found is getattr(EmbeddingLearner, way) for way, found in zip(ways, own, strict=True))


class BackboneOptions(TypedDict, total=False):
    """The options of every `BackboneLearner`, which explains them and gives the defaults.

    A learner's constructor lists its own options and passes these on: `**shared: Unpack[BackboneOptions]`.
    """

    widths: tuple[int, ...]
    backbone: Backbone
    views: Views


class BackboneLearner(EmbeddingLearner):
    """A learner whose features are those of a backbone, batch norm frozen. It comes before whatever
    else a learner is: `class Ridge(BackboneLearner, StoringLearner)`.

    feature_size: how many features `embed` gives; a learner that makes others of them says so.
    """

    batch_norm: BatchNormMode = "frozen"
    added_options: ClassVar[frozenset[str]] = frozenset({"backbone", "views"})

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        widths: tuple[int, ...] = (64, 64, 64, 64),
        backbone: Backbone = CONV,
        views: Views = 1,
        halvings: int | None = None,
    ) -> None:
        """widths, halvings: of convolution blocks, see `ConvBackbone`; nothing to other backbones.

        views: of so many moved copies of an image the features are averaged when answering, see
        `fewshot.learners.views`; training takes the image alone.
        """
        super().__init__(image_shape, way)
        self.views = views
        self.backbone = backbone.build(image_shape, widths, halvings=halvings)
        self.backbone_name = self.backbone.name
        self.smallest_window = self.backbone.smallest_window
        self.feature_size = self.backbone.output_size

    def embed(self, images: Tensor) -> Tensor:
        return mean_over_views(self.backbone, images, 1 if self.training else self.views)


def embed_in_parts(learner: EmbeddingLearner, images: Tensor) -> Tensor:
    """`embed` of a learner in evaluation mode, without gradients, in little memory however many images."""
    parts = torch.split(images.flatten(0, -4), images_at_once(learner.image_shape))
    with torch.inference_mode():
        features = [learner.embed(part) for part in parts]
    # Joined outside of inference mode, so that what comes out may take part in gradients of other things.
    return torch.cat(features).view(*images.shape[:-3], features[0].shape[1])


def images_at_once(image_shape: tuple[int, int, int]) -> int:
    """How many images to embed side by side in evaluation."""
    _, height, width = image_shape
    return max(1, PIXELS_AT_ONCE // (height * width))
