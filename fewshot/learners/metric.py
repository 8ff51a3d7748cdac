"""Learners by distance: an image is named by its score with each class, the greater the nearer.

In a stream, a learner by distance knows nothing of a label that it has not been shown. All such labels
share one "new" score: an image further than that from every class seen is taken for a new one. The score
is calibrated once, on validation classes (design decision 3); in K-shot every class is seen and it is never
used.

To write your own, give a `new_score`, `start`, `embed`, `observe_features` and `scores`.

Beside them is what any encoder can learn by distance from all streams of a batch, `across_episodes_loss`.
"""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, some_episodes
from fewshot.learners.base import State, name_in_turn
from fewshot.learners.embedding import EmbeddingLearner, embed_in_parts

NEW_COSINE = 0.4
"""Where scores are cosines times a sharpness, the new score before calibration is that of this cosine."""

EPISODES_AT_ONCE = 8
"""In calibration: so many streams are scored side by side, to bound the memory."""


class MetricLearner(EmbeddingLearner):
    """A learner that answers by scores; a score of -inf says that a class was not seen.

    new_score: a scalar, a buffer or, where training is to learn it first, a parameter.
    metric_weight: how much `across_episodes_loss` of the features weighs beside the answers' loss in training
        on streams; an option may decide it.
    """

    new_score: Tensor
    metric_weight: float = 0.0

    @abstractmethod
    def scores(self, state: State, features: Tensor) -> Tensor:
        """(batch, image, feature) -> (batch, image, way); -inf for a class not seen."""

    def stream_scores(self, batch: StreamBatch) -> Tensor:
        """The scores of each image before its label is shown: (batch, length, way). The images are features.

        Override it for speed only.
        """
        start = self.start(len(batch.images), batch.way)
        return name_in_turn(self.scores, self.observe_features, start, batch.images, batch.labels)

    def logits(self, scores: Tensor) -> Tensor:
        """The scores, with the shared one in place of those of classes not seen."""
        return torch.where(scores == -torch.inf, self.new_score, scores)

    def predict_features(self, state: State, features: Tensor) -> Tensor:
        return self.logits(self.scores(state, features))

    def stream_features(self, batch: StreamBatch) -> Tensor:
        return self.logits(self.stream_scores(batch))

    def loss(self, batch: EpisodeBatch) -> Tensor:
        """The mean `loss_of_scores` of all answers; support and queries are normalised as one batch."""
        features = self.embed(all_images(batch))
        loss = self.loss_of_features(features, batch)
        if self.metric_weight and not isinstance(batch, KShotBatch):
            loss = loss + self.metric_weight * across_episodes_loss(features, batch)
        return loss

    def loss_of_features(self, features: Tensor, batch: EpisodeBatch) -> Tensor:
        """The mean `loss_of_scores` of all answers, from the features of `all_images`."""
        if not isinstance(batch, KShotBatch):
            return self.loss_of_scores(self.stream_scores(batch._replace(images=features)), batch.labels)
        support = batch.support
        shown, asked = features.tensor_split([support.images.shape[1]], dim=1)
        state = self.adapt_features(support._replace(images=shown))
        return self.loss_of_scores(self.scores(state, asked), batch.query_labels)

    def loss_of_scores(self, scores: Tensor, labels: Tensor) -> Tensor:
        """By default the mean cross-entropy, in nats. scores: (batch, image, way); labels: (batch, image)."""
        return F.cross_entropy(self.logits(scores).flatten(0, 1), labels.flatten())

    @torch.no_grad()
    def calibrate(self, batch: StreamBatch) -> None:
        """Choose the new score with which these streams are answered best."""
        embedded = batch._replace(images=embed_in_parts(self, batch.images))
        starts = range(0, len(batch.labels), EPISODES_AT_ONCE)
        parts = (some_episodes(embedded, slice(start, start + EPISODES_AT_ONCE)) for start in starts)
        scores = torch.cat([self.stream_scores(part) for part in parts])
        self.new_score.copy_(best_new_score(scores, batch))


def all_images(batch: EpisodeBatch) -> Tensor:
    """Whatever a batch shows, support before queries: (batch, image, channel, height, width)."""
    if isinstance(batch, KShotBatch):
        return torch.cat([batch.support.images, batch.query_images], dim=1)
    return batch.images


SHARPNESS = 16.0
"""Of `across_episodes_loss`, for squared distances per feature, by which two unlike images lie about 2 apart.
16 was the first value tried."""


def squared_distances(points: Tensor, others: Tensor) -> Tensor:
    """Squared Euclidean distances: (..., point, feature), (..., other, feature) -> (..., point, other).

    By |a|² - 2 a·b + |b|², that is, by one matrix product.
    """
    lengths = points.square().sum(-1).unsqueeze(-1) + others.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * points @ others.mT).clamp(min=0)


def cosines(points: Tensor, others: Tensor) -> Tensor:
    """(..., point, feature), (..., other, feature) -> (..., point, other); 0 to a vector of zeros."""
    return F.normalize(points, dim=-1) @ F.normalize(others, dim=-1).mT


def counts_before(labels: Tensor, way: int) -> Tensor:
    """How often each label was shown before each step: (batch, length) -> (batch, length, way) int64."""
    shown = F.one_hot(labels, way)
    return shown.cumsum(1) - shown


def best_of_class(similarity: Tensor, labels: Tensor, way: int) -> Tensor:
    """The greatest similarity to any image of each class, -inf where there is none.

    similarity: (batch, image, stored); labels: (batch, stored) -> (batch, image, way).
    """
    none = similarity.new_full((*similarity.shape[:2], way), -torch.inf)
    return none.scatter_reduce(2, labels.unsqueeze(1).expand_as(similarity), similarity, "amax")


def soft_best_of_class(similarity: Tensor, labels: Tensor, way: int) -> Tensor:
    """The log of the summed exp(similarity) to all images of each class, -inf where there is none.

    similarity: (batch, image, stored); labels: (batch, stored) -> (batch, image, way).
    """
    best = best_of_class(similarity.detach(), labels, way)
    none = best == -torch.inf
    index = labels.unsqueeze(1).expand_as(similarity)
    shares = torch.exp(similarity - best.masked_fill(none, 0).gather(2, index))
    return best + torch.zeros_like(best).scatter_add(2, index, shares).masked_fill(none, 1).log()


def across_episodes_loss(features: Tensor, batch: StreamBatch) -> Tensor:
    """What an encoder learns from all streams of a batch at once: a scalar, in nats.

    Each image but the first of its class is asked which class of the whole batch it belongs to, by its
    distance to their first images: one-shot prototypes (Snell et al. 2017) of batch * way classes, where a
    stream alone tells `way` apart. A class that two streams share counts as two, which is rare. 0 where no
    class comes twice, so that no image is asked.
    features: (batch, length, feature), of about unit variance.
    """
    batch, size = batch.links, features.shape[-1]
    streams = len(batch.labels)
    features = features.reshape(*batch.labels.shape, size)
    labels = batch.labels + batch.way * torch.arange(streams, device=features.device).unsqueeze(1)
    first = batch.presentation == 1
    classes = streams * batch.way
    prototypes = features.new_zeros(classes, size).index_copy(0, labels[first], features[first])
    asked = labels[~first]
    scores = -SHARPNESS / size * squared_distances(features[~first], prototypes)
    shown = torch.bincount(labels[first], minlength=classes) > 0  # by chance a class may never come up
    scores = scores.masked_fill(~shown, -torch.inf)
    return F.cross_entropy(scores, asked, reduction="sum") / max(len(asked), 1)


def best_new_score(scores: Tensor, batch: StreamBatch) -> Tensor:
    """The new score with which the streams are answered best: a scalar.

    scores: (batch, length, way), anything where a class is not seen yet. An image whose best score lies
    below the new one is answered by a label not seen yet, which is right in 1 of `unseen` cases if the class
    is indeed new. Sorting the images by their best score makes every threshold a prefix, and the best one
    the prefix of greatest gain.
    """
    counts = counts_before(batch.labels, batch.way)
    scores = scores.masked_fill(counts == 0, -torch.inf)
    unseen = (counts == 0).sum(-1)
    open_question = (unseen > 0) & (unseen < batch.way)
    best, answer = scores.max(-1)
    gain_if_new = (batch.presentation == 1) / unseen.clamp(min=1) - (answer == batch.labels).float()

    ordered, order = best[open_question].sort()
    if len(ordered) == 0:
        return scores.new_zeros(())
    gain = torch.cat([gain_if_new.new_zeros(1), gain_if_new[open_question][order].cumsum(0)])
    cut = int(gain.argmax())
    below, above = ordered[max(cut - 1, 0)], ordered[min(cut, len(ordered) - 1)]
    if cut == 0:
        return below - 1
    if cut == len(ordered):
        return above + 1
    return (below + above) / 2
