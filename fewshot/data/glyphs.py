"""Glyphs: 1,600 invented handwritten characters of 50 alphabets, each drawn once by 20 people.

The embedded default: nothing to download, the same pixels everywhere. Drawn by `fewshot.data.handwriting`
in about ten seconds and then cached; good enough that a network trained on glyphs alone reads Omniglot.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from fewshot.data.cache import Pixels, Plan, cached_image_set
from fewshot.data.handwriting.drawers import DRAWERS, SIDE, draw_alphabet
from fewshot.data.handwriting.integers import child_key
from fewshot.data.image_set import ImageSet
from fewshot.data.progress import progress
from fewshot.data.stored_images import fit
from fewshot.errors import DataError

NAME = "glyphs"
GLYPHS_VERSION = 1
SOURCE = "drawn by fewshot.data.handwriting"
LICENCE = "MIT"
ALPHABETS = 50
CHARACTERS = 32  # of each alphabet
SEED = 7


def load_glyphs(image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """Ink 255 on paper 0, one channel, classes "AlphabetNN/characterNN", images named by their drawer.

    image_size: pixels of a side, 105 by default; shrunk as Omniglot is.
    rebuild: draw anew even if the cache has it.
    Raises DataError where the size is not between 1 and 105.
    """
    size = SIDE if image_size is None else image_size
    if not 1 <= size <= SIDE:
        raise DataError(
            f"glyphs at {size}x{size} asked for, they are drawn at {SIDE}x{SIDE}: ask for 1 to {SIDE}"
        )
    return cached_image_set(NAME, size, GLYPHS_VERSION, f"seed-{SEED}", lambda: _plan(size), rebuild)


def draw_glyphs() -> Iterator[Pixels]:
    """(drawer, 105, 105) for each character, alphabet by alphabet."""
    for alphabet in range(ALPHABETS):
        yield from draw_alphabet(child_key(SEED, alphabet), CHARACTERS)


def _plan(image_size: int) -> Plan:
    drawers = [f"drawer{drawer:02d}" for drawer in range(1, DRAWERS + 1)]

    def draw(pixels: Pixels) -> None:
        with progress("drawing glyphs", len(pixels)) as advance:
            for character, drawings in enumerate(draw_glyphs()):
                for drawer, drawing in enumerate(drawings):
                    pixels[character * DRAWERS + drawer, 0] = np.asarray(
                        fit(Image.fromarray(drawing), image_size)
                    )
                advance(DRAWERS)

    return Plan(
        name=NAME,
        classes={
            f"Alphabet{alphabet:02d}/character{character:02d}": drawers
            for alphabet in range(1, ALPHABETS + 1)
            for character in range(1, CHARACTERS + 1)
        },
        image_shape=(1, image_size, image_size),
        source=SOURCE,
        licence=LICENCE,
        mean=(0.0,),
        std=(1.0,),
        draw=draw,
    )
