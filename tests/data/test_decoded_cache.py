"""Decoded images come from the cache only if they are the right ones."""

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot.data import cache
from fewshot.data.cache import Pixels, Plan, cached_image_set, image_set_digest
from fewshot.data.image_folder import load_image_folder
from fewshot.data.image_set import ImageSet
from fewshot.errors import DataError


class Drawing:
    """A plan that counts how often it is drawn."""

    def __init__(self, shade: int = 9) -> None:
        self.shade = shade
        self.times = 0

    def plan(self) -> Plan:
        return Plan(
            name="toy",
            classes={"b": ["1", "2"], "a": ["1"]},
            image_shape=(1, 4, 4),
            source="a test",
            licence="MIT",
            mean=(0.0,),
            std=(1.0,),
            draw=self.draw,
        )

    def draw(self, pixels: Pixels) -> None:
        self.times += 1
        pixels[:, 0] = np.array([self.shade, 1, 2])[:, None, None]

    def load(self, key: str = "key", version: int = 1, rebuild: bool = False) -> ImageSet:
        return cached_image_set("toy", 4, version, key, self.plan, rebuild)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def only_file(directory: Path) -> Path:
    (file,) = (path for path in directory.rglob("*") if path.is_file())
    return file


def test_second_load_draws_nothing_and_says_the_same(directory: Path) -> None:
    drawing = Drawing()
    first, second = drawing.load(), drawing.load()
    assert drawing.times == 1
    assert torch.equal(first.images, second.images)
    assert first.class_names == second.class_names == ("a", "b")
    assert second.class_start.tolist() == [0, 1, 3]
    assert second.image_names == ("1", "1", "2")
    assert first.digest == second.digest == image_set_digest(second)
    assert second.images[:, 0, 0, 0].tolist() == [9, 1, 2]
    assert only_file(directory).name.startswith("toy-4-v1-key")


def test_writing_to_the_images_does_not_reach_the_cache() -> None:
    drawing = Drawing()
    drawing.load().images.zero_()
    assert drawing.load().images[0].unique().tolist() == [9]
    assert drawing.times == 1


def test_another_key_version_or_rebuild_draws_again() -> None:
    drawing = Drawing()
    drawing.load()
    drawing.load(key="other")
    drawing.load(version=2)
    drawing.load(rebuild=True)
    assert drawing.times == 4


def test_only_the_newest_of_a_data_set_and_size_is_kept(directory: Path) -> None:
    drawing = Drawing()
    drawing.load(key="old")
    folder = only_file(directory).parent
    others = ["toy-28-v1-old.images", "toys-4-v1-old.images", "toy-4-v1-28-v1-old.images", "toy-4-v1-old.txt"]
    for name in others:
        (folder / name).write_bytes(b"")
    drawing.load(key="newer")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "toy-4-v1-newer.images"])
    drawing.load(key="newer", version=2)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, "toy-4-v2-newer.images"])


def test_digest_covers_pixels_and_names() -> None:
    digests = {Drawing().load().digest, Drawing(shade=8).load(key="other").digest}
    renamed = Drawing()
    plan = renamed.plan
    renamed.plan = lambda: Plan(**{**vars(plan()), "classes": {"b": ["1", "3"], "a": ["1"]}})  # type: ignore[method-assign]
    digests.add(renamed.load(key="renamed").digest)
    assert len(digests) == 3


@pytest.mark.parametrize("damage", ["pixel", "header", "short", "long", "empty", "magic"])
def test_damaged_cache_is_drawn_again(damage: str, directory: Path) -> None:
    drawing = Drawing()
    drawing.load()
    path = only_file(directory)
    content = bytearray(path.read_bytes())
    match damage:
        case "pixel":
            content[-1] ^= 1
        case "header":
            position = content.index(b"a test")
            content[position] ^= 1
        case "short":
            del content[-1]
        case "long":
            content += b"\0"
        case "empty":
            content.clear()
        case "magic":
            content[0] ^= 1
    path.write_bytes(content)
    assert drawing.load().images[:, 0, 0, 0].tolist() == [9, 1, 2]
    assert drawing.times == 2
    assert only_file(directory) == path


def test_broken_off_drawing_leaves_nothing_behind(directory: Path) -> None:
    drawing = Drawing()
    drawing.draw = None  # type: ignore[assignment, method-assign]
    with pytest.raises(TypeError):
        drawing.load()
    assert not [path for path in directory.rglob("*") if path.is_file()]


def test_full_disk_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = cache.shutil._ntuple_diskusage(100, 100, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"cannot keep the 0 MB .*No space left.*FEWSHOT_CACHE"):
        Drawing().load()


def test_cache_directory_that_is_a_file_is_one_clear_line(directory: Path) -> None:
    directory.write_text("in the way")
    with pytest.raises(DataError, match=r"cannot keep .*FEWSHOT_CACHE"):
        Drawing().load()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of class folders that may be read only."""
    folder = tmp_path / "birds"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.new("L", (4, 4), 50).save(folder / name / "1.png")
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield folder
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_read_only_data_directory_is_enough_and_stays_as_it_is(folder: Path, directory: Path) -> None:
    before = sorted(folder.rglob("*"))
    load_image_folder(folder)
    assert sorted(folder.rglob("*")) == before
    assert only_file(directory).name.startswith("birds-4-v1-")


def test_changed_source_is_read_again(folder: Path) -> None:
    assert load_image_folder(folder).images.unique().tolist() == [50]
    image = folder / "a" / "1.png"
    image.chmod(stat.S_IRUSR | stat.S_IWUSR)
    Image.new("L", (4, 4), 60).save(image)
    assert load_image_folder(folder).images.unique().tolist() == [50, 60]
