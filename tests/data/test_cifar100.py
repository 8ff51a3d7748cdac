"""CIFAR-FS and FC100 are CIFAR-100's photographs, whichever way they are stored, under two splits."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot.data import cifar100
from fewshot.data.catalogue import load_dataset
from fewshot.data.cifar100 import load_cifar100
from fewshot.data.class_lists import class_list
from fewshot.data.image_set import ImageSet
from fewshot.data.obtain import get_dataset
from fewshot.data.split import SIDES, Side
from fewshot.errors import DataError

PER_CLASS = 3
"""Two of them in the publisher's train, one in its test."""
FULL_NAMES = sorted(name for side in SIDES for name in class_list("cifar_fs", "bertinetto", side))
FINE = sorted(name.rpartition("/")[2] for name in FULL_NAMES)


def photograph(fine: str, number: int) -> np.ndarray:
    """(32, 32, 3), the same at each call."""
    random = np.random.default_rng([FINE.index(fine), number])
    return random.integers(0, 256, (32, 32, 3), dtype=np.uint8)


def file_name(fine: str, number: int) -> str:
    # The publisher's names are in no order of the rows: here they run against it.
    return f"{fine}_s_{900 - number:06d}.png"


def pickles(missing: str = "") -> dict[str, bytes]:
    """The publisher's three pickles, as Python 2 wrote them."""
    parts: dict[str, object] = {"meta": {"fine_label_names": FINE}}
    for part, numbers in {"train": (0, 1), "test": (2,)}.items():
        rows = [(fine, number) for number in numbers for fine in FINE if fine != missing]
        parts[part] = {
            "data": np.stack([photograph(*row).transpose(2, 0, 1).reshape(-1) for row in rows]),
            "fine_labels": [FINE.index(fine) for fine, _ in rows],
            "filenames": [file_name(*row) for row in rows],
        }
    return {name: pickle.dumps(content, protocol=2) for name, content in parts.items()}


def write_archive(root: Path, missing: str = "") -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, content in pickles(missing).items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def write_pickles(root: Path, missing: str = "") -> None:
    (root / "cifar-100-python").mkdir(parents=True)
    for name, content in pickles(missing).items():
        (root / "cifar-100-python" / name).write_bytes(content)


def write_class_folders(root: Path, missing: str = "") -> None:
    for fine in FINE:
        if fine != missing:
            folder = root / "cifar100" / "data" / fine
            folder.mkdir(parents=True)
            for number in range(PER_CLASS):
                Image.fromarray(photograph(fine, number)).save(folder / file_name(fine, number))


def write_class_archive(root: Path, missing: str = "") -> None:
    write_class_folders(root / "unpacked", missing)
    with zipfile.ZipFile(root / "cifar100.zip", "w") as archive:
        archive.writestr("cifar100/splits/bertinetto/val.txt", "beaver\n")
        for file in sorted((root / "unpacked").rglob("*.png")):
            archive.write(file, file.relative_to(root / "unpacked"))


LAYOUTS = (write_archive, write_pickles, write_class_folders, write_class_archive)


@pytest.fixture(autouse=True)
def small_cifar100(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar100, "IMAGES_PER_CLASS", PER_CLASS)


def check_pixels(image_set: ImageSet) -> None:
    assert image_set.class_names == tuple(FULL_NAMES)
    assert image_set.image_shape == (3, 32, 32)
    expected = [
        photograph(name.rpartition("/")[2], number)
        for name in FULL_NAMES
        for number in reversed(range(PER_CLASS))
    ]
    assert np.array_equal(image_set.images.numpy(), np.stack(expected).transpose(0, 3, 1, 2))
    assert image_set.image_names[:2] == ("beaver_s_000898", "beaver_s_000899")


@pytest.mark.parametrize("write", LAYOUTS)
def test_layouts_agree(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "data" / "cifar_fs")
    check_pixels(load_cifar100("cifar_fs", tmp_path / "data"))


def test_one_copy_serves_both_sets(tmp_path: Path) -> None:
    write_archive(tmp_path / "cifar_fs")
    sizes = {"cifar_fs": ("bertinetto", (64, 16, 20)), "fc100": ("oreshkin", (60, 20, 20))}
    for name, (split_name, expected) in sizes.items():
        image_set = load_dataset(name, tmp_path)
        split = image_set.split(split_name)
        assert (image_set.name, tuple(len(split.side(side)) for side in SIDES)) == (name, expected)


def test_fc100_shares_no_superclass() -> None:
    tops = {side: {name.split("/")[0] for name in class_list("fc100", "oreshkin", side)} for side in SIDES}
    assert [len(tops[side]) for side in SIDES] == [12, 4, 4]
    assert len(set.union(*tops.values())) == 20
    assert tops["test"] == {"aquatic_mammals", "insects", "medium_mammals", "people"}


def test_both_splits_are_of_the_same_classes() -> None:
    assert sorted(name for side in SIDES for name in class_list("fc100", "oreshkin", side)) == FULL_NAMES
    assert len({name.split("/")[0] for name in FULL_NAMES}) == 20


def test_numbered_pickles_are_split_by_their_files(tmp_path: Path) -> None:
    first: dict[Side, int] = {"train": 0, "val": 60, "test": 80}
    for side, offset in first.items():
        labels = [offset + i for i in range(len(class_list("fc100", "oreshkin", side)))] * PER_CLASS
        data = np.stack([photograph(FINE[label], 0) for label in labels])
        content = pickle.dumps({"data": data, "labels": labels}, protocol=2)
        (tmp_path / f"FC100_{side}.pickle").write_bytes(content)
    image_set = load_cifar100("fc100", tmp_path)
    split = image_set.split("folders")
    assert [len(split.side(side)) for side in SIDES] == [60, 20, 20]
    assert split.test.class_name(19) == "test/99"
    row = int(split.test.first_image[19])
    assert np.array_equal(image_set.images[row].numpy(), photograph(FINE[99], 0).transpose(2, 0, 1))


@pytest.mark.parametrize("write", LAYOUTS)
def test_missing_class_is_named(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    write(tmp_path, "whale")
    with pytest.raises(DataError, match="lacks 1 of its 100 classes, first aquatic_mammals/whale"):
        load_cifar100("cifar_fs", tmp_path)


def test_class_with_too_few_photographs_is_named(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    (tmp_path / "cifar100" / "data" / "tank" / file_name("tank", 1)).unlink()
    with pytest.raises(DataError, match="vehicles_2/tank has 2 images, not 3"):
        load_cifar100("fc100", tmp_path)


@pytest.mark.parametrize("kept", [0.5, 0.001])
def test_archive_that_was_cut_short_is_one_clear_line(kept: float, tmp_path: Path) -> None:
    write_archive(tmp_path)
    archive = tmp_path / "cifar-100-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz.* (cut short|damaged).*: replace it"):
        load_cifar100("cifar_fs", tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>log in</html>", "is not a tar archive but an HTML page"),
        (b"PK\x03\x04 a zip", "is not a tar archive, or one that was cut short"),
    ],
)
def test_what_is_no_archive_is_said(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_cifar100("cifar_fs", tmp_path)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("meta", {"label_names": FINE}),
        ("test", {"data": np.zeros((1, 10), np.uint8), "fine_labels": [0], "filenames": ["a.png"]}),
        ("test", {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100], "filenames": ["a.png"]}),
        ("test", {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [0, 1], "filenames": ["a.png"]}),
        ("test", [1, 2]),
    ],
)
def test_other_pickles_are_refused(part: str, content: object, tmp_path: Path) -> None:
    write_pickles(tmp_path)
    (tmp_path / "cifar-100-python" / part).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="is not CIFAR-100 for Python"):
        load_cifar100("cifar_fs", tmp_path)


def test_missing_part_is_named(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    (tmp_path / "cifar-100-python" / "test").unlink()
    with pytest.raises(DataError, match="cifar-100-python/test cannot be read"):
        load_cifar100("cifar_fs", tmp_path)


@pytest.mark.parametrize("point", ["", "cifar-100-python"])
def test_what_the_user_has_is_copied(point: str, tmp_path: Path) -> None:
    write_pickles(tmp_path / "mine")
    get_dataset("fc100", tmp_path / "data", tmp_path / "mine" / point, say=lambda line: None)
    assert (tmp_path / "data" / "fc100" / "cifar-100-python" / "meta").is_file()
    check_pixels(load_cifar100("fc100", tmp_path / "data"))


def test_absent_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no fc100 in .*`fewshot data get fc100`"):
        load_dataset("fc100", tmp_path)
