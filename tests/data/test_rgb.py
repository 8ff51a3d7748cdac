"""Grey images stand beside photographs as what they are, three times over."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from fewshot.data.catalogue import load_dataset, named_dataset
from fewshot.data.class_lists import listed_splits
from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import DataError


@pytest.fixture
def names(image_folder: Path, own_cache: Path) -> tuple[str, str]:
    return str(image_folder), f"{image_folder}:rgb"


def test_each_channel_is_the_grey_one_and_takes_no_memory(names: tuple[str, str]) -> None:
    grey, rgb = map(load_dataset, names)
    assert rgb.image_shape == (3, *grey.image_shape[1:])
    assert all(torch.equal(rgb.images[:, channel], grey.images[:, 0]) for channel in range(3))
    assert rgb.images.untyped_storage().nbytes() == grey.images.untyped_storage().nbytes()
    assert (rgb.mean, rgb.std) == (3 * grey.mean, 3 * grey.std)


def test_it_is_another_image_set_of_the_same_classes(names: tuple[str, str]) -> None:
    grey, rgb = map(load_dataset, names)
    assert rgb.name == f"{grey.name}:rgb"
    assert rgb.digest != grey.digest
    splits = [image_set.split("folders") for image_set in (grey, rgb)]
    assert torch.equal(splits[0].test.class_index, splits[1].test.class_index)
    assert splits[0].digest != splits[1].digest
    assert load_dataset(names[1]).digest == rgb.digest


def test_an_episode_shows_the_same_images(names: tuple[str, str]) -> None:
    pools = [load_dataset(name).split("folders").test.with_rotations() for name in names]
    samplers = [EpisodeSampler(pool, KShot(5, 1, 2), episode_seed=0) for pool in pools]
    indices = samplers[1].indices(0, 4)
    grey, rgb = (sampler.render(indices) for sampler in samplers)
    assert isinstance(grey, KShotBatch)
    assert isinstance(rgb, KShotBatch)
    assert torch.equal(rgb.query_images, grey.query_images.expand(-1, -1, 3, -1, -1))
    assert torch.equal(rgb.support.images, grey.support.images.expand(-1, -1, 3, -1, -1))


def test_a_named_set_keeps_its_splits_and_its_size() -> None:
    assert listed_splits("omniglot:rgb") == listed_splits("omniglot")
    known = named_dataset("omniglot:rgb")
    assert known
    assert known.usual_size == 28


def test_photographs_are_refused(own_cache: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "birds" / str(number)).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "birds" / str(number) / "1.png")
    with pytest.raises(DataError, match="birds is not grey: leave out :rgb"):
        load_dataset(f"{tmp_path / 'birds'}:rgb")
