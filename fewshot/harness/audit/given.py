"""The guards on episodes that somebody else's library made: an iterator of support and query batches.

Only what can be seen from outside is asked: pixels, labels, and the ids of the classes behind the labels.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewshot.data.split import upright_name
from fewshot.episodes.batch import KShotBatch
from fewshot.errors import EpisodeError, check_kind
from fewshot.harness.audit.episodes import labels_are_permuted
from fewshot.harness.audit.finding import Finding

GivenEpisode = tuple[Any, Any, Any, Any, Any] | KShotBatch
"""support_images (image, ...), support_labels (image,), query_images, query_labels, class_ids (way,): arrays,
tensors or lists; class_ids[label] is the class behind a label, a number or a name. Or batches of episodes,
all of it with one more axis in front; such as ours."""


class _Episode(NamedTuple):
    support_images: NDArray[Any]
    support_labels: NDArray[np.integer]
    query_images: NDArray[Any]
    query_labels: NDArray[np.integer]
    class_ids: NDArray[Any]


def audit_episodes(
    episodes: Iterable[GivenEpisode], *, test_classes: Collection[Any] | None = None
) -> list[Finding]:
    """Hold somebody else's episodes against the guards; print the findings to read them.

    episodes: each (support_images, support_labels, query_images, query_labels, class_ids), as `GivenEpisode`
        says; a few hundred. test_classes: ids of the classes that must not be among them, where they are to
        train on; a turned class ("name@90") is its parent's.

    Raises EpisodeError where there are none, and where one does not fit together.
    """
    total = shared = images = of_test = 0
    class_ids: dict[int, list[NDArray[Any]]] = defaultdict(list)
    unseen = {_parent(name) for name in test_classes or ()}
    met: set[Any] = set()
    for episode in _episodes(episodes):
        total += 1
        shared += _shares_an_image(episode)
        class_ids[len(episode.class_ids)].append(episode.class_ids)
        labels = np.concatenate([episode.support_labels, episode.query_labels])
        parents = [_parent(name) for name in episode.class_ids.tolist()]
        images += len(labels)
        of_test += sum(parents[label] in unseen for label in labels.tolist())
        met |= unseen & set(parents)
    if not total:
        raise EpisodeError("there are no episodes to audit: the iterator is empty or used up")
    subject = f"{total:,} episodes"
    findings = [
        Finding(
            "no image is in both support and query",
            subject,
            not shared,
            f"{shared or 'no'} episodes have one, pixel by pixel",
            "draw the images of each class of an episode without replacement",
        ),
        labels_are_permuted(subject, [np.stack(same_way) for same_way in class_ids.values()]),
    ]
    if test_classes is not None:
        seen = f"{100 * of_test / images:.1f} % of the images are of {len(met):,} test classes"
        remedy = "draw training episodes from the training classes alone"
        findings.append(Finding("no class is a test class", subject, not of_test, seen, remedy))
    return findings


def _episodes(given: Iterable[GivenEpisode]) -> Iterator[_Episode]:
    """Each episode by itself, as arrays that fit together."""
    check_kind("episodes", given, Iterable, "give an iterator of episodes, as sampler.batches(0, 300, 16)")
    for number, parts in enumerate(given):
        if isinstance(parts, KShotBatch):
            parts = (parts.support.images, parts.support.labels, *parts[1:])
        check_kind(f"item {number}", parts, (tuple, list), f"an episode is ({', '.join(_Episode._fields)})")
        if len(parts) != len(_Episode._fields):
            raise EpisodeError(
                f"item {number} has {len(parts)} parts; an episode is ({', '.join(_Episode._fields)})"
            )
        arrays = [_array(name, part, number) for name, part in zip(_Episode._fields, parts, strict=True)]
        batched = arrays[1].ndim == 2
        for whole in zip(*arrays, strict=True) if batched else [arrays]:
            episode = _Episode(*whole)
            _check(episode, number)
            yield episode


def _array(name: str, given: Any, number: int) -> NDArray[Any]:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise EpisodeError(f"item {number}: {name} is no array: {' '.join(str(error).split())}") from None
    if not array.ndim or (name.endswith("labels") and array.size and array.dtype.kind not in "iu"):
        asked = "whole numbers from 0" if name.endswith("labels") else "one for each"
        raise EpisodeError(f"item {number}: {name} is {array.dtype} {list(array.shape)}: give {asked}")
    return array


def _check(episode: _Episode, number: int) -> None:
    for side in ("support", "query"):
        images, labels = getattr(episode, f"{side}_images"), getattr(episode, f"{side}_labels")
        if labels.ndim != 1 or len(images) != len(labels):
            raise EpisodeError(
                f"item {number}: {side}_images {list(images.shape)} and {side}_labels {list(labels.shape)} "
                "do not fit together: give (image, ...) and (image,), or both with a batch in front"
            )
        way = len(episode.class_ids)
        if len(labels) and not 0 <= labels.min() <= labels.max() < way:
            raise EpisodeError(
                f"item {number}: {side}_labels lie in {labels.min()}..{labels.max()}, and there are {way} "
                "class_ids: give the class behind each label, in the order of the labels"
            )


def _shares_an_image(episode: _Episode) -> bool:
    support = {np.ascontiguousarray(image).tobytes() for image in episode.support_images}
    return any(np.ascontiguousarray(image).tobytes() in support for image in episode.query_images)


def _parent(class_id: Any) -> Any:
    return upright_name(class_id) if isinstance(class_id, str) else class_id
