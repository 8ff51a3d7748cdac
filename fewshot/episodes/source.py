"""Where episodes come from: integers first, images second.

An episode is decided as integers (which class, which image, which label), and these are what its digest
covers; pixels are gathered, turned and normalised afterwards. A source decides; this module does the rest, so
that episodes drawn by the sampler and episodes read from a published list look the same to everyone.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Integral
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.data.split import ClassPool
from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.episodes.protocol import Protocol
from fewshot.errors import EpisodeError, FewshotError, check_kind
from fewshot.kernels.gather import gather

_DIGEST_BATCH = 256


class EpisodeIndices(NamedTuple):
    """Episodes of one shape, decided but without pixels; int64 tensors on the source's device.

    class_ids: (batch, way), positions in the class pool, in the order of the labels;
    images: (batch, image), rows of the image set, in the order in which they are shown;
    turns: (batch, image), quarter turns counter-clockwise; labels: (batch, image);
    support: how many of the images are the support set, the others being queries; 0 in a stream;
    codes: (batch, way, letter), the string of each label, where labels are strings;
    chain: of how many links a stream consists; class_ids and codes are those of all (see `StreamBatch`).
    """

    class_ids: Tensor
    images: Tensor
    turns: Tensor
    labels: Tensor
    support: int
    codes: Tensor | None = None
    chain: int = 1

    @property
    def way(self) -> int:
        return self.class_ids.shape[1] // self.chain

    def each(self, change: Callable[[Tensor], Tensor]) -> "EpisodeIndices":
        """The same change made to every tensor."""
        return EpisodeIndices(*(change(part) if isinstance(part, Tensor) else part for part in self))  # type: ignore[arg-type]

    def batch(self, support: Tensor, asked: Tensor) -> EpisodeBatch:
        """The episodes with images, or features in their place: (batch, image, ...) of support and others."""
        labels, way = self.labels, self.way
        if not self.support:
            seen = presentation(labels, way, self.chain)
            return StreamBatch._make((asked, labels, seen, self.class_ids, way, self.codes, self.chain))
        learned = Support._make((support, labels[:, : self.support], way))
        return KShotBatch._make((learned, asked, labels[:, self.support :], self.class_ids))


class EpisodeSource(ABC):
    """Episodes 0, 1, 2, ... over the classes of one pool. Each is the same whenever and however asked for.

    shape_block: where shapes vary, each run of so many episodes has one shape; None: all have the same.
    """

    shape_block: int | None = None

    def __init__(self, pool: ClassPool, protocol: Protocol, device: torch.device | str = "cpu") -> None:
        """The images move to the device here, once; nothing is copied where they are there already.

        Raises FewshotError for a device that is not there.
        """
        image_set = pool.image_set
        self.pool = pool
        self.protocol = protocol
        self.device = checked_device(device)
        self._images = image_set.images.to(self.device)
        std = torch.tensor(image_set.std, dtype=torch.float32, device=self.device)
        mean = torch.tensor(image_set.mean, dtype=torch.float32, device=self.device)
        self._scale = 1 / (255 * std)
        self._offset = -mean / std
        self._rotated = pool.rotated

    @abstractmethod
    def indices(self, start: int, count: int) -> EpisodeIndices:
        """Episodes start..start+count-1 as integers. Raises EpisodeError where their shapes differ."""

    @abstractmethod
    def batch(self, start: int, count: int) -> EpisodeBatch:
        """Episodes start..start+count-1 side by side. Raises EpisodeError where their shapes differ."""

    def spans(self, start: int, count: int, batch_size: int) -> Iterator[tuple[int, int]]:
        """(start, count) of the batches that cover the episodes, each of one shape."""
        check_range(start, count)
        check_kind("batch_size", batch_size, Integral, "give how many episodes come side by side")
        if batch_size < 1:
            raise EpisodeError(f"a batch holds at least one episode; got batch_size {batch_size}")
        stop = start + count
        while start < stop:
            border = stop if self.shape_block is None else (start // self.shape_block + 1) * self.shape_block
            end = min(start + batch_size, border, stop)
            yield start, end - start
            start = end

    def batches(self, start: int, count: int, batch_size: int) -> Iterator[EpisodeBatch]:
        """Episodes start..start+count-1 in batches of at most batch_size, in order, each made `ahead`."""
        return self.ahead(self.spans(start, count, batch_size))

    def ahead(self, spans: Iterable[tuple[int, int]]) -> Iterator[EpisodeBatch]:
        """The batch of each (start, count), made in the background while the caller works on the one before.

        Two batches are held at a time. What goes wrong is raised when that batch is asked for. The thread
        ends with the iterator: when that is used up, closed or forgotten. Where torch may use one thread
        only, and on a GPU, whose work is queued anyway, batches are made when they are asked for.
        """
        if torch.get_num_threads() == 1 or self.device.type != "cpu":
            for span in spans:
                yield self.batch(*span)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="episodes ahead") as worker:
            coming: Future[EpisodeBatch] | None = None
            for span in spans:
                following = worker.submit(self.batch, *span)
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def digest(self, count: int) -> str:
        """SHA-256 over the integers of episodes 0..count-1, in hexadecimal; the same on every machine."""
        sha = hashlib.sha256()
        for span in self.spans(0, count, _DIGEST_BATCH):
            indices = self.indices(*span)
            shape = [indices.way, indices.support, indices.labels.shape[1]]
            if indices.chain > 1:
                shape.append(indices.chain)
            parts = [torch.tensor(shape, device=self.device).expand(len(indices.labels), -1), *indices[:4]]
            if indices.codes is not None:
                parts.append(indices.codes.flatten(1))
            sha.update(torch.cat(parts, dim=1).cpu().numpy().astype("<i8").tobytes())
        return sha.hexdigest()

    def drawings(self, number: int) -> Tensor:
        """(image, channel, height, width) uint8: an episode's images as they are in the set, turned."""
        indices = self.indices(number, 1)
        images = self.pool.image_set.images[indices.images[0].cpu()]
        turns = indices.turns[0].tolist()
        return torch.stack([image.rot90(turn, (1, 2)) for image, turn in zip(images, turns, strict=True)])

    def class_names(self, number: int) -> tuple[str, ...]:
        """The names of an episode's classes, in the order of their labels."""
        return tuple(map(self.pool.class_name, self.indices(number, 1).class_ids[0].tolist()))

    def render(self, indices: EpisodeIndices, maps: Tensor | None = None) -> EpisodeBatch:
        """The episodes with their images; maps: (batch, image, 2, 3), where images are to be distorted."""
        support, asked = gather(
            self._images,
            indices.images,
            indices.support,
            self._scale,
            self._offset,
            turns=indices.turns if self._rotated else None,
            maps=maps,
        )
        return indices.batch(support, asked)


def presentation(labels: Tensor, way: int, chain: int = 1) -> Tensor:
    """(batch, length) int64: how often each step's class has been shown in its link, this step included."""
    links = labels.reshape(len(labels) * chain, -1)
    seen = F.one_hot(links, way).cumsum(dim=1)
    return seen.gather(2, links.unsqueeze(2)).reshape(labels.shape)


def class_draws(episodes: EpisodeBatch | EpisodeIndices, classes: int) -> Tensor:
    """(classes,) int64: in how many of the episodes, or of their links, each class of a pool takes part."""
    return torch.bincount(episodes.class_ids.flatten(), minlength=classes)


def checked_device(asked: torch.device | str) -> torch.device:
    """The device of that name. Raises FewshotError, in one line, where torch finds none."""
    try:
        device = torch.device(asked)
        found = (device.index or 0) < torch.get_device_module(device).device_count()
    except (RuntimeError, TypeError):  # no name of a device
        found = False
    if not found:
        there = "cpu and cuda" if torch.cuda.is_available() else "cpu"
        raise FewshotError(
            f"device {asked} was asked for, and torch finds {there} here: name one that is there, or none"
        )
    return device


def check_range(start: int, count: int) -> None:
    """Raise EpisodeError unless start..start+count-1 are numbers of episodes."""
    check_kind("start", start, Integral, "give the number of the first episode")
    check_kind("count", count, Integral, "give how many episodes, from the first on")
    if start < 0 or count < 1:
        raise EpisodeError(
            f"episodes are numbered from 0 and come at least one at a time; got {start}, {count}"
        )
