"""A side of a split as a data set of torch, image by image, which is what other libraries take."""

from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fewshot.data.split import ClassPool


class LabelledImages(Protocol):
    """Images with the class of each: (channel, height, width) float32, and a number.

    labels: the class of each image; equal ones need not stand together.
    """

    labels: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]: ...


class PoolImages(Dataset[tuple[Tensor, int]]):
    """All images of a class pool, class by class, with their class ids: turned and normalised, as shown."""

    def __init__(self, pool: ClassPool) -> None:
        firsts, counts = pool.first_image.tolist(), pool.images_per_class.tolist()
        spans = [range(first, first + count) for first, count in zip(firsts, counts, strict=True)]
        self.labels = torch.arange(len(pool)).repeat_interleave(pool.images_per_class).tolist()
        self._rows = [row for span in spans for row in span]
        self._turns = pool.quarter_turns.tolist()
        self._images = pool.image_set.images
        self._mean, self._std = (
            torch.tensor(values).view(-1, 1, 1) for values in (pool.image_set.mean, pool.image_set.std)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """((channel, height, width) float32, class id)"""
        label = self.labels[index]
        image = self._images[self._rows[index]].rot90(self._turns[label], (1, 2))
        return (image / 255 - self._mean) / self._std, label
