"""Omniglot is read from archives or folders alike, in whole or not at all."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fewshot.data import omniglot
from fewshot.data.catalogue import load_dataset
from fewshot.data.locations import data_root
from fewshot.data.omniglot import find_parts, load_omniglot
from fewshot.errors import DataError

PARTS = {
    "images_background": ["Greek/character01", "Greek/character02", "Latin/character01"],
    "images_evaluation": ["ULOG/character01", "Angelic/character01"],
}
DRAWERS = 2
Drop = Callable[[str], bool]


def drawing(position: int) -> bytes:
    """A page with one column of ink, 5 pixels wide at 105x105."""
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (5 * position, 0, 5 * position + 5, 105))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def members(part: str) -> dict[str, bytes]:
    return {
        f"{part}/{name}/{number:04d}_{drawer:02d}.png": drawing(10 * drawer)
        for number, name in enumerate(PARTS[part])
        for drawer in range(1, DRAWERS + 1)
    }


def write_archives(root: Path, drop: Drop = lambda member: False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            archive.writestr(f"__MACOSX/{part}/Greek/character01/._0000_01.png", b"not an image")
            for member, content in members(part).items():
                if not drop(member):
                    archive.writestr(member, content)


@pytest.fixture(autouse=True)
def small_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(omniglot, "CLASSES", {part: len(names) for part, names in PARTS.items()})
    monkeypatch.setattr(omniglot, "DRAWERS", DRAWERS)


def test_ink_is_high_and_classes_are_sorted(tmp_path: Path) -> None:
    write_archives(tmp_path / "data" / "omniglot")
    image_set = load_omniglot(tmp_path / "data")
    assert image_set.class_names == tuple(sorted(PARTS["images_background"] + PARTS["images_evaluation"]))
    assert image_set.image_shape == (1, 105, 105)
    assert image_set.images_per_class.tolist() == [DRAWERS] * 5
    assert image_set.image_names[:2] == ("0001_01.png", "0001_02.png")  # Angelic is the second of its part
    first, second = image_set.images[0, 0], image_set.images[1, 0]
    assert first[:, 50:55].eq(255).all()
    assert first.sum() == 255 * 5 * 105
    assert second[:, 100:105].eq(255).all()


def test_shrinking_keeps_the_mean(tmp_path: Path) -> None:
    write_archives(tmp_path / "data")
    large = load_omniglot(tmp_path / "data").images.float().mean()
    small = load_omniglot(tmp_path / "data", 21)
    assert small.image_shape == (1, 21, 21)
    torch.testing.assert_close(small.images.float().mean(), large)
    assert small.images[0, 0, :, 10].eq(255).all()  # 5 columns of ink are exactly one of these


def test_archives_and_folders_give_the_same_images(tmp_path: Path) -> None:
    write_archives(tmp_path / "zipped")
    for part in PARTS:
        with zipfile.ZipFile(tmp_path / "zipped" / f"{part}.zip") as archive:
            archive.extractall(tmp_path / "folders" / "omniglot")
    zipped = load_omniglot(tmp_path / "zipped", 21)
    folders = load_omniglot(tmp_path / "folders", 21)
    assert zipped.digest == folders.digest


def test_truncated_archive_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    path = tmp_path / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(
        DataError, match=r"images_evaluation\.zip is a zip archive that was cut short.*data get"
    ):
        load_omniglot(tmp_path)


def test_html_page_in_place_of_an_archive_is_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    (tmp_path / "images_background.zip").write_text("\n<!DOCTYPE html><html>Log in first</html>")
    with pytest.raises(DataError, match=r"images_background\.zip is not a zip archive but an HTML page"):
        load_omniglot(tmp_path)


def test_flipped_byte_is_found_and_its_image_named(tmp_path: Path) -> None:
    write_archives(tmp_path)
    path = tmp_path / "images_evaluation.zip"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ULOG/character01/0000_01\.png in .* is damaged"):
        load_omniglot(tmp_path)


def test_missing_part_is_named_with_the_remedy(tmp_path: Path) -> None:
    write_archives(tmp_path)
    (tmp_path / "images_evaluation.zip").unlink()
    with pytest.raises(DataError, match=r"images_evaluation\.zip nor a folder.*fewshot data get omniglot"):
        load_omniglot(tmp_path)


def test_missing_character_and_missing_drawing_are_named(tmp_path: Path) -> None:
    write_archives(tmp_path / "character", drop=lambda member: "Latin" in member)
    with pytest.raises(DataError, match="holds 2 characters, images_background has 3"):
        load_omniglot(tmp_path / "character")
    write_archives(tmp_path / "drawing", drop=lambda member: member.endswith("0002_02.png"))
    with pytest.raises(DataError, match="Latin/character01 has 1 drawings, 2 are published"):
        load_omniglot(tmp_path / "drawing")


@pytest.mark.needs_data
def test_real_omniglot_is_the_published_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_parts(data_root())
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.undo()
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path))
    image_set = load_dataset("omniglot", image_size=28)
    assert len(image_set.class_names) == 1_623
    assert image_set.images.shape == (32_460, 1, 28, 28)
    assert image_set.images_per_class.eq(20).all()
    assert image_set.digest == "c8562531737f87591223ff920979947abee34c9871a88e0ad61bca666f28218f"
    sizes = {"santoro": (1100, 100, 423), "vinyals": (1028, 172, 423), "lake": (806, 158, 659)}
    for name, (train, val, test) in sizes.items():
        split = image_set.split(name)
        assert (len(split.train), len(split.val), len(split.test)) == (train, val, test)
