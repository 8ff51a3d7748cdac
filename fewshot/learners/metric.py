"""What learners by distance share: scores of classes not seen yet, the distance itself, a loss for encoders.

In a stream, a learner by distance knows nothing of a label that it has not been shown. All such labels
share one "new" score: an image further than that from every class seen is taken for a new one. The score
is calibrated once, on validation classes (design decision 3); in K-shot every class is seen and it is never
used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import StreamBatch

SHARPNESS = 16.0
"""Of `across_episodes_loss`, for squared distances per feature, by which two unlike images lie about 2 apart.
16 was the first value tried."""


def squared_distances(points: Tensor, others: Tensor) -> Tensor:
    """Squared Euclidean distances: (..., point, feature), (..., other, feature) -> (..., point, other).

    By |a|² - 2 a·b + |b|², that is, by one matrix product.
    """
    lengths = points.square().sum(-1).unsqueeze(-1) + others.square().sum(-1).unsqueeze(-2)
    return (lengths - 2 * points @ others.mT).clamp(min=0)


def counts_before(labels: Tensor, way: int) -> Tensor:
    """How often each label was shown before each step: (batch, length) -> (batch, length, way) int64."""
    shown = F.one_hot(labels, way)
    return shown.cumsum(1) - shown


def with_new_score(scores: Tensor, counts: Tensor, new_score: Tensor) -> Tensor:
    """The scores, with the shared one in place of those of classes never seen.

    scores: (batch, image, way); counts: (batch, image or 1, way), how often each class was seen.
    """
    return torch.where(counts > 0, scores, new_score)


def across_episodes_loss(features: Tensor, batch: StreamBatch) -> Tensor:
    """What an encoder learns from all streams of a batch at once: a scalar, in nats.

    Each image but the first of its class is asked which class of the whole batch it belongs to, by its
    distance to their first images: one-shot prototypes (Snell et al. 2017) of batch * way classes, where a
    stream alone tells `way` apart. A class that two streams share counts as two, which is rare.
    features: (batch, length, feature), of about unit variance.
    """
    batch, size = batch.links, features.shape[-1]
    streams = len(batch.labels)
    features = features.reshape(*batch.labels.shape, size)
    labels = batch.labels + batch.way * torch.arange(streams, device=features.device).unsqueeze(1)
    first = batch.presentation == 1
    classes = streams * batch.way
    prototypes = features.new_zeros(classes, size).index_copy(0, labels[first], features[first])
    scores = -SHARPNESS / size * squared_distances(features[~first], prototypes)
    shown = torch.bincount(labels[first], minlength=classes) > 0  # by chance a class may never come up
    scores = scores.masked_fill(~shown, -torch.inf)
    return F.cross_entropy(scores, labels[~first])


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
