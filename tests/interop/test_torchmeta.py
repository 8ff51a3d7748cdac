"""The adapters to torchmeta, on torchmeta itself: `make interop`."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixels import check_classes_behind_labels
from torch.utils.data import DataLoader
from torchvision.datasets import utils as downloads

from fewshot.data.split import Split
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import DataError, EpisodeError, InteropError
from fewshot.harness.audit.given import audit_episodes
from fewshot.harness.evaluate import evaluate
from fewshot.interop.images import PoolImages
from fewshot.interop.torchmeta import LoaderEpisodes, as_batches, mend, task_dataset
from fewshot.learners.nearest_neighbour import NearestNeighbour

PROTOCOL = KShot(3, 2, 3)


def loader(torchmeta: Any, dataset: Any, **options: Any) -> Any:
    return torchmeta.utils.data.BatchMetaDataLoader(dataset, batch_size=4, **options)


def test_a_loaders_images_are_of_the_classes_behind_their_labels(split: Split, torchmeta: Any) -> None:
    source = LoaderEpisodes(loader(torchmeta, task_dataset(PoolImages(split.train), PROTOCOL)))
    assert source.protocol == PROTOCOL
    check_classes_behind_labels(source, split.train)


def test_a_learner_is_measured_on_a_loader(split: Split, torchmeta: Any) -> None:
    """The patterns of the classes are told apart by their pixels, if each label is that of its image."""
    dataset = task_dataset(PoolImages(split.test), PROTOCOL, side="test")
    evaluation = evaluate(NearestNeighbour((1, 12, 12), 3), LoaderEpisodes(loader(torchmeta, dataset)), 20)
    assert evaluation.accuracy == 1
    assert LoaderEpisodes(loader(torchmeta, dataset)).digest(20) == evaluation.episodes_digest


def test_our_batches_have_the_form_of_its_own(split: Split, torchmeta: Any) -> None:
    theirs = next(iter(loader(torchmeta, task_dataset(PoolImages(split.train), PROTOCOL))))
    (ours,) = as_batches(EpisodeSampler(split.train, PROTOCOL, episode_seed=0).batches(0, 4, 4))
    assert list(ours) == list(theirs)
    for half, same in zip(ours.values(), theirs.values(), strict=True):
        assert [(part.shape, part.dtype) for part in half] == [(part.shape, part.dtype) for part in same]
    images, labels = ours["train"]
    prototypes = torchmeta.utils.get_prototypes(images.flatten(2), labels, 3)
    expected = torch.stack([images[2][labels[2] == label].mean(0) for label in range(3)])
    torch.testing.assert_close(prototypes[2], expected.flatten(1))


def omniglot(folder: Path) -> str:
    """Six characters with four drawings each, in torchmeta's own files."""
    h5py = pytest.importorskip("h5py")
    place = folder / "omniglot"
    place.mkdir()
    names = [["images_background", "Greek", f"character{number:02}"] for number in range(6)]
    generator = np.random.default_rng(0)
    with h5py.File(place / "data.hdf5", "w") as file:
        for name in names:
            character = generator.integers(0, 128, (1, 7, 7), np.uint8)
            drawings = character + generator.integers(0, 99, (4, 7, 7), np.uint8)
            file["/".join(name)] = drawings.repeat(15, 1).repeat(15, 2)
    (place / "vinyals_train_labels.json").write_text(json.dumps(names))
    return str(folder)


def test_its_helpers_work_on_data_that_are_there(tmp_path: Path, torchmeta: Any) -> None:
    """With its three rotations of each class, which are its relatives."""
    dataset = torchmeta.datasets.helpers.omniglot(
        omniglot(tmp_path), shots=1, ways=3, test_shots=2, meta_train=True
    )
    source = LoaderEpisodes(loader(torchmeta, dataset))
    assert source.protocol == KShot(3, 1, 2)
    assert source.pool.class_index.tolist() == 4 * list(range(6))
    assert evaluate(NearestNeighbour((1, 28, 28), 3), source, 20).accuracy > 0.6
    assert all(finding.holds for finding in audit_episodes(source.batches(0, 150, 50)))


def test_what_was_mended(split: Split, torchmeta: Any) -> None:
    mend()  # twice is once
    task: Any = task_dataset(PoolImages(split.train), PROTOCOL).sample_task()["train"]
    _, labels = next(iter(DataLoader(task, batch_size=6)))
    assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2]
    for name in ("_get_confirm_token", "_save_response_content"):
        with pytest.raises(DataError, match="cannot download from Google Drive"):
            getattr(downloads, name)(None)


def test_a_loader_that_does_not_draw_is_refused(split: Split, torchmeta: Any) -> None:
    dataset = task_dataset(PoolImages(split.train), PROTOCOL)
    with pytest.raises(InteropError, match=r"CombinationSequentialSampler: give the loader .* shuffle=True"):
        LoaderEpisodes(loader(torchmeta, dataset, shuffle=False))


def test_tasks_without_two_halves_or_labels_are_refused(split: Split, torchmeta: Any) -> None:
    complete = task_dataset(PoolImages(split.train), PROTOCOL)
    for change, error, says in (
        ({"dataset_transform": None}, InteropError, "give the data set a ClassSplitter"),
        ({"target_transform": lambda label: (label, 0)}, InteropError, "give the data set Categorical"),
        ({"target_transform": lambda label: label}, EpisodeError, "torchmeta's Categorical"),
    ):
        parts = {
            "target_transform": complete.target_transform,
            "dataset_transform": complete.dataset_transform,
        }
        dataset = torchmeta.utils.data.CombinationMetaDataset(complete.dataset, 3, **(parts | change))
        with pytest.raises(error, match=says):
            LoaderEpisodes(loader(torchmeta, dataset))


def test_support_and_query_go_by_either_pair_of_names(split: Split, torchmeta: Any) -> None:
    complete = task_dataset(PoolImages(split.train), PROTOCOL)
    splitter = torchmeta.transforms.ClassSplitter(
        num_samples_per_class=OrderedDict([("support", 1), ("query", 2)])
    )
    dataset = torchmeta.utils.data.CombinationMetaDataset(
        complete.dataset, 3, target_transform=complete.target_transform, dataset_transform=splitter
    )
    assert LoaderEpisodes(loader(torchmeta, dataset)).protocol == KShot(3, 1, 2)
