"""Every layout in which miniImageNet goes about gives the same pixels."""

import csv
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot.data import mini_imagenet
from fewshot.data.class_lists import class_list
from fewshot.data.image_set import ImageSet
from fewshot.data.locations import data_root
from fewshot.data.mini_imagenet import load_mini_imagenet
from fewshot.data.split import SIDES, Side
from fewshot.data.stored_images import decode, list_images
from fewshot.errors import DataError

PER_CLASS = 2
SIZE = 6


def photographs(side: Side) -> dict[str, np.ndarray]:
    """wnid -> (image, height, width, 3), the same at each call."""
    random = np.random.default_rng(SIDES.index(side))
    return {
        wnid: random.integers(0, 256, (PER_CLASS, SIZE, SIZE, 3), dtype=np.uint8)
        for wnid in class_list("mini_imagenet", "ravi", side)
    }


def write_folders(root: Path) -> None:
    for side in SIDES:
        for wnid, images in photographs(side).items():
            (root / side / wnid).mkdir(parents=True)
            for number, image in enumerate(images):
                Image.fromarray(image).save(root / side / wnid / f"{wnid}{number:08d}.png")


def write_archives(root: Path) -> None:
    write_folders(root / "unpacked")
    for side in SIDES:
        files = sorted((root / "unpacked" / side).rglob("*.png"))
        halves = (
            {"train_0": files[: len(files) // 2], "train_1": files[len(files) // 2 :]}
            if side == "train"
            else {side: files}
        )
        for stem, chosen in halves.items():
            with zipfile.ZipFile(root / f"{stem}.zip", "w") as archive:
                for file in chosen:
                    archive.write(file, file.relative_to(root / "unpacked"))


def write_csv(root: Path) -> None:
    (root / "images").mkdir(parents=True)
    for side in SIDES:
        with (root / f"{side}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "label"])
            for wnid, images in photographs(side).items():
                for number, image in enumerate(images):
                    table.writerow([f"{wnid}{number:08d}.png", wnid])
                    Image.fromarray(image).save(root / "images" / f"{wnid}{number:08d}.png")


def write_pickles(root: Path, protocol: int = 2) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for side in SIDES:
        images = photographs(side)
        rows = {wnid: [PER_CLASS * i + j for j in range(PER_CLASS)] for i, wnid in enumerate(images)}
        content = {"image_data": np.concatenate(list(images.values())), "class_dict": rows}
        (root / f"mini-imagenet-cache-{side}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.fixture(autouse=True)
def small_mini_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini_imagenet, "IMAGES_PER_CLASS", PER_CLASS)


def check_pixels(image_set: ImageSet) -> None:
    expected = photographs("train") | photographs("val") | photographs("test")
    assert image_set.class_names == tuple(sorted(expected))
    assert image_set.image_shape == (3, SIZE, SIZE)
    for class_index, wnid in enumerate(image_set.class_names):
        start = int(image_set.class_start[class_index])
        pixels = image_set.images[start : start + PER_CLASS].numpy()
        assert np.array_equal(pixels, expected[wnid].transpose(0, 3, 1, 2))
    split = image_set.split("ravi")
    assert (len(split.train), len(split.val), len(split.test)) == (64, 16, 20)


@pytest.mark.parametrize("write", [write_folders, write_archives, write_csv, write_pickles])
def test_layouts_agree(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "data" / "mini_imagenet")
    image_set = load_mini_imagenet(tmp_path / "data", SIZE)
    check_pixels(image_set)
    if write is not write_pickles:
        assert image_set.image_names[0] == f"{image_set.class_names[0]}00000000"
        assert ".png images" in image_set.source


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    write_pickles(tmp_path, protocol)
    check_pixels(load_mini_imagenet(tmp_path, SIZE))


def test_numbered_pickles_are_split_by_their_files(tmp_path: Path) -> None:
    phases: dict[Side, str] = {"train": "train_phase_train", "val": "val", "test": "test"}
    for side, phase in phases.items():
        images = photographs(side)
        content = {
            "data": np.concatenate(list(images.values())),
            "labels": [label for label in range(len(images)) for _ in range(PER_CLASS)],
        }
        path = tmp_path / f"miniImageNet_category_split_{phase}.pickle"
        path.write_bytes(pickle.dumps(content))
    image_set = load_mini_imagenet(tmp_path, SIZE)
    split = image_set.split("folders")
    assert (len(split.train), len(split.val), len(split.test)) == (64, 16, 20)
    first = image_set.images[image_set.class_start[split.test.class_index[3]]].numpy()
    assert np.array_equal(first, list(photographs("test").values())[3][0].transpose(2, 0, 1))


def test_missing_class_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    (tmp_path / "train_1.zip").unlink()
    with pytest.raises(DataError, match="train side lacks 32 of its 64 classes, first n03347037"):
        load_mini_imagenet(tmp_path, SIZE)


def test_missing_side_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    (tmp_path / "test.zip").unlink()
    with pytest.raises(DataError, match="has train, val as archives but no test"):
        load_mini_imagenet(tmp_path, SIZE)


def test_missing_photograph_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path)
    wnid = class_list("mini_imagenet", "ravi", "val")[0]
    (tmp_path / "images" / f"{wnid}00000001.png").unlink()
    with pytest.raises(DataError, match=rf"{wnid}00000001\.png is missing, val\.csv lists it"):
        load_mini_imagenet(tmp_path, SIZE)


def test_class_with_too_few_photographs_is_named(tmp_path: Path) -> None:
    write_folders(tmp_path)
    wnid = class_list("mini_imagenet", "ravi", "test")[5]
    (tmp_path / "test" / wnid / f"{wnid}00000001.png").unlink()
    with pytest.raises(DataError, match=f"{wnid} has 1 images, not 2"):
        load_mini_imagenet(tmp_path, SIZE)


def test_class_on_the_wrong_side_is_refused(tmp_path: Path) -> None:
    write_folders(tmp_path)
    wnid = class_list("mini_imagenet", "ravi", "test")[0]
    (tmp_path / "test" / wnid).rename(tmp_path / "train" / wnid)
    with pytest.raises(DataError, match=f"train side holds {wnid}, which is not in its list"):
        load_mini_imagenet(tmp_path, SIZE)


def test_absent_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no mini_imagenet in .*no open address.*--from PATH"):
        load_mini_imagenet(tmp_path)


@pytest.mark.needs_data
def test_real_validation_photographs() -> None:
    archive = data_root() / "mini_imagenet" / "val.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is not here: no real miniImageNet in archives")
    stored = list_images(archive, "")
    assert {image.parts[-2] for image in stored} == set(class_list("mini_imagenet", "ravi", "val"))
    assert len(stored) == 16 * 600
    pixels = np.zeros((20, 3, 84, 84), np.uint8)
    decode("some of val", stored[:20], pixels, "", ink_high=False)
    assert 60 < pixels.mean() < 190
    assert pixels.std(axis=(1, 2, 3)).min() > 10
