"""Glyphs: the same pixels everywhere, what an image set promises, and drawings that belong together."""

import numpy as np
import pytest

from fewshot.data.glyphs import load_glyphs
from fewshot.data.image_set import ImageSet
from fewshot.errors import DataError


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return load_glyphs(28)


def test_there_are_1600_characters_of_50_alphabets_by_20_drawers(glyphs: ImageSet) -> None:
    assert glyphs.images.shape == (32_000, 1, 28, 28)
    assert len({name.partition("/")[0] for name in glyphs.class_names}) == 50
    assert len(glyphs.class_names) == 1600
    assert glyphs.images_per_class.eq(20).all()
    assert glyphs.licence == "MIT"


@pytest.mark.parametrize("size", [0, 106, -3])
def test_a_size_that_cannot_be_drawn_is_refused(size: int) -> None:
    with pytest.raises(DataError, match="1 to 105"):
        load_glyphs(size)


def test_drawings_of_one_character_are_nearer_than_those_of_two(glyphs: ImageSet) -> None:
    pixels = glyphs.images.numpy().reshape(1600, 20, -1).astype(np.float32) / 255
    within = np.square(pixels[:, 0] - pixels[:, 1]).sum(axis=1)
    between = np.square(pixels[:, 0] - np.roll(pixels[:, 1], 1, axis=0)).sum(axis=1)
    assert within.mean() < 0.8 * between.mean()
