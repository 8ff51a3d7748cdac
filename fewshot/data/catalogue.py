"""The data sets that can be asked for by name, and any folder of class folders by its path."""

from collections.abc import Callable
from pathlib import Path

from fewshot.data.image_set import ImageSet
from fewshot.data.locations import data_root
from fewshot.data.omniglot import load_omniglot
from fewshot.errors import DataError, unknown


def _load_glyphs(root: Path, image_size: int | None) -> ImageSet:
    from fewshot.data.glyphs import load_glyphs  # drawn, not read: no other set needs the stroke model

    return load_glyphs(image_size)


LOADERS: dict[str, Callable[[Path, int | None], ImageSet]] = {
    "omniglot": load_omniglot,
    "glyphs": _load_glyphs,
}


def load_dataset(name: str, root: Path | None = None, image_size: int | None = None) -> ImageSet:
    """The image set of that name, decoded once and then memory-mapped from the cache.

    name: omniglot, mini_imagenet, glyphs, or the path of a folder of class folders.
    root: the data directory; see `fewshot.data.locations.data_root`.
    image_size: pixels of a side; None for the size as published.
    Raises DataError where the name is unknown, or its images are missing or damaged.
    """
    if name in LOADERS:
        return LOADERS[name](data_root(root), image_size)
    raise DataError(unknown("dataset", name, LOADERS))
