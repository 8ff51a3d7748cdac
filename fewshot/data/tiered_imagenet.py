"""tieredImageNet: 608 classes of ImageNet, 779,165 photographs, 84x84, whose sides share no category.

Ren et al., Meta-learning for semi-supervised few-shot classification, ICLR 2018. Read from the publisher's
tiered-imagenet.tar, from the folder tiered-imagenet in it, or from class folders in a folder of that name:

    <side>_images_png.pkl   a list of encoded images
    <side>_labels.pkl       label_specific, a number for each image; label_specific_str, the classes' names
    synsets.txt             WordNet ids of ImageNet's 1,000 classes, a line each
    class_names.txt         their names in words, in the same order; label_specific_str was made of both
    <side>/<wnid>/<image>   class folders

A class is its WordNet id, and the lists say its side. The pickles name classes in words only, and "crane" is
two classes of ImageNet: the two tables and the side's list together say which is meant. A copy of the pickles
without the tables has classes "side/name", and its files are the split. Decoded it is 16.5 GB, which stays in
the cache's memory-mapped file; but a side's pickle of images is one object, so that decoding it takes its
size in memory, once (about 7 GB for train).
"""

import io
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from fewshot.data.archives import open_part, part_names
from fewshot.data.cache import Pixels, Plan, cached_image_set, fingerprint
from fewshot.data.class_lists import class_list
from fewshot.data.copies import check_classes, find_place
from fewshot.data.image_set import ImageSet
from fewshot.data.photographs import photograph_plan, stored_plan
from fewshot.data.progress import progress
from fewshot.data.safe_pickle import load_part
from fewshot.data.split import SIDES, Side
from fewshot.data.stored_images import StoredImage, list_images, source_files, to_pixels
from fewshot.errors import DataError

NAME = "tiered_imagenet"
VERSION = 2
SOURCE = "https://github.com/renmengye/few-shot-ssl-public"
LICENCE = "ImageNet's terms: research only, no redistribution"
PUBLISHED_SIZE = 84
TABLES = ("synsets.txt", "class_names.txt")
CLASSES: dict[Side, int] = {"train": 351, "val": 97, "test": 160}
IMAGES: dict[Side, int] = {"train": 448_695, "val": 124_261, "test": 206_209}
HOW_TO_GET = (
    "its authors share tiered-imagenet.tar through a page that asks before it sends: follow the link in "
    f"{SOURCE}, then run `fewshot data get {NAME} --from PATH`"
)
REMEDY = "replace it with a whole copy, or point --data or $FEWSHOT_DATA to another"
OTHER_NAMES = f"{REMEDY}; if only its names differ, unpack it without {TABLES[0]} and use split folders"


def load_tiered_imagenet(root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """RGB photographs, classes named by their WordNet id.

    image_size: pixels of a side, 84 by default. rebuild: decode anew even if the cache has it.
    Raises DataError where a side, a class or an image is missing or damaged.
    """
    size = image_size or PUBLISHED_SIZE
    place = find_tiered_imagenet(root)
    files = [place] if place.is_file() else sorted(place.glob("*.pkl"))
    if files:
        tables = [place / table for table in TABLES if (place / table).is_file()]
        plan, sources = _plan_pickles, [(file.name, file) for file in (*files, *tables)]
    else:
        plan, sources = _plan_folders, source_files(place, REMEDY)
    return cached_image_set(NAME, size, VERSION, fingerprint(sources), lambda: plan(place, size), rebuild)


def find_tiered_imagenet(root: Path) -> Path:
    """The archive or the folder; DataError says how to get it."""
    return find_place(NAME, root, ("tiered-imagenet.tar", "tiered-imagenet"), HOW_TO_GET)


def _plan_folders(place: Path, image_size: int) -> Plan:
    sides: dict[str, dict[str, list[StoredImage]]] = {side: defaultdict(list) for side in SIDES}
    for image in list_images(place, REMEDY):
        if len(image.parts) == 3 and image.parts[0] in sides:
            sides[image.parts[0]][image.parts[1]].append(image)
    for side in SIDES:
        counts = {name: len(images) for name, images in sides[side].items()}
        check_classes(str(place / side), class_list(NAME, "ren", side), counts, None, REMEDY)
        _check_counts(place / side, side, counts)
    classes = {name: images for here in sides.values() for name, images in here.items()}
    return stored_plan(NAME, classes, image_size, SOURCE, LICENCE, REMEDY)


def _plan_pickles(place: Path, image_size: int) -> Plan:
    sides = {side: _rows(place, side) for side in SIDES}
    names = {
        name: [f"{index:06d}" for index in indices]
        for classes in sides.values()
        for name, indices in classes.items()
    }
    ordered = sorted(names)
    first = dict(zip(ordered, accumulate((len(names[name]) for name in ordered), initial=0), strict=False))

    def draw(pixels: Pixels) -> None:
        with progress(f"decoding {NAME}", len(pixels)) as advance:
            for side, classes in sides.items():
                encoded = _encoded(place, side)
                for name, indices in classes.items():
                    for row, index in enumerate(indices, first[name]):
                        pixels[row] = to_pixels(_decoded(place, side, index, encoded[index]), image_size)
                    advance(len(indices))
                del encoded  # before the next side's is read

    return photograph_plan(NAME, names, image_size, f"{SOURCE}; read from pickled PNG images", LICENCE, draw)


def _rows(place: Path, side: Side) -> dict[str, list[int]]:
    """The images of each class of a side, by its WordNet id, or by "side/name" where no table says that."""
    file = f"{side}_labels.pkl"
    content = load_part(place, file, REMEDY)
    wordnet_ids = _wordnet_ids(place, side)
    rows: dict[str, list[int]] = defaultdict(list)
    try:
        names = content["label_specific_str"]
        for index, label in enumerate(content["label_specific"]):
            name = str(names[label])
            rows[wordnet_ids.get(name, f"{side}/{name}")].append(index)
    except (KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{place / file} does not hold tieredImageNet's labels ({error!r}): {REMEDY}"
        ) from error
    counts = {name: len(indices) for name, indices in rows.items()}
    if wordnet_ids:
        check_classes(str(place / file), wordnet_ids.values(), counts, None, OTHER_NAMES)
    _check_counts(place / file, side, counts)
    return dict(rows)


def _wordnet_ids(place: Path, side: Side) -> dict[str, str]:
    """The WordNet id of each of a side's names in words; empty for a copy without the tables."""
    if not set(TABLES) <= part_names(place, REMEDY):
        return {}
    ids, names = (_lines(place, table) for table in TABLES)
    name_of = dict(zip(ids, names, strict=False))  # what a table cut short lacks is found missing later
    return {name_of.get(wnid, wnid): wnid for wnid in class_list(NAME, "ren", side)}


def _lines(place: Path, table: str) -> list[str]:
    with open_part(place, table, REMEDY) as file:
        return [line.strip() for line in file.read().decode("utf-8", "replace").splitlines()]


def _check_counts(holder: Path, side: Side, counts: Mapping[str, int]) -> None:
    """Raise DataError unless a side has as many classes and images as were published."""
    found = (len(counts), sum(counts.values()))
    if found != (CLASSES[side], IMAGES[side]):
        raise DataError(
            f"{holder} has {found[0]:,} classes and {found[1]:,} images, not {CLASSES[side]:,} and "
            f"{IMAGES[side]:,}: {REMEDY}"
        )


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
