"""Our images and episodes in the layouts of other libraries, which need not be there for it."""

import sys
from collections.abc import Callable

import pytest
import torch

from fewshot.data.split import Split
from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import InteropError
from fewshot.interop import torchmeta as adapter
from fewshot.interop.images import PoolImages
from fewshot.interop.learn2learn import as_tasks, meta_dataset
from fewshot.interop.torchmeta import as_batches, mend, task_dataset

PROTOCOL = KShot(3, 2, 3)


def test_images_are_those_of_episodes_turned_and_normalised(split: Split) -> None:
    pool = split.train.with_rotations()
    images = PoolImages(pool)
    assert len(images) == int(pool.images_per_class.sum()) == len(images.labels)
    source = EpisodeSampler(pool, PROTOCOL, episode_seed=0)
    indices, batch = source.indices(0, 8), source.batch(0, 8)
    assert isinstance(batch, KShotBatch)
    assert indices.turns.any()
    first = pool.images_per_class.cumsum(0) - pool.images_per_class
    for episode in range(8):
        shown = torch.cat([batch.support.images[episode], batch.query_images[episode]])
        classes = batch.class_ids[episode, indices.labels[episode]]
        places = first[classes] + indices.images[episode] - pool.first_image[classes]
        for image, class_id, place in zip(shown, classes.tolist(), places.tolist(), strict=True):
            stored, label = images[place]
            assert label == class_id == images.labels[place]
            torch.testing.assert_close(stored, image)


def test_a_task_of_learn2learn_is_class_by_class_the_support_first(split: Split) -> None:
    source = EpisodeSampler(split.train, PROTOCOL, episode_seed=0)
    given = list(as_tasks(source.batches(0, 5, 2)))
    assert len(given) == 5
    batch = source.batch(0, 5)
    assert isinstance(batch, KShotBatch)
    for episode, (images, labels) in enumerate(given):
        assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
        for label in range(3):
            learned = batch.support.images[episode][batch.support.labels[episode] == label]
            asked = batch.query_images[episode][batch.query_labels[episode] == label]
            assert torch.equal(images[5 * label : 5 * label + 5], torch.cat([learned, asked]))


def test_a_batch_of_torchmeta_is_ours_by_other_names(split: Split) -> None:
    source = EpisodeSampler(split.train, PROTOCOL, episode_seed=0)
    ours, theirs = source.batch(0, 4), list(as_batches(source.batches(0, 4, 4)))
    assert isinstance(ours, KShotBatch)
    assert len(theirs) == 1
    assert list(theirs[0]) == ["train", "test"]
    for half, (images, labels) in zip(theirs[0].values(), (ours.support[:2], ours[1:3]), strict=True):
        assert torch.equal(half[0], images)
        assert torch.equal(half[1], labels)


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("learn2learn", lambda split: meta_dataset(split.train)),
        ("torchmeta", lambda split: task_dataset(PoolImages(split.train), PROTOCOL)),
        ("torchmeta", lambda _: mend()),
    ],
)
def test_what_needs_an_absent_library_says_so(
    package: str, use: Callable[[Split], object], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InteropError, match=f"^{package} is not installed: `make interop`"):
        use(split)


def test_without_mending_torchmeta_does_not_import(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: str) -> None:
        raise ImportError("cannot import name '_get_confirm_token'")

    monkeypatch.setattr(adapter, "foreign", fail)
    with pytest.raises(InteropError, match=r"_get_confirm_token.*call fewshot\.interop\.torchmeta\.mend"):
        task_dataset(PoolImages(split.train), PROTOCOL)
