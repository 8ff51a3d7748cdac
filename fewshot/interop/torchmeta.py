"""torchmeta's loaders as episodes of ours, and our images and episodes as its own; and what it lacks today.

    mend()                                                         # before `import torchmeta`
    source = LoaderEpisodes(BatchMetaDataLoader(dataset))          # fewshot.evaluate(learner, source)
    task_dataset(PoolImages(split.train), KShot(5, 1, 15))         # for its BatchMetaDataLoader
    as_batches(EpisodeSampler(split.train, KShot(5, 1, 15), 0).batches(0, 1000, 16))

A batch of torchmeta is {"train": (images, labels), "test": (images, labels)}, episodes first. Its
`ClassSplitter` chooses the images of a task by the task's classes: the same classes in the same order always
come with the same images.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fewshot.data.split import Side
from fewshot.episodes.batch import EpisodeBatch, KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.errors import DataError, InteropError
from fewshot.interop.images import LabelledImages
from fewshot.interop.packages import check_installed, foreign
from fewshot.interop.source import Task, TaskClasses, TaskEpisodes, class_ids_of, one_shape


def mend() -> None:
    """Give torchmeta 1.8 the three things that it misses in current releases; nothing else is changed.

    1. and 2. `torchmeta.datasets.utils` imports `_get_confirm_token` and `_save_response_content` from
       torchvision, which has them no more. They served downloads from Google Drive, whose pages have changed
       since: what they would save is not the archive. So both now say that such a download cannot be had.
       Data that are on disk, and downloads from elsewhere, do not need them.
    3. torch refuses a `Subset` that overrides `__getitem__` without `__getitems__`. torchmeta's `SubsetTask`
       does; it is given the second, which asks the first for each item.
    """
    check_installed("torchmeta")
    downloads = foreign("torchvision.datasets.utils")
    for name in ("_get_confirm_token", "_save_response_content"):
        if not hasattr(downloads, name):
            setattr(downloads, name, _no_download)
    foreign("torchmeta.utils.data.task").SubsetTask.__getitems__ = _one_by_one


def _no_download(*_: object) -> NoReturn:
    raise DataError(
        "torchmeta cannot download from Google Drive any more: put the archive where it looks for it"
    )


def _one_by_one(subset: Any, indices: Sequence[int]) -> list[Any]:
    return [subset[index] for index in indices]


_HALVES = ("train", "support", "test", "query")
"""The names that a `ClassSplitter` gives to support and query, either pair."""


class LoaderEpisodes(TaskEpisodes):
    """The tasks of a `BatchMetaDataLoader` as episodes; a class's name is its index in the class data set.

    Episode i is what `sample_task` of the loader's data set gives, seeded for it. The loader's batch size and
    workers mean nothing here. A class that is another's augmentation (turned, say) is its relative where
    classes are resampled.
    """

    def __init__(self, loader: Any, *, episode_seed: int = 0) -> None:
        """Raises InteropError for a loader that does not draw: its tasks are in an order of their own."""
        library = _torchmeta("torchmeta.utils.data")
        if not isinstance(loader.sampler, library.sampler.CombinationRandomSampler):
            raise InteropError(
                f"episodes are drawn, and this loader's sampler is {type(loader.sampler).__name__}: give the "
                "loader of a CombinationMetaDataset, with shuffle=True"
            )
        self._tasks = loader.dataset
        self._collate = loader.collate_fn
        classes = self._tasks.dataset
        names = tuple(range(len(classes)))
        super().__init__(TaskClasses(names, torch.arange(len(names)) % classes.num_classes), episode_seed)

    def draw(self, number: int, seed: int) -> Task:
        self._tasks.seed(seed)
        task = self._tasks.sample_task()
        names = [name for name in _HALVES if isinstance(task, dict) and name in task]
        if len(names) != 2:
            raise InteropError(
                "torchmeta's tasks are not divided into support and query: give the data set a ClassSplitter"
            )
        support, query = (self._half(task[name]) for name in names)
        class_ids = class_ids_of(torch.cat([support[1], query[1]]), torch.cat([support[2], query[2]]))
        return Task(*support[:2], *query[:2], class_ids)

    def _half(self, subset: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Images (image, ...), labels (image,) and classes (image,) of a `SubsetTask`."""
        images, labels = self._collate([subset])
        if not isinstance(labels, Tensor):
            raise InteropError(
                "torchmeta's labels are pairs of class and augmentation: give the data set Categorical as "
                "target_transform"
            )
        task = subset.dataset  # the classes of a task stand one after the other
        classes = [task.index[bisect_right(task.cumulative_sizes, item)] for item in subset.indices]
        return images[0], labels[0], torch.tensor(classes)


def task_dataset(images: LabelledImages, protocol: KShot, side: Side = "train") -> Any:
    """Labelled images (`PoolImages` of a class pool, or one's own) as a `CombinationMetaDataset` of tasks.

    It is as its own helpers make it: labels by `Categorical`, support and query by a shuffling
    `ClassSplitter`. side: what torchmeta is told of the images.
    """
    way, shot, query = one_shape(protocol)
    data = _torchmeta("torchmeta.utils.data")
    transforms = _torchmeta("torchmeta.transforms")
    from fewshot.interop.torchmeta_classes import Classes  # needs torchmeta to import

    return data.CombinationMetaDataset(
        Classes(images, side),
        way,
        target_transform=transforms.Categorical(way),
        dataset_transform=transforms.ClassSplitter(
            shuffle=True, num_train_per_class=shot, num_test_per_class=query
        ),
    )


def as_batches(episodes: Iterable[EpisodeBatch]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """K-shot batches as its loaders give them: {"train": (images, labels), "test": (images, labels)}."""
    for batch in episodes:
        assert isinstance(batch, KShotBatch)
        yield {
            "train": (batch.support.images, batch.support.labels),
            "test": (batch.query_images, batch.query_labels),
        }


def _torchmeta(module: str) -> Any:
    try:
        return foreign(module)
    except ImportError as error:
        raise InteropError(
            f"torchmeta does not import ({error}): call fewshot.interop.torchmeta.mend() first"
        ) from error
