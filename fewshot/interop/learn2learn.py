"""learn2learn's Tasksets as episodes of ours, and our images and episodes as its own.

    source = TasksetEpisodes(taskset, shot=1)                      # fewshot.evaluate(learner, source)
    taskset_of(meta_dataset(split.train), KShot(5, 1, 15))         # for its algorithms and loops
    as_tasks(EpisodeSampler(split.train, KShot(5, 1, 15), 0).batches(0, 1000, 16))

A task of learn2learn is (images, labels), class by class, support and query undivided: of each class the
first `shot` images are the support (as its `partition_task` has it).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fewshot.data.split import ClassPool
from fewshot.episodes.batch import EpisodeBatch, KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.source import presentation
from fewshot.errors import EpisodeError, InteropError
from fewshot.interop.images import PoolImages
from fewshot.interop.packages import foreign
from fewshot.interop.source import Task, TaskClasses, TaskEpisodes, class_ids_of, one_shape


class TasksetEpisodes(TaskEpisodes):
    """The tasks of a `Taskset` as episodes; a class's name is its label in the data set.

    A Taskset of so many tasks (`num_tasks`) keeps each once it was drawn, by whomever: episode i is its i-th.
    One without end draws episode i afresh. Where classes are texts, their order in a Python set numbers them,
    which another process has otherwise unless PYTHONHASHSEED is set: the digest then differs.
    """

    def __init__(self, taskset: Any, shot: int, *, episode_seed: int = 0) -> None:
        """shot: images of each class to learn from; the others are queries."""
        self._taskset = taskset
        self._shot = shot
        super().__init__(classes_of(taskset), episode_seed)

    def draw(self, number: int, seed: int) -> Task:
        return draw_task(self._taskset, self.pool, self._shot, number)


def classes_of(taskset: Any) -> TaskClasses:
    """The classes of the data set that a Taskset loads from: not always of the one that it was given."""
    names = tuple(_loaded_from(taskset).labels)
    return TaskClasses(names, torch.arange(len(names)))


def draw_task(taskset: Any, classes: TaskClasses, shot: int, number: int = 0) -> Task:
    """A task, drawn now: of each class the first `shot` images are the support, the others queries.

    classes: `classes_of` the Taskset; number: which task, where it has so many.
    """
    if taskset.num_tasks == -1:
        description = taskset.sample_task_description()
        images, labels = taskset.get_task(description)
    elif number < taskset.num_tasks:
        images, labels = taskset[number]
        description = taskset.sampled_descriptions[number]
    else:
        raise EpisodeError(
            f"episode {number} asked for; the Taskset has {taskset.num_tasks} tasks: ask for fewer, or give "
            "one without num_tasks"
        )
    name_of = _loaded_from(taskset).indices_to_labels
    behind = torch.tensor([classes.id_of[name_of[image.index]] for image in description])
    class_ids = class_ids_of(labels, behind)
    learned = presentation(labels.unsqueeze(0), len(class_ids))[0] <= shot
    return Task(images[learned], labels[learned], images[~learned], labels[~learned], class_ids)


def meta_dataset(pool: ClassPool) -> Any:
    """A class pool as a `MetaDataset`: normalised images, turned where the class is; labels are class ids."""
    images = PoolImages(pool)
    return foreign("learn2learn").data.MetaDataset(images, indices_to_labels=dict(enumerate(images.labels)))


def taskset_of(dataset: Any, protocol: KShot, num_tasks: int = -1) -> Any:
    """The `Taskset` that its own benchmarks make of a `MetaDataset`, as many tasks or, by default, no end.

    Unlike its Omniglot benchmark's, all its transforms read the one data set: no other class is drawn.
    """
    library = foreign("learn2learn").data
    way, shot, query = one_shape(protocol)
    return library.Taskset(
        dataset,
        task_transforms=[
            library.transforms.FusedNWaysKShots(dataset, n=way, k=shot + query),
            library.transforms.LoadData(dataset),
            library.transforms.RemapLabels(dataset),
            library.transforms.ConsecutiveLabels(dataset),
        ],
        num_tasks=num_tasks,
    )


def as_tasks(batches: Iterable[EpisodeBatch]) -> Iterator[tuple[Tensor, Tensor]]:
    """K-shot episodes, one by one, as its tasks: (images, labels), class by class, the support first."""
    for batch in batches:
        assert isinstance(batch, KShotBatch)
        images = torch.cat([batch.support.images, batch.query_images], dim=1)
        labels = torch.cat([batch.support.labels, batch.query_labels], dim=1)
        for shown, named in zip(images, labels, strict=True):
            order = named.argsort(stable=True)
            yield shown[order], named[order]


def _loaded_from(taskset: Any) -> Any:
    """The `MetaDataset` that a Taskset's images are loaded from."""
    loads = foreign("learn2learn").data.transforms.LoadData
    for transform in taskset.task_transforms:
        if isinstance(transform, loads):
            return transform.dataset
    raise InteropError("a Taskset whose transforms have no LoadData gives no images: add it")
