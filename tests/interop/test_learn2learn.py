"""The adapters to learn2learn, on learn2learn itself: `make interop`."""

from typing import Any

import pytest
import torch
from pixels import check_classes_behind_labels

from fewshot.data.split import Split
from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import EpisodeError, InteropError
from fewshot.harness.audit.given import audit_episodes
from fewshot.harness.evaluate import evaluate
from fewshot.interop.images import PoolImages
from fewshot.interop.learn2learn import TasksetEpisodes, as_tasks, meta_dataset, taskset_of
from fewshot.learners.nearest_neighbour import NearestNeighbour
from fewshot.learners.prototypical import Prototypical

PROTOCOL = KShot(3, 2, 3)

pytestmark = pytest.mark.usefixtures("learn2learn")


def test_a_pool_is_a_data_set_of_its_classes(split: Split, learn2learn: Any) -> None:
    dataset = meta_dataset(split.train)
    assert isinstance(dataset, learn2learn.data.MetaDataset)
    assert dataset.labels == list(range(8))
    assert all(dataset[index][1] == label for index, label in dataset.indices_to_labels.items())
    assert len(dataset) == len(PoolImages(split.train))


def test_a_tasksets_images_are_of_the_classes_behind_their_labels(split: Split) -> None:
    source = TasksetEpisodes(taskset_of(meta_dataset(split.train), PROTOCOL), shot=2)
    assert source.protocol == PROTOCOL
    check_classes_behind_labels(source, split.train)


def test_a_learner_is_measured_on_a_taskset(split: Split) -> None:
    """The patterns of the classes are told apart by their pixels, if each label is that of its image."""
    source = TasksetEpisodes(taskset_of(meta_dataset(split.test), PROTOCOL), shot=2)
    evaluation = evaluate(NearestNeighbour((1, 12, 12), 3), source, 20)
    assert evaluation.accuracy == 1
    again = TasksetEpisodes(taskset_of(meta_dataset(split.test), PROTOCOL), shot=2)
    assert again.digest(20) == evaluation.episodes_digest


def test_a_learner_is_trained_on_a_taskset(split: Split) -> None:
    torch.manual_seed(0)
    learner = Prototypical((1, 12, 12), 3, widths=(4, 4))
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.03)
    source = TasksetEpisodes(taskset_of(meta_dataset(split.train), PROTOCOL), shot=2)
    losses = []
    for batch in source.batches(0, 60, 3):
        optimizer.zero_grad()
        loss = learner.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5]) / 2


def test_a_taskset_of_so_many_tasks_is_those(split: Split) -> None:
    taskset = taskset_of(meta_dataset(split.train), PROTOCOL, num_tasks=2)
    images, labels = taskset[1]
    task = TasksetEpisodes(taskset, shot=2).task(1)
    for label in range(3):
        learned, asked = task.support_labels == label, task.query_labels == label
        shown = torch.cat([task.support_images[learned], task.query_images[asked]])
        assert sorted(shown.flatten(1).tolist()) == sorted(images[labels == label].flatten(1).tolist())
    with pytest.raises(EpisodeError, match="episode 2 asked for; the Taskset has 2 tasks"):
        TasksetEpisodes(taskset, shot=2).task(2)


def test_partition_task_finds_our_support_and_queries(split: Split, learn2learn: Any) -> None:
    source = EpisodeSampler(split.train, PROTOCOL, episode_seed=0)
    batch = source.batch(0, 1)
    assert isinstance(batch, KShotBatch)
    ((images, labels),) = as_tasks([batch])
    halves = learn2learn.data.partition_task(images, labels, shots=2)
    for (shown, named), (given, truth) in zip(halves, (batch.support[:2], batch[1:3]), strict=True):
        order = truth[0].argsort(stable=True)
        assert torch.equal(shown, given[0][order])
        assert torch.equal(named, truth[0][order])


def test_the_audit_finds_a_taskset_that_draws_from_more_classes_than_it_is_given(
    split: Split, learn2learn: Any
) -> None:
    """As the Omniglot benchmark of learn2learn 0.2.0 does."""
    everything = meta_dataset(split.train)
    proper = learn2learn.data.FilteredMetaDataset(everything, labels=[0, 1, 2, 3])
    leaky = learn2learn.data.Taskset(proper, taskset_of(everything, PROTOCOL).task_transforms)
    held = {}
    for name, taskset in (("proper", taskset_of(proper, PROTOCOL)), ("leaky", leaky)):
        source = TasksetEpisodes(taskset, shot=2)
        of_test = [source.pool.id_of[label] for label in (4, 5, 6, 7) if label in source.pool.id_of]
        findings = audit_episodes(source.batches(0, 60, 20), test_classes=of_test)
        held[name] = [finding.holds for finding in findings]
    assert held == {"proper": [True, True, True], "leaky": [True, True, False]}


@pytest.mark.parametrize(
    ("left_out", "error", "says"),
    [
        ("LoadData", InteropError, "no LoadData"),
        ("RemapLabels", EpisodeError, "by learn2learn's RemapLabels"),
    ],
)
def test_a_taskset_without_images_or_labels_is_refused(
    left_out: str, error: type[Exception], says: str, split: Split, learn2learn: Any
) -> None:
    dataset = meta_dataset(split.train)
    transforms = [
        transform
        for transform in taskset_of(dataset, PROTOCOL).task_transforms
        if type(transform).__name__ != left_out
    ]
    with pytest.raises(error, match=says):
        TasksetEpisodes(learn2learn.data.Taskset(dataset, transforms), shot=2)
