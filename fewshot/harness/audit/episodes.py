"""Guards on episodes as integers: which class, which image, which label."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot.episodes.source import EpisodeIndices, EpisodeSource
from fewshot.harness.audit.chance import FALSE_ALARM_RATE, chance_of_labels, chance_of_mean
from fewshot.harness.audit.finding import Finding

PERMUTE = "give the classes of each episode their labels by a fresh random permutation"

Ids = NDArray[np.integer]
"""(episode, way): the class behind each label."""


def audit_source(subject: str, source: EpisodeSource, episodes: int) -> list[Finding]:
    """The guards on the first episodes of a source."""
    drawn = [source.indices(*span) for span in source.spans(0, episodes, episodes)]
    class_ids = [part.class_ids.reshape(-1, part.way).cpu().numpy() for part in drawn]
    return [
        no_image_comes_twice(subject, drawn),
        labels_are_those_of_the_images(subject, source, drawn),
        labels_are_permuted(subject, class_ids),
    ]


def no_image_comes_twice(subject: str, episodes: Iterable[EpisodeIndices]) -> Finding:
    """No image is in support and query, or returns in a link of a stream; turned, it is another image."""
    total = twice = 0
    for part in episodes:
        images = (4 * part.images + part.turns).reshape(len(part.labels) * part.chain, -1).sort(dim=1).values
        twice += int((images[:, 1:] == images[:, :-1]).any(dim=1).sum())
        total += len(images)
    return Finding(
        "no image is in both support and query",
        subject,
        not twice,
        f"{twice:,} of {total:,} episodes show one twice" if twice else f"none in {total:,} episodes",
        "draw the images of each class of an episode without replacement",
    )


def labels_are_those_of_the_images(
    subject: str, source: EpisodeSource, episodes: Iterable[EpisodeIndices]
) -> Finding:
    """The class behind an image's label is the image's own class, turned as the class is."""
    pool = source.pool
    first_of_next = pool.image_set.class_start[1:].contiguous()
    total = wrong = 0
    for part in episodes:
        length = part.labels.shape[1]
        link = torch.arange(length, device=part.labels.device) // (length // part.chain)
        said = part.class_ids.gather(1, link * part.way + part.labels).cpu()
        own = torch.searchsorted(first_of_next, part.images.cpu().contiguous(), right=True)
        strange = (pool.class_index[said] != own) | (pool.quarter_turns[said] != part.turns.cpu())
        wrong += int(strange.sum())
        total += strange.numel()
    return Finding(
        "a label is that of its image",
        subject,
        not wrong,
        f"{wrong:,} of {total:,} are another's" if wrong else f"all of {total:,}",
        "take labels and images in one order",
    )


def labels_are_permuted(subject: str, class_ids: Sequence[Ids]) -> Finding:
    """Each permutation of labels is equally likely: nothing tells a class's label beforehand.

    Two tests, which find what repositories do: numbering classes in the order of their ids, and one map from
    classes to labels for many episodes. class_ids: one array for each way.
    """
    lowest = np.concatenate([ids.argmin(axis=1) == 0 for ids in class_ids])
    expected = float(np.concatenate([np.full(len(ids), 1 / ids.shape[1]) for ids in class_ids]).mean())
    fraction = float(lowest.mean())
    in_order = chance_of_mean(fraction, expected, len(lowest))
    shared = min(chance_of_labels(label_counts(ids)) for ids in class_ids)
    chance = min(1.0, 2 * min(in_order, len(class_ids) * shared))
    seen = (
        f"label 0 is the lowest class in {100 * fraction:.1f} % of {len(lowest):,} episodes (by chance "
        f"{100 * expected:.1f} %)"
    )
    if chance < FALSE_ALARM_RATE and shared < in_order:
        seen += "; a class's labels are not equally frequent"
    return Finding("labels are permuted afresh", subject, chance >= FALSE_ALARM_RATE, seen, PERMUTE, chance)


def label_counts(class_ids: Ids) -> NDArray[np.int64]:
    """(class, label): in how many episodes the class has the label."""
    names, position = np.unique(class_ids, return_inverse=True)
    way = class_ids.shape[1]
    label = np.broadcast_to(np.arange(way), class_ids.shape)
    places = position.reshape(class_ids.shape) * way + label
    return np.bincount(places.ravel(), minlength=len(names) * way).reshape(len(names), way)
