"""tieredImageNet is read from the publisher's pickles or class folders, and held against the lists."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot.data import class_lists, tiered_imagenet
from fewshot.data.catalogue import load_dataset
from fewshot.data.obtain import get_dataset
from fewshot.data.split import SIDES, Side
from fewshot.data.tiered_imagenet import load_tiered_imagenet
from fewshot.errors import DataError, SplitError

SIZE = 6
NAMES: dict[Side, list[str]] = {"train": ["wing", "abaya"], "val": ["crane"], "test": ["crane", "bee"]}
IDS: dict[Side, list[str]] = {"train": ["n4", "n1"], "val": ["n3"], "test": ["n5", "n2"]}
# Three cranes: that of val, that of test, and one that no side lists.
TABLES = {
    "synsets.txt": b"n0\nn1\nn2\nn3\nn4\nn5\n",
    "class_names.txt": b"crane\nabaya\nbee\ncrane\nwing\ncrane\n",
}
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


def write_folder(root: Path, tables: bool = False) -> Path:
    folder = root / "tiered-imagenet"
    folder.mkdir(parents=True)
    for name, content in (files() | (TABLES if tables else {})).items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(root: Path, tables: bool = False) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "tiered-imagenet.tar", "w") as archive:
        for name, content in (files() | (TABLES if tables else {})).items():
            entry = tarfile.TarInfo(f"tiered-imagenet/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return root / "tiered-imagenet.tar"


def write_class_folders(root: Path) -> Path:
    for side in SIDES:
        for index, label in enumerate(LABELS[side]):
            path = root / "tiered-imagenet" / side / IDS[side][label] / f"{index:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph(side, index)).save(path)
    return root / "tiered-imagenet"


@pytest.fixture(autouse=True)
def small_tiered_imagenet(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = tmp_path / "lists" / "tiered_imagenet" / "ren"
    lists.mkdir(parents=True)
    for side in SIDES:
        (lists / f"{side}.txt").write_text("\n".join(IDS[side]))
    monkeypatch.setattr(class_lists, "LISTS", tmp_path / "lists")
    monkeypatch.setattr(tiered_imagenet, "CLASSES", {side: len(NAMES[side]) for side in SIDES})
    monkeypatch.setattr(tiered_imagenet, "IMAGES", {side: len(LABELS[side]) for side in SIDES})


def test_layouts_agree(tmp_path: Path) -> None:
    write_archive(tmp_path / "packed" / "tiered_imagenet", tables=True)
    write_folder(tmp_path / "unpacked", tables=True)
    write_class_folders(tmp_path / "folders")
    packed = load_dataset("tiered_imagenet", tmp_path / "packed", SIZE)
    for other in ("unpacked", "folders"):
        assert packed.digest == load_tiered_imagenet(tmp_path / other, SIZE).digest
    assert packed.class_names == ("n1", "n2", "n3", "n4", "n5")
    assert packed.images_per_class.tolist() == [3, 2, 2, 1, 1]
    rows: list[tuple[Side, int]] = [
        *(("train", i) for i in (0, 2, 3)),
        *(("test", i) for i in (0, 1)),
        *(("val", i) for i in (0, 1)),
        ("train", 1),
        ("test", 2),
    ]
    expected = np.stack([photograph(*row) for row in rows]).transpose(0, 3, 1, 2)
    assert np.array_equal(packed.images.numpy(), expected)
    assert packed.image_names[:3] == ("000000", "000002", "000003")
    split = packed.split("ren")
    assert [[pool.class_name(i) for i in range(len(pool))] for pool in map(split.side, SIDES)] == [
        ["n1", "n4"],
        ["n3"],
        ["n2", "n5"],
    ]


def test_pickles_without_tables_are_the_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    image_set = load_tiered_imagenet(tmp_path, SIZE)
    assert image_set.class_names == ("test/bee", "test/crane", "train/abaya", "train/wing", "val/crane")
    split = image_set.split("folders")
    assert [len(split.side(side)) for side in SIDES] == [2, 1, 2]
    with pytest.raises(SplitError, match="unknown split of tiered_imagenet 'ren': there is folders, "):
        image_set.split("ren")


def test_class_that_the_tables_do_not_name_is_missing(tmp_path: Path) -> None:
    names = write_folder(tmp_path, tables=True) / "class_names.txt"
    names.write_text(names.read_text().replace("abaya", "robe"))
    with pytest.raises(DataError, match=r"labels\.pkl lacks 1 of its 2 classes, first n1: .*split folders"):
        load_tiered_imagenet(tmp_path, SIZE)


def test_class_on_the_wrong_side_is_refused(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path)
    (folder / "test" / "n2").rename(folder / "val" / "n2")
    with pytest.raises(DataError, match="val holds n2, which is not in its list: replace it"):
        load_tiered_imagenet(tmp_path, SIZE)


def test_missing_photograph_is_counted(tmp_path: Path) -> None:
    (write_class_folders(tmp_path) / "train" / "n1" / "000002.png").unlink()
    with pytest.raises(DataError, match="train has 2 classes and 3 images, not 2 and 4"):
        load_tiered_imagenet(tmp_path, SIZE)


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
    with pytest.raises(DataError, match=r"tiered-imagenet\.tar holds no file train_labels\.pkl"):
        load_tiered_imagenet(tmp_path)


def test_get_explains_and_takes_what_the_user_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded: .*few-shot-ssl-public.*--from PATH"):
        get_dataset("tiered_imagenet", tmp_path / "data", say=lambda line: None)
    mine = write_folder(tmp_path / "mine")
    get_dataset("tiered_imagenet", tmp_path / "data", mine, say=lambda line: None)
    assert (tmp_path / "data" / "tiered_imagenet" / "tiered-imagenet" / "val_labels.pkl").is_file()
