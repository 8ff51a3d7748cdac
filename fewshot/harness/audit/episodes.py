"""Guards on episodes as integers: which class, which image, which label."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot.episodes.source import EpisodeIndices, EpisodeSource
from fewshot.harness.audit.chance import FALSE_ALARM_RATE, chance_of_mean
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
    """Nothing tells the label of a class beforehand: each permutation is equally likely in each episode.

    Two guessers find what repositories do, numbering classes in the order of their ids, and giving a class
    its label once and for all, or for many episodes: one guesses by a class's rank in its episode, one by the
    class itself. class_ids: (episode, way), for each way that there is.
    """
    episodes = np.array([len(ids) for ids in class_ids])
    weights = episodes / episodes.sum()
    chance_level = float(weights @ [1 / ids.shape[1] for ids in class_ids])
    lowest = float(weights @ [(ids.argmin(axis=1) == 0).mean() for ids in class_ids])
    by_class = float(weights @ [guessed(ids) for ids in class_ids])
    by_rank = float(weights @ [guessed(ids.argsort(axis=1).argsort(axis=1)) for ids in class_ids])
    surprise = chance_of_mean(max(by_class, by_rank), chance_level, int(episodes.sum()))
    chance = min(1.0, 2 * surprise)
    return Finding(
        "labels are permuted afresh",
        subject,
        chance >= FALSE_ALARM_RATE,
        f"label 0 is the lowest class in {100 * lowest:.1f} % of {episodes.sum():,} episodes; labels guessed "
        f"by class {100 * by_class:.1f} %, by rank {100 * by_rank:.1f} % (chance {100 * chance_level:.1f} %)",
        PERMUTE,
        chance,
    )


def guessed(keys: Ids) -> float:
    """How often a label is the one that its key had most often in the episodes before, a fraction.

    keys: (episode, way), what stands behind each label. Where every permutation of labels is equally likely
    in each episode, this is 1 / way on average, whatever came before.
    """
    _, position = np.unique(keys, return_inverse=True)
    position = position.reshape(keys.shape)
    way = keys.shape[1]
    times = np.zeros((int(position.max()) + 1, way), dtype=np.int64)
    labels = np.arange(way)
    right = 0
    for classes in position:
        right += int((times[classes].argmax(axis=1) == labels).sum())
        times[classes, labels] += 1
    return right / keys.size
