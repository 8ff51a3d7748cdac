"""Where episodes come from: integers first, images second.

An episode is decided as integers (which class, which image, which label), and these are what its digest
covers; pixels are gathered, turned and normalised afterwards. A source decides; this module does the rest, so
that episodes drawn by the sampler and episodes read from a published list look the same to everyone.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.data.split import ClassPool
from fewshot.episodes.augment import warp
from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.episodes.protocol import Protocol
from fewshot.errors import EpisodeError

_DIGEST_BATCH = 256


class EpisodeIndices(NamedTuple):
    """Episodes of one shape, decided but without pixels; int64 tensors on the source's device.

    class_ids: (batch, way), positions in the class pool, in the order of the labels;
    images: (batch, image), rows of the image set, in the order in which they are shown;
    turns: (batch, image), quarter turns counter-clockwise; labels: (batch, image);
    support: how many of the images are the support set, the others being queries; 0 in a stream.
    """

    class_ids: Tensor
    images: Tensor
    turns: Tensor
    labels: Tensor
    support: int

    @property
    def way(self) -> int:
        return self.class_ids.shape[1]

    def each(self, change: Callable[[Tensor], Tensor]) -> "EpisodeIndices":
        """The same change made to every tensor."""
        class_ids, images, turns, labels, support = self
        return EpisodeIndices(change(class_ids), change(images), change(turns), change(labels), support)


class EpisodeSource(ABC):
    """Episodes 0, 1, 2, ... over the classes of one pool. Each is the same whenever and however asked for.

    shape_block: where shapes vary, each run of so many episodes has one shape; None: all have the same.
    """

    shape_block: int | None = None

    def __init__(self, pool: ClassPool, protocol: Protocol, device: torch.device | str = "cpu") -> None:
        """The images move to the device here, once; nothing is copied where they are there already."""
        image_set = pool.image_set
        self.pool = pool
        self.protocol = protocol
        self.device = torch.device(device)
        self._images = image_set.images.to(self.device)
        std = torch.tensor(image_set.std, device=self.device).view(-1, 1, 1)
        mean = torch.tensor(image_set.mean, device=self.device).view(-1, 1, 1)
        self._scale = 1 / (255 * std)
        self._offset = -mean / std
        self._turns = pool.quarter_turns.to(self.device)

    @abstractmethod
    def indices(self, start: int, count: int) -> EpisodeIndices:
        """Episodes start..start+count-1 as integers. Raises EpisodeError where their shapes differ."""

    @abstractmethod
    def batch(self, start: int, count: int) -> EpisodeBatch:
        """Episodes start..start+count-1 side by side. Raises EpisodeError where their shapes differ."""

    def spans(self, start: int, count: int, batch_size: int) -> Iterator[tuple[int, int]]:
        """(start, count) of the batches that cover the episodes, each of one shape."""
        check_range(start, count)
        if batch_size < 1:
            raise EpisodeError(f"a batch holds at least one episode; got batch_size {batch_size}")
        stop = start + count
        while start < stop:
            border = stop if self.shape_block is None else (start // self.shape_block + 1) * self.shape_block
            end = min(start + batch_size, border, stop)
            yield start, end - start
            start = end

    def batches(self, start: int, count: int, batch_size: int) -> Iterator[EpisodeBatch]:
        """Episodes start..start+count-1 in batches of at most batch_size, in order."""
        for span in self.spans(start, count, batch_size):
            yield self.batch(*span)

    def digest(self, count: int) -> str:
        """SHA-256 over the integers of episodes 0..count-1, in hexadecimal; the same on every machine."""
        sha = hashlib.sha256()
        for span in self.spans(0, count, _DIGEST_BATCH):
            indices = self.indices(*span)
            shape = torch.tensor([indices.way, indices.support, indices.labels.shape[1]], device=self.device)
            parts = (shape.expand(len(indices.labels), -1), *indices[:4])
            sha.update(torch.cat(parts, dim=1).cpu().numpy().astype("<i8").tobytes())
        return sha.hexdigest()

    def render(self, indices: EpisodeIndices, maps: Tensor | None = None) -> EpisodeBatch:
        """The episodes with their images; maps: (batch, image, 2, 3), where images are to be distorted."""
        class_ids, rows, turns, labels, support = indices

        def images(first: int, last: int) -> Tensor:
            pixels = self._gather(rows[:, first:last], turns[:, first:last])
            if maps is not None:
                pixels = warp(pixels, maps[:, first:last])
            return pixels.mul_(self._scale).add_(self._offset)

        last = rows.shape[1]
        if not support:
            return StreamBatch(
                images(0, last), labels, presentation(labels, indices.way), class_ids, indices.way
            )
        shown = Support(images(0, support), labels[:, :support], indices.way)
        return KShotBatch(shown, images(support, last), labels[:, support:], class_ids)

    def _gather(self, rows: Tensor, turns: Tensor) -> Tensor:
        """(batch, image, channel, height, width) float32 in 0..255, turned."""
        if not self.pool.rotated:
            pixels = self._images.index_select(0, rows.flatten())
        else:
            # In order of turns, whole runs of images turn at once; then each goes back to its place.
            order = turns.flatten().argsort()
            runs = torch.bincount(turns.flatten(), minlength=4).tolist()
            sorted_pixels = self._images.index_select(0, rows.flatten()[order])
            parts = torch.split(sorted_pixels, runs)
            turned = torch.cat([part.rot90(turn, (2, 3)) for turn, part in enumerate(parts)])
            pixels = turned.index_select(0, order.argsort())
        return pixels.view(*rows.shape, *pixels.shape[1:]).to(torch.float32)


def presentation(labels: Tensor, way: int) -> Tensor:
    """(batch, length) int64: how often each step's class has been shown, this step included."""
    seen = F.one_hot(labels, way).cumsum(dim=1)
    return seen.gather(2, labels.unsqueeze(2)).squeeze(2)


def class_draws(episodes: EpisodeBatch | EpisodeIndices, classes: int) -> Tensor:
    """(classes,) int64: in how many of the episodes each class of a pool of `classes` takes part."""
    return torch.bincount(episodes.class_ids.flatten(), minlength=classes)


def check_range(start: int, count: int) -> None:
    """Raise EpisodeError unless start..start+count-1 are numbers of episodes."""
    if start < 0 or count < 1:
        raise EpisodeError(
            f"episodes are numbered from 0 and come at least one at a time; got {start}, {count}"
        )
