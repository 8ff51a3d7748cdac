"""Glyphs: the same pixels everywhere, and what an image set promises."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fewshot.data import glyphs
from fewshot.errors import DataError

DIGESTS = {
    105: "374ea0989dcb3a49f4c5762ae56fcb2296d29cf3c4e7cb708b2a21738a3fda8f",
    28: "4c64df7d51c456b8b83f6ba429859325b3ad54e279859f24fa05654ab7649e3d",
}


@pytest.fixture(scope="module")
def drawings() -> list[NDArray[np.uint8]]:
    """All characters, drawn once for every test of this file."""
    return list(glyphs.draw_glyphs())


@pytest.fixture
def _drawn_once(drawings: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path))
    monkeypatch.setattr(glyphs, "draw_glyphs", lambda: iter(drawings))


@pytest.mark.parametrize("size", DIGESTS)
@pytest.mark.usefixtures("_drawn_once")
def test_pixels_are_the_same_everywhere(size: int) -> None:
    digest = glyphs.load_glyphs(size).digest
    assert digest == DIGESTS[size], "figures measured on glyphs are stale now: raise GLYPHS_VERSION"


@pytest.mark.usefixtures("_drawn_once")
def test_there_are_1600_characters_of_50_alphabets_by_20_drawers(drawings: list[NDArray[np.uint8]]) -> None:
    image_set = glyphs.load_glyphs(28)
    assert image_set.images.shape == (32_000, 1, 28, 28)
    assert len(image_set.class_names) == 1600
    assert len({name.partition("/")[0] for name in image_set.class_names}) == 50
    assert image_set.images_per_class.eq(20).all()
    assert image_set.licence == "MIT"
    # The image that a name stands for is the drawing of that drawer.
    index = image_set.class_names.index("Alphabet03/character05")
    row = int(image_set.class_start[index]) + image_set.image_names[:20].index("drawer07")
    drawing = Image.fromarray(drawings[2 * 32 + 4][6]).resize((28, 28), Image.Resampling.BOX)
    assert torch.equal(image_set.images[row, 0], torch.from_numpy(np.array(drawing)))


def test_drawings_of_one_character_are_nearer_than_those_of_two(drawings: list[NDArray[np.uint8]]) -> None:
    coarse = np.stack(drawings)[:, :2].reshape(1600, 2, 15, 7, 15, 7).mean(axis=(3, 5)).reshape(1600, 2, -1)
    within = np.square(coarse[:, 0] - coarse[:, 1]).sum(axis=1)
    between = np.square(coarse[:, 0] - np.roll(coarse[:, 1], 1, axis=0)).sum(axis=1)
    assert within.mean() < 0.85 * between.mean()


def test_strokes_cover_as_much_paper_as_those_of_omniglot(drawings: list[NDArray[np.uint8]]) -> None:
    # Omniglot's training classes at 105x105: 7.7 % at the median.
    covered = np.median([(drawing > 0).mean() for drawing in drawings])
    assert 0.06 < covered < 0.09


@pytest.mark.parametrize("size", [0, 106, -3])
def test_a_size_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(DataError, match="ask for 1 to 105"):
        glyphs.load_glyphs(size)
