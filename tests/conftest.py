"""What tests of several parts share: a small image folder, a small suite on it, and its results."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.harness.config import read_suite
from fewshot.harness.run import run_suite

SIDES = {"train": 8, "val": 4, "test": 5}
IMAGES_PER_CLASS = 8

TINY_SUITE = """
title = "Tiny"

[data]
dataset = "{folder}"
split = "folders"

[train]
episodes = {{ protocol = "kshot", way = 3, shot = 1, query = 2 }}
batch = 2
steps = 6
validate_every = 3
validate_episodes = 10

[[test]]
protocol = "kshot"
way = 3
query = 2
episodes = 30
rotated = [false, true]

[[test]]
protocol = "stream"
way = 3
length = 9
episodes = 30

[[learner]]
id = "prototypical"
options = {{ widths = [4, 4] }}

[[learner]]
id = "lstm"
options = {{ widths = [4], embedding_size = 8, hidden_size = 8 }}
train_seeds = [0, 1]
[learner.train]
episodes = {{ protocol = "stream", way = 3, length = 9 }}

[[learner]]
id = "nearest_neighbour"
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Figures repeat at the same number of threads, and tests run side by side: one thread each."""
    torch.set_num_threads(1)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, so that it neither finds nor leaves anything in the user's."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FEWSHOT_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of 12x12 in train/, val/, test/: a pattern per class, and noise. Not to be changed."""
    folder = tmp_path_factory.mktemp("data") / "patterns"
    for side, classes in SIDES.items():
        for number in range(classes):
            place = folder / side / f"{number:02}"
            place.mkdir(parents=True)
            for index, image in enumerate(_images(place.relative_to(folder).as_posix())):
                Image.fromarray(image).save(place / f"{index}.png")
    return folder


def _images(name: str) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """The class's pattern of 4x4 fields, with noise: bytes of a hash, the same everywhere."""
    pattern = np.frombuffer(hashlib.shake_256(name.encode()).digest(16), np.uint8).reshape(4, 4) // 2
    size = IMAGES_PER_CLASS * 144
    noise = np.frombuffer(hashlib.shake_256(f"{name} noise".encode()).digest(size), np.uint8) // 3
    return np.kron(pattern, np.ones((3, 3), np.uint8)) + noise.reshape(-1, 12, 12)


@pytest.fixture(scope="session")
def tiny_suite(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite on the image folder, both protocols, that takes a second. Not to be changed."""
    path = tmp_path_factory.mktemp("suite") / "tiny.toml"
    path.write_text(TINY_SUITE.format(folder=image_folder.as_posix()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_results(tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of the suite. Not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("results") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        run_suite(read_suite(tiny_suite), folder, jobs=1)
    return folder
