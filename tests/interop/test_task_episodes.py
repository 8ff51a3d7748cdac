"""Tasks of a library that draws as it likes are numbered episodes: tried on a made-up library."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.episodes.protocol import KShot
from fewshot.errors import EpisodeError
from fewshot.harness.audit.given import audit_episodes
from fewshot.harness.evaluate import evaluate
from fewshot.interop.source import Task, TaskClasses, TaskEpisodes, class_ids_of, one_shape
from fewshot.learners.nearest_neighbour import NearestNeighbour

WAY, SHOT, QUERY, CLASSES = 3, 2, 2, 7


class Library(TaskEpisodes):
    """Draws by Python's generator, by numpy's and by torch's; the first pixel of an image is its class."""

    def __init__(
        self, change: Callable[[Task, int], Task] = lambda task, _: task, episode_seed: int = 0
    ) -> None:
        self._change = change
        super().__init__(TaskClasses(tuple("abcdefg"), torch.arange(CLASSES)), episode_seed)

    def draw(self, number: int, seed: int) -> Task:
        classes = torch.tensor(random.sample(range(CLASSES), WAY))
        named = torch.from_numpy(np.random.permutation(WAY))  # noqa: NPY002 (what libraries do)
        support, query = (named.repeat_interleave(each) for each in (SHOT, QUERY))
        class_ids = classes[named.argsort()]
        images = [torch.rand(len(labels), 1, 2, 2) / 8 for labels in (support, query)]
        for shown, labels in zip(images, (support, query), strict=True):
            shown[:, 0, 0, 0] = class_ids[labels].float()
        return self._change(Task(images[0], support, images[1], query, class_ids), number)


def tensors(batch: Any) -> list[torch.Tensor]:
    return [batch.support.images, batch.support.labels, *batch[1:]]


def generators() -> tuple[Any, ...]:
    _, key, place, *_ = np.random.get_state()  # noqa: NPY002
    return random.getstate(), key.tolist(), place, torch.get_rng_state().tolist()


def test_an_episode_is_the_same_whenever_it_is_asked_for() -> None:
    source = Library()
    (whole,) = source.batches(0, 6, 6)
    random.random(), torch.rand(3)
    parts = [tensors(batch) for batch in Library().batches(1, 5, 2)]
    assert [len(part[0]) for part in parts] == [2, 2, 1]
    for all_of_them, joined in zip(tensors(whole), map(torch.cat, zip(*parts, strict=True)), strict=True):
        assert torch.equal(all_of_them[1:], joined)
    (other,) = Library(episode_seed=1).batches(0, 6, 6)
    assert not torch.equal(whole.class_ids, other.class_ids)
    assert len(whole.class_ids.unique(dim=0)) > 1


def test_the_callers_generators_are_left_as_they_were() -> None:
    before = generators()
    source = Library()
    list(source.batches(0, 3, 2))
    source.digest(2)
    assert generators() == before


def test_labels_belong_to_images_and_their_order_tells_nothing() -> None:
    (batch,) = Library().batches(0, 40, 40)
    for images, labels in (batch.support[:2], batch[1:3]):
        classes = batch.class_ids.gather(1, labels)
        assert torch.equal(images[:, :, 0, 0, 0].long(), classes)
        assert (torch.nn.functional.one_hot(labels).sum(1) == labels.shape[1] // WAY).all()
        assert not (labels[:, 0] == labels[:, 1]).all(), "class by class"


def test_a_learner_is_measured_on_them() -> None:
    source = Library()
    assert source.protocol == KShot(WAY, SHOT, QUERY)
    evaluation = evaluate(NearestNeighbour((1, 2, 2), WAY), source, 20)
    assert evaluation.accuracy == 1
    assert evaluation.episodes_digest == source.digest(20)
    assert set(evaluation.answers["class_id"].to_pylist()) == set(range(CLASSES))


def test_the_digest_tells_episodes_apart() -> None:
    assert Library().digest(3) == Library().digest(3)
    assert len({Library().digest(3), Library().digest(4), Library(episode_seed=1).digest(3)}) == 3

    def other_pixel(task: Task, number: int) -> Task:
        return task._replace(query_images=task.query_images + (number == 2))

    assert Library(other_pixel).digest(2) == Library().digest(2)
    assert Library(other_pixel).digest(3) != Library().digest(3)


def test_the_audit_takes_their_batches() -> None:
    source = Library()
    findings = audit_episodes(source.batches(0, 300, 50), test_classes=[source.pool.id_of["c"]])
    assert [finding.holds for finding in findings] == [True, True, False]
    assert "of 1 test classes" in findings[2].seen


@pytest.mark.parametrize("at", [0, 2])
def test_a_task_of_another_shape_is_refused(at: int) -> None:
    def another_class(task: Task, number: int) -> Task:
        """In one of the tasks, the last query is of another class."""
        labels = task.query_labels.clone()
        labels[-1] = (labels[-1] + (number == at)) % WAY
        return task._replace(query_labels=labels)

    says = rf"3-way 2-shot with 2 queries, and task {at} has .* let all tasks have one shape"
    with pytest.raises(EpisodeError, match=says):
        list(Library(another_class).batches(0, 4, 4))


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [([0, 1, 1], [5, 2, 2], [5, 2]), ([1, 0], [3, 3], None), ([5, 2], [5, 2], None), ([0, 0], [1, 2], None)],
)
def test_each_class_has_one_label(labels: list[int], classes: list[int], ids: list[int] | None) -> None:
    given = torch.tensor(labels), torch.tensor(classes)
    if ids:
        assert class_ids_of(*given).tolist() == ids
        return
    with pytest.raises(EpisodeError, match="RemapLabels or torchmeta's Categorical"):
        class_ids_of(*given)


@pytest.mark.parametrize(
    "protocol", [KShot((3, 5), 1, 1), KShot(5, (1, 2), 1), KShot(5, 1, 1, within_group=True)]
)
def test_tasks_of_the_libraries_have_one_shape(protocol: KShot) -> None:
    assert one_shape(KShot(5, 1, 2)) == (5, 1, 2)
    with pytest.raises(EpisodeError, match="one way and one shot"):
        one_shape(protocol)
