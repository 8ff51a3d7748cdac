"""CUB-200-2011 is read from the publisher's archive or folder, and held against the list of its species."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot.data import cub
from fewshot.data.catalogue import load_dataset
from fewshot.data.class_lists import class_list
from fewshot.data.cub import load_cub
from fewshot.data.obtain import get_dataset
from fewshot.data.split import SIDES
from fewshot.errors import DataError

SPECIES = sorted(name for side in SIDES for name in class_list("cub", "chen", side))


def photograph(number: int) -> bytes:
    """A PNG of 12 x 8 whose central square is of one colour; the species' photographs alternate in mode."""
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, 2:10] = number
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("L" if number % 2 else "RGB").save(buffer, "PNG")
    return buffer.getvalue()


def files(missing: str = "") -> dict[str, bytes]:
    """The publisher's files, two photographs of each species; not in order, as in the publisher's archive."""
    images = {
        f"images/{species}/{species[4:]}_{index:04d}.png": photograph(number)
        for index in (1, 0)
        for number, species in reversed(list(enumerate(SPECIES)))
        if species != missing
    }
    return {"classes.txt": b"1 001.Black_footed_Albatross\n", **images, "images/._x.png": b"not an image"}


def write_folder(root: Path, missing: str = "") -> None:
    for name, content in files(missing).items():
        path = root / "CUB_200_2011" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_archive(root: Path, missing: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("attributes.txt"))
        for name, content in files(missing).items():
            entry = tarfile.TarInfo(f"CUB_200_2011/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return root / "CUB_200_2011.tgz"


@pytest.fixture(autouse=True)
def small_cub(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "IMAGES", 2 * len(SPECIES))


def test_archive_and_folder_agree(tmp_path: Path) -> None:
    write_archive(tmp_path / "packed" / "cub")
    write_folder(tmp_path / "unpacked")
    packed, unpacked = load_cub(tmp_path / "packed", 4), load_cub(tmp_path / "unpacked", 4)
    assert packed.digest == unpacked.digest
    assert packed.class_names == tuple(SPECIES)
    assert packed.image_names[:2] == ("Black_footed_Albatross_0000", "Black_footed_Albatross_0001")
    expected = np.broadcast_to(np.arange(200, dtype=np.uint8).repeat(2)[:, None, None, None], (400, 3, 4, 4))
    assert np.array_equal(packed.images.numpy(), expected)


def test_the_split_is_by_the_number_of_the_species(tmp_path: Path) -> None:
    write_archive(tmp_path)
    split = load_dataset("cub", tmp_path, 4).split("chen")
    remainders = {side: {int(name[:3]) % 4 for name in class_list("cub", "chen", side)} for side in SIDES}
    assert remainders == {"train": {1, 3}, "val": {2}, "test": {0}}
    assert [len(split.side(side)) for side in SIDES] == [100, 50, 50]


def test_the_list_numbers_every_species() -> None:
    assert [int(species[:3]) for species in SPECIES] == list(range(1, 201))


@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_missing_species_is_named(write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path, SPECIES[6])
    with pytest.raises(DataError, match=r"lacks 1 of its 200 classes, first 007\.Parakeet_Auklet: delete it"):
        load_cub(tmp_path)


def test_missing_photographs_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path)
    monkeypatch.setattr(cub, "IMAGES", 401)
    with pytest.raises(DataError, match="holds 400 photographs, 401 are published"):
        load_cub(tmp_path)


@pytest.mark.parametrize("kept", [0.9, 0.2, 0.0])
def test_archive_that_was_cut_short_is_one_clear_line(kept: float, tmp_path: Path) -> None:
    archive = write_archive(tmp_path)
    archive.write_bytes(archive.read_bytes()[: int(kept * archive.stat().st_size)])
    with pytest.raises(DataError, match=r"CUB_200_2011\.tgz is not a tar archive, or one that was cut short"):
        load_cub(tmp_path)


def test_damaged_photograph_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "CUB_200_2011" / "images" / SPECIES[3] / f"{SPECIES[3][4:]}_0001.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"Groove_billed_Ani_0001\.png is damaged"):
        load_cub(tmp_path)


@pytest.mark.parametrize("point", ["", "CUB_200_2011.tgz"])
def test_what_the_user_has_is_copied(point: str, tmp_path: Path) -> None:
    write_archive(tmp_path / "mine")
    get_dataset("cub", tmp_path / "data", tmp_path / "mine" / point, say=lambda line: None)
    assert [path.name for path in (tmp_path / "data" / "cub").iterdir()] == ["CUB_200_2011.tgz"]


def test_absent_set_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cub in .*CUB_200_2011\.tgz.*`fewshot data get cub`"):
        load_dataset("cub", tmp_path)
