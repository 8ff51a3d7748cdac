"""From logits to the label that an answer names: the code book between outputs and labels."""

import torch
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, KShotBatch
from fewshot.episodes.labels import LETTERS, VALUES
from fewshot.learners.base import Learner
from fewshot.learners.metric import counts_before


def named_labels(learner: Learner, batch: EpisodeBatch, logits: Tensor) -> Tensor:
    """The labels that a learner's logits name: (batch, asked) int64, -1 for none of the episode's.

    A label is that of the largest logit, the lowest of equals. Where labels are strings, a learner of strings
    names the class of the link that has all five of its letters; any other learner names by pointing at what
    it has been shown, and so none where it points at a label that was not shown yet in the link.
    """
    if isinstance(batch, KShotBatch) or batch.codes is None:
        return logits.argmax(-1)
    if batch.chain > 1:
        links = batch.links
        each = logits.reshape(*links.labels.shape, -1)
        return named_labels(learner, links, each).reshape(batch.labels.shape)
    if learner.labels == "string":
        letters = logits.reshape(*logits.shape[:-1], LETTERS, VALUES).argmax(-1)
        has_all = (letters.unsqueeze(2) == batch.codes.unsqueeze(1)).all(-1)
        return torch.where(has_all.any(-1), has_all.int().argmax(-1), -1)
    named = logits.argmax(-1)
    times_shown = counts_before(batch.labels, batch.way).gather(2, named.unsqueeze(-1)).squeeze(-1)
    return torch.where(times_shown > 0, named, -1)
