"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Wah, Branson, Welinder, Perona and Belongie, The Caltech-UCSD Birds-200-2011 dataset, CNS-TR-2011-001, 2011.
Read from the publisher's CUB_200_2011.tgz or from the folder CUB_200_2011 in it. A class is the folder
images/<class>; photographs are cut to their central square, not to the bird's bounding box.
"""

from collections import defaultdict
from pathlib import Path

from fewshot.data.cache import Plan, cached_image_set, fingerprint
from fewshot.data.class_lists import class_list
from fewshot.data.copies import check_classes, find_place
from fewshot.data.image_set import ImageSet
from fewshot.data.photographs import stored_plan
from fewshot.data.split import SIDES
from fewshot.data.stored_images import StoredImage, list_images, source_files
from fewshot.errors import DataError

NAME = "cub"
VERSION = 1
SOURCE = "https://data.caltech.edu/records/65de6-vp158"
LICENCE = "none in the archive; its photographs are Flickr users'"
USUAL_SIZE = 84
IMAGES = 11_788
HOW_TO_GET = "run `fewshot data get cub`, or point --data or $FEWSHOT_DATA to where it is"
REMEDY = "delete it and run `fewshot data get cub`, or point --data or $FEWSHOT_DATA elsewhere"


def load_cub(root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """RGB photographs, classes "001.Black_footed_Albatross" and so on.

    image_size: pixels of a side, 84 by default; the originals are about 500 wide and seldom square.
    rebuild: decode anew even if the cache has it.
    Raises DataError where a class or an image is missing or damaged.
    """
    size = image_size or USUAL_SIZE
    place = find_cub(root)
    key = fingerprint(source_files(place, REMEDY))
    return cached_image_set(NAME, size, VERSION, key, lambda: _plan(place, size), rebuild)


def find_cub(root: Path) -> Path:
    """The archive or the folder; DataError says how to get it."""
    return find_place(NAME, root, ("CUB_200_2011.tgz", "CUB_200_2011"), HOW_TO_GET)


def _plan(place: Path, image_size: int) -> Plan:
    classes: dict[str, list[StoredImage]] = defaultdict(list)
    for image in list_images(place, REMEDY):
        if image.parts[-3:-2] == ("images",):
            classes[image.parts[-2]].append(image)
    listed = [name for side in SIDES for name in class_list(NAME, "chen", side)]
    counts = {name: len(images) for name, images in classes.items()}
    check_classes(str(place), listed, counts, None, REMEDY)
    if (found := sum(counts.values())) != IMAGES:
        raise DataError(f"{place} holds {found:,} photographs, {IMAGES:,} are published: {REMEDY}")
    return stored_plan(NAME, classes, image_size, SOURCE, LICENCE, REMEDY)
