"""Labelled images as torchmeta's data set of classes. Imported only where torchmeta is there, and mended."""

from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor
from torchmeta.utils.data import ClassDataset, Dataset

from fewshot.data.split import Side
from fewshot.interop.images import LabelledImages


class Classes(ClassDataset):  # type: ignore[misc]
    """The classes of labelled images, in the order of their numbers; each is a data set of its images."""

    def __init__(self, images: LabelledImages, side: Side) -> None:
        super().__init__(meta_split=side)
        self._images = images
        self._members: dict[int, list[int]] = defaultdict(list)
        for index, label in enumerate(images.labels):
            self._members[label].append(index)

    @property
    def num_classes(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> "OneClass":
        return OneClass(index, self._images, self._members[index])


class OneClass(Dataset):  # type: ignore[misc]
    """The images of one class; the target of each is the class, or what a task's transform makes of it."""

    def __init__(self, index: int, images: LabelledImages, rows: Sequence[int]) -> None:
        super().__init__(index)
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        image, label = self._images[self._rows[item]]
        return image, label if self.target_transform is None else self.target_transform(label)
