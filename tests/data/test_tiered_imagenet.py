"""tieredImageNet is read from the publisher's pickles, which are its split."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot.data import tiered_imagenet
from fewshot.data.catalogue import load_dataset
from fewshot.data.obtain import get_dataset
from fewshot.data.split import SIDES, Side
from fewshot.data.tiered_imagenet import load_tiered_imagenet
from fewshot.errors import DataError

SIZE = 6
NAMES: dict[Side, list[str]] = {"train": ["wing", "abaya"], "val": ["crane"], "test": ["crane", "bee"]}
# The label of each image: not in order, and not as many of each.
LABELS: dict[Side, list[int]] = {"train": [1, 0, 1, 1], "val": [0, 0], "test": [1, 1, 0]}


def photograph(side: Side, index: int) -> np.ndarray:
    """(SIZE, SIZE, 3), the same at each call."""
    random = np.random.default_rng([SIDES.index(side), index])
    return random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def encoded(side: Side) -> list[np.ndarray]:
    """As OpenCV encodes: a column of bytes for each image."""
    columns = []
    for index in range(len(LABELS[side])):
        buffer = io.BytesIO()
        Image.fromarray(photograph(side, index)).save(buffer, "PNG")
        columns.append(np.frombuffer(buffer.getvalue(), np.uint8).reshape(-1, 1).copy())
    return columns


def files() -> dict[str, bytes]:
    """The publisher's six pickles."""
    content: dict[str, object] = {}
    for side in SIDES:
        content[f"{side}_images_png.pkl"] = encoded(side)
        content[f"{side}_labels.pkl"] = {
            "label_specific": np.array(LABELS[side], np.int32),
            "label_specific_str": NAMES[side],
            "label_general": np.zeros(len(LABELS[side]), np.int32),
            "label_general_str": ["thing"],
        }
    return {name: pickle.dumps(value, protocol=2) for name, value in content.items()}


def write_folder(root: Path) -> Path:
    folder = root / "tiered-imagenet"
    folder.mkdir(parents=True)
    for name, content in files().items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "tiered-imagenet.tar", "w") as archive:
        for name, content in files().items():
            entry = tarfile.TarInfo(f"tiered-imagenet/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return root / "tiered-imagenet.tar"


@pytest.fixture(autouse=True)
def small_tiered_imagenet(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiered_imagenet, "CLASSES", {side: len(NAMES[side]) for side in SIDES})
    monkeypatch.setattr(tiered_imagenet, "IMAGES", {side: len(LABELS[side]) for side in SIDES})


def test_archive_and_folder_agree(tmp_path: Path) -> None:
    write_archive(tmp_path / "packed" / "tiered_imagenet")
    write_folder(tmp_path / "unpacked")
    packed = load_tiered_imagenet(tmp_path / "packed", SIZE)
    assert packed.digest == load_tiered_imagenet(tmp_path / "unpacked", SIZE).digest
    assert packed.class_names == ("test/bee", "test/crane", "train/abaya", "train/wing", "val/crane")
    assert packed.images_per_class.tolist() == [2, 1, 3, 1, 2]
    rows: list[tuple[Side, int]] = [
        *(("test", i) for i in (0, 1, 2)),
        *(("train", i) for i in (0, 2, 3, 1)),
        *(("val", i) for i in (0, 1)),
    ]
    expected = np.stack([photograph(*row) for row in rows]).transpose(0, 3, 1, 2)
    assert np.array_equal(packed.images.numpy(), expected)
    assert packed.image_names[3:7] == ("000000", "000002", "000003", "000001")


def test_the_files_are_the_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    split = load_dataset("tiered_imagenet", tmp_path, SIZE).split("folders")
    assert [len(split.side(side)) for side in SIDES] == [2, 1, 2]
    assert split.val.class_name(0) == "val/crane"


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("val_labels.pkl", {"labels": [0, 0]}, "does not hold tieredImageNet's labels"),
        (
            "val_labels.pkl",
            {"label_specific": [0, 0], "label_specific_str": []},
            "does not hold tieredImageNet's labels",
        ),
        (
            "train_labels.pkl",
            {"label_specific": [0, 0, 0, 0], "label_specific_str": ["wing"]},
            "has 1 classes and 4 images, not 2 and 4: replace it",
        ),
        ("test_images_png.pkl", [np.zeros((3, 1), np.uint8)] * 2, "is not a list of 3 images: replace it"),
        (
            "test_images_png.pkl",
            [np.zeros((3, 1), np.uint8)] * 3,
            r"image 0 of .*test_images_png\.pkl is damaged",
        ),
        ("val_images_png.pkl", np.zeros((2, SIZE, SIZE, 3), np.uint8), "is not a list of 2 images"),
    ],
)
def test_other_content_is_refused(name: str, content: object, problem: str, tmp_path: Path) -> None:
    (write_folder(tmp_path) / name).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=problem):
        load_tiered_imagenet(tmp_path, SIZE)


def test_missing_file_is_named(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "val_labels.pkl").unlink()
    with pytest.raises(DataError, match=r"val_labels\.pkl cannot be read"):
        load_tiered_imagenet(tmp_path)


def test_archive_that_was_cut_short_is_one_clear_line(tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"tiered-imagenet\.tar.*(damaged|cut short).*: replace it"):
        load_tiered_imagenet(tmp_path)


def test_archive_without_a_file_names_it(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "tiered-imagenet.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("tiered-imagenet/readme.txt"))
    with pytest.raises(DataError, match=r"tiered-imagenet\.tar holds no file test_labels\.pkl"):
        load_tiered_imagenet(tmp_path)


def test_get_explains_and_takes_what_the_user_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded: .*few-shot-ssl-public.*--from PATH"):
        get_dataset("tiered_imagenet", tmp_path / "data", say=lambda line: None)
    mine = write_folder(tmp_path / "mine")
    get_dataset("tiered_imagenet", tmp_path / "data", mine, say=lambda line: None)
    assert (tmp_path / "data" / "tiered_imagenet" / "tiered-imagenet" / "val_labels.pkl").is_file()
