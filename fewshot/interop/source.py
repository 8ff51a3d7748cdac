"""Tasks that another library draws, as numbered episodes of ours.

Those libraries draw from the global generators of Python, numpy and torch, so that a task depends on all that
was drawn before it. Here the generators are seeded for each episode from (episode seed, number), and left as
they were: episode i is the same whenever and however often it is asked for, and learners can be compared on
the same ones. `fewshot.evaluate` takes such a source, and `fewshot.audit_episodes` its batches. To train on
them is a loop of one's own over `learner.loss(batch)`: a run of `fewshot.train` is a function of data,
settings, learner and seed, and episodes from elsewhere are none of these.

What a task shows is left as the library's own transforms made it, normalisation included. Only the order of
its images is drawn anew, for both libraries give them class by class.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewshot.episodes.batch import KShotBatch, Support
from fewshot.episodes.hashing import key_of
from fewshot.episodes.protocol import KShot
from fewshot.episodes.source import check_range
from fewshot.errors import EpisodeError


class Task(NamedTuple):
    """One task, with support and query apart.

    support_images: (way * shot, channel, height, width); support_labels: (way * shot,) in 0..way-1;
    query_images, query_labels: as many of each class as one likes; class_ids: (way,), the class behind each
    label.
    """

    support_images: Tensor
    support_labels: Tensor
    query_images: Tensor
    query_labels: Tensor
    class_ids: Tensor


@dataclass(frozen=True, eq=False)
class TaskClasses:
    """The classes that a library draws from; `class_id` is a position among them.

    names: what the library calls each. class_index: (class,) int64, equal for a class and its turned copies.
    """

    names: tuple[Hashable, ...]
    class_index: Tensor

    @cached_property
    def id_of(self) -> dict[Hashable, int]:
        """The class id behind each name."""
        return {name: class_id for class_id, name in enumerate(self.names)}


class TaskEpisodes(ABC):
    """Tasks of a library as episodes 0, 1, 2, ...: a source for `fewshot.evaluate`."""

    def __init__(self, pool: TaskClasses, episode_seed: int) -> None:
        """The first task decides the protocol; EpisodeError where it has not as many images of each class."""
        self.pool = pool
        self.episode_seed = episode_seed
        task = self._drawn(0)
        self._way = len(task.class_ids)
        self.protocol = KShot(
            self._way, len(task.support_labels) // self._way, len(task.query_labels) // self._way
        )
        self.task(0)

    @abstractmethod
    def draw(self, number: int, seed: int) -> Task:
        """A task. The global generators are seeded; seed, below 2^32, is for others that a library has."""

    def task(self, number: int) -> Task:
        """An episode by itself; EpisodeError where it has not the shape of the first."""
        task = self._drawn(number)
        for labels, each in (
            (task.support_labels, self.protocol.shot),
            (task.query_labels, self.protocol.query),
        ):
            counts = torch.bincount(labels, minlength=self._way).tolist()
            if counts != [each] * self._way:
                raise EpisodeError(
                    f"the first task is {self._way}-way {self.protocol.shot}-shot with {self.protocol.query} "
                    f"queries, and task {number} has {counts} images by label where each should have {each}: "
                    "let all tasks have one shape"
                )
        return task

    def batches(self, start: int, count: int, batch_size: int) -> Iterator[KShotBatch]:
        """Episodes start..start+count-1 in batches of at most batch_size, in order."""
        check_range(start, count)
        stop = start + count
        for first in range(start, stop, batch_size):
            tasks = map(self.task, range(first, min(first + batch_size, stop)))
            images, labels, asked, truth, class_ids = map(torch.stack, zip(*tasks, strict=True))
            yield KShotBatch(Support(images, labels, self._way), asked, truth, class_ids)

    def digest(self, count: int) -> str:
        """SHA-256 over episodes 0..count-1, pixels included, in hexadecimal; draws them once more."""
        check_range(0, count)
        sha = hashlib.sha256()
        for part in (part for number in range(count) for part in self.task(number)):
            sha.update(f"{part.dtype} {list(part.shape)}".encode())
            sha.update(part.cpu().numpy().tobytes())
        return sha.hexdigest()

    def _drawn(self, number: int) -> Task:
        """A task, its support and its queries in an order of their own."""
        with seeded("task", self.episode_seed, number) as seed:
            task = self.draw(number, seed)
            support = torch.randperm(len(task.support_labels))
            query = torch.randperm(len(task.query_labels))
        return Task(
            task.support_images[support],
            task.support_labels[support],
            task.query_images[query],
            task.query_labels[query],
            task.class_ids,
        )


def one_shape(protocol: KShot) -> tuple[int, int, int]:
    """(way, shot, query) of a protocol; EpisodeError where they vary, which the libraries know nothing of."""
    if isinstance(protocol.way, tuple) or isinstance(protocol.shot, tuple) or protocol.within_group:
        raise EpisodeError(
            "tasks of learn2learn and torchmeta have one shape, and any classes: give one way and one shot, "
            "without within_group"
        )
    return protocol.way, protocol.shot, protocol.query


@contextmanager
def seeded(*parts: object) -> Iterator[int]:
    """The global generators of Python, numpy and torch (CPU), seeded by what is given; then as they were."""
    seed = key_of(*parts) % 2**32
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 (the libraries draw from it)
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        try:
            yield seed
        finally:
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002


def class_ids_of(labels: Tensor, classes: Tensor) -> Tensor:
    """(way,): the class behind each label, from the label and the class of each image.

    Raises EpisodeError unless labels are 0..way-1, one for each class.
    """
    pairs = sorted(set(zip(labels.tolist(), classes.tolist(), strict=True)))
    way = len(set(classes.tolist()))
    if [label for label, _ in pairs] != list(range(way)):
        raise EpisodeError(
            f"a task of {way} classes has the labels {sorted(set(labels.tolist()))}: have the classes of a "
            f"task numbered 0..{way - 1}, by learn2learn's RemapLabels or torchmeta's Categorical"
        )
    return torch.tensor([class_id for _, class_id in pairs])
