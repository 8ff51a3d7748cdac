"""Training by classification over all training classes, as Chen et al. 2019 ("A Closer Look at Few-shot
Classification") and those after them train their encoders.

Every image of a batch, support, query or stream alike, is asked which of all training classes it is of: an
episode is no more than a mini-batch here, whose labels are not looked at. What differs from the papers: their
mini-batches are drawn image by image, ours hold as many images of each class that is in them.

| name            | equation                                     | shape                  |
|-----------------|----------------------------------------------|------------------------|
| feature         | f(x), the encoder's                          | (..., feature)         |
| linear scores   | W f(x) + b                                   | (..., class)           |
| cosine scores   | sharpness cos(w_c, f(x)), sharpness learned  | (..., class)           |
| loss            | mean cross-entropy of the scores, in nats    | number                 |

A class is known by its place among the training classes (`class_ids`). The classifier is of no use to new
classes, so that checkpoints leave it out (`Learner.training_only`).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch, KShotBatch
from fewshot.learners.metric import cosines
from fewshot.learners.options import check_at_least

CLASSES = 4400
"""Room in a classifier unless an option says otherwise: enough for each split of Omniglot, turned classes
counted. Rows of no class are soon never chosen."""

CLASSIFIER = frozenset({"classifier"})
"""What learners trained by classification name as `training_only`."""


class CosineClassifier(nn.Module):
    """Cosines of features to a learned vector of each class, times a learned sharpness.

    first_length: about how long a vector is before training; the longer, the more slowly it turns. None: the
        root of feature_size, as of entries of unit variance.
    """

    def __init__(
        self,
        feature_size: int,
        classes: int,
        sharpness: float = 10.0,
        first_length: float | None = None,
    ) -> None:
        super().__init__()
        scale = 1.0 if first_length is None else first_length / math.sqrt(feature_size)
        self.weight = nn.Parameter(scale * torch.randn(classes, feature_size))
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))

    def forward(self, features: Tensor) -> Tensor:
        """(..., feature) -> (..., class)."""
        return self.log_sharpness.exp() * cosines(features, self.weight)


def linear_classifier(feature_size: int, classes: int) -> nn.Linear:
    """Raises LearnerError unless there is a class."""
    check_at_least(1, classes=classes)
    return nn.Linear(feature_size, classes)


def all_class_ids(batch: EpisodeBatch) -> Tensor:
    """The class of each of a batch's `all_images`: (batch, image)."""
    if isinstance(batch, KShotBatch):
        return batch.class_ids.gather(1, torch.cat([batch.support.labels, batch.query_labels], dim=1))
    return batch.class_ids.gather(1, batch.places)


def classification_loss(classifier: nn.Module, features: Tensor, batch: EpisodeBatch) -> Tensor:
    """The mean cross-entropy in nats. features: (batch, image, feature), of the batch's `all_images`."""
    return F.cross_entropy(classifier(features).flatten(0, 1), all_class_ids(batch).flatten())
