"""tieredImageNet: 608 classes of ImageNet, 779,165 photographs, 84x84, whose sides share no category.

Ren et al., Meta-learning for semi-supervised few-shot classification, ICLR 2018. Read from the publisher's
tiered-imagenet.tar or from the folder tiered-imagenet in it. Of each side it has two pickles:

    <side>_images_png.pkl   a list of encoded images
    <side>_labels.pkl       label_specific, a number for each image; label_specific_str, the classes' names

The files name classes in words, not by WordNet id, and are the split: a class is "side/name". Decoded it is
16.5 GB, which stays in the cache's memory-mapped file; but a side's pickle of images is one object, so that
decoding it takes its size in memory, once (about 7 GB for train).
"""

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image

from fewshot.data.cache import Pixels, Plan, cached_image_set, fingerprint
from fewshot.data.copies import find_place
from fewshot.data.image_set import ImageSet
from fewshot.data.photographs import photograph_plan
from fewshot.data.progress import progress
from fewshot.data.safe_pickle import load_part
from fewshot.data.split import SIDES, Side
from fewshot.data.stored_images import to_pixels
from fewshot.errors import DataError

NAME = "tiered_imagenet"
VERSION = 1
SOURCE = "https://github.com/renmengye/few-shot-ssl-public"
LICENCE = "ImageNet's terms: research only, no redistribution"
PUBLISHED_SIZE = 84
CLASSES: dict[Side, int] = {"train": 351, "val": 97, "test": 160}
IMAGES: dict[Side, int] = {"train": 448_695, "val": 124_261, "test": 206_209}
HOW_TO_GET = (
    "its authors share tiered-imagenet.tar through a page that asks before it sends: follow the link in "
    f"{SOURCE}, then run `fewshot data get {NAME} --from PATH`"
)
REMEDY = "replace it with a whole copy, or point --data or $FEWSHOT_DATA to another"


def load_tiered_imagenet(root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """RGB photographs, classes "train/..." and so on.

    image_size: pixels of a side, 84 by default. rebuild: decode anew even if the cache has it.
    Raises DataError where a side, a class or an image is missing or damaged.
    """
    size = image_size or PUBLISHED_SIZE
    place = find_tiered_imagenet(root)
    files = [place] if place.is_file() else sorted(place.glob("*.pkl"))
    key = fingerprint((file.name, file) for file in files)
    return cached_image_set(NAME, size, VERSION, key, lambda: _plan(place, size), rebuild)


def find_tiered_imagenet(root: Path) -> Path:
    """The archive or the folder; DataError says how to get it."""
    return find_place(NAME, root, ("tiered-imagenet.tar", "tiered-imagenet"), HOW_TO_GET)


def _plan(place: Path, image_size: int) -> Plan:
    # Sides in order of name, for so the classes stand in the image set.
    sides = {side: _rows(place, side) for side in sorted(SIDES)}

    def draw(pixels: Pixels) -> None:
        row = iter(pixels)
        with progress(f"decoding {NAME}", len(pixels)) as advance:
            for side, classes in sides.items():
                encoded = _encoded(place, side)
                for indices in classes.values():
                    for index in indices:
                        next(row)[...] = to_pixels(_decoded(place, side, index, encoded[index]), image_size)
                    advance(len(indices))
                del encoded  # before the next side's is read

    names = {
        f"{side}/{name}": [f"{index:06d}" for index in indices]
        for side, classes in sides.items()
        for name, indices in classes.items()
    }
    return photograph_plan(NAME, names, image_size, f"{SOURCE}; read from pickled PNG images", LICENCE, draw)


def _rows(place: Path, side: Side) -> dict[str, list[int]]:
    """The images of each class of a side, by the class's name, in order of name."""
    file = f"{side}_labels.pkl"
    content = load_part(place, file, REMEDY)
    rows: dict[str, list[int]] = defaultdict(list)
    try:
        names = content["label_specific_str"]
        for index, label in enumerate(content["label_specific"]):
            rows[str(names[label])].append(index)
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{place / file} does not hold tieredImageNet's labels ({error!r}): {REMEDY}"
        ) from error
    found = (len(rows), sum(map(len, rows.values())))
    if found != (CLASSES[side], IMAGES[side]):
        raise DataError(
            f"{place / file} has {found[0]:,} classes and {found[1]:,} images, not {CLASSES[side]:,} and "
            f"{IMAGES[side]:,}: {REMEDY}"
        )
    return dict(sorted(rows.items()))


def _encoded(place: Path, side: Side) -> Any:
    """A side's encoded images: a sequence of arrays of bytes."""
    file = f"{side}_images_png.pkl"
    encoded = load_part(place, file, REMEDY)
    if not isinstance(encoded, list) or len(encoded) != IMAGES[side]:
        raise DataError(f"{place / file} is not a list of {IMAGES[side]:,} images: {REMEDY}")
    return encoded


def _decoded(place: Path, side: Side, index: int, encoded: Any) -> Image.Image:
    try:
        return Image.open(io.BytesIO(bytes(encoded))).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"image {index} of {place / side}_images_png.pkl is damaged ({error}): {REMEDY}"
        ) from error
