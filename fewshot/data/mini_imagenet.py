"""miniImageNet: 100 classes of 600 photographs, 84x84, in the split of Ravi and Larochelle.

Vinyals et al., Matching networks for one shot learning, NeurIPS 2016; Ravi and Larochelle, Optimization as a
model for few-shot learning, ICLR 2017. It has no publisher's archive: five layouts are about, and all are
read here. In the order in which they are looked for:

    mini-imagenet-cache-{train,val,test}.pkl          the well-known pickles, read without running them
    miniImageNet_category_split_*.pickle              older ones, whose classes are numbered
    {train,val,test}.csv and images/                  Ravi's lists (filename,label) beside the photographs
    {train,val,test}*.zip                             archives of <side>/<wnid>/<image>
    {train,val,test}/<wnid>/<image>                   class folders
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewshot.data.cache import Plan, cached_image_set, fingerprint
from fewshot.data.class_lists import class_list
from fewshot.data.copies import Copy, Layout, check_classes, find_copy
from fewshot.data.image_set import ImageSet
from fewshot.data.photographs import array_plan, read_pickled_sides, stored_plan
from fewshot.data.split import SIDES
from fewshot.data.stored_images import StoredImage, list_images, source_files
from fewshot.errors import DataError

NAME = "mini_imagenet"
VERSION = 1
SOURCE = "ImageNet, the 100 classes of Vinyals et al. 2016, split by Ravi and Larochelle 2017"
LICENCE = "ImageNet's terms: research only, no redistribution"
PUBLISHED_SIZE = 84
IMAGES_PER_CLASS = 600
HOW_TO_GET = (
    "it has no open address: get it from someone who may share it, or cut it from ImageNet by Ravi and "
    "Larochelle's lists, then run `fewshot data get mini_imagenet --from PATH` (folder, zips or pickles)"
)
REMEDY = "replace the file with a whole one, or point --data or $FEWSHOT_DATA to another copy"


def load_mini_imagenet(root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """RGB photographs, classes named by their WordNet id.

    image_size: pixels of a side, 84 by default. rebuild: decode anew even if the cache has it.
    Raises DataError where a side, a class or an image is missing or damaged.
    """
    size = image_size or PUBLISHED_SIZE
    copy = find_mini_imagenet(root)
    plan = _plan_pickles if copy.layout.endswith("pickles") else _plan_stored
    key = fingerprint(entry for place in copy.files for entry in source_files(place, REMEDY))
    return cached_image_set(NAME, size, VERSION, key, lambda: plan(copy, size), rebuild)


def find_mini_imagenet(root: Path) -> Copy:
    """The first layout of which the folder mini_imagenet of root, or root itself, holds anything."""
    absent = f"no {NAME} in {root} or its folder {NAME}: {HOW_TO_GET}"
    return find_copy(NAME, (root / NAME, root), _layouts, absent)


def _layouts(folder: Path) -> Mapping[str, Layout]:
    return {
        "pickles": {side: [folder / f"mini-imagenet-cache-{side}.pkl"] for side in SIDES},
        "numbered pickles": {
            side: [folder / f"miniImageNet_category_split_{phase}.pickle"]
            for side, phase in zip(SIDES, ("train_phase_train", "val", "test"), strict=True)
        },
        "csv": {side: [folder / f"{side}.csv", folder / "images"] for side in SIDES},
        "archives": {side: sorted(folder.glob(f"{side}*.zip")) for side in SIDES},
        "folders": {side: [folder / side] for side in SIDES},
    }


def _stored_in_places(places: Sequence[Path]) -> list[StoredImage]:
    return [stored for place in places for stored in list_images(place, REMEDY) if len(stored.parts) >= 2]


def _stored_by_csv(places: Sequence[Path]) -> list[StoredImage]:
    table, images = places
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"filename", "label"} <= set(reader.fieldnames or ()):
            raise DataError(f"{table} has the columns {reader.fieldnames}, not filename and label: {REMEDY}")
        rows = [(row["label"], row["filename"]) for row in reader]
    present = {path.name for path in images.iterdir()}
    for _, filename in rows:
        if filename not in present:
            raise DataError(f"{images / filename} is missing, {table.name} lists it: {REMEDY}")
    return [StoredImage((label, filename), images / filename) for label, filename in rows]


def _plan_stored(copy: Copy, image_size: int) -> Plan:
    find = _stored_by_csv if copy.layout == "csv" else _stored_in_places
    classes: dict[str, list[StoredImage]] = {}
    for side in SIDES:
        here: dict[str, list[StoredImage]] = defaultdict(list)
        for image in find(copy.places[side]):
            here[image.parts[-2]].append(image)
        counts = {name: len(images) for name, images in here.items()}
        listed = class_list(NAME, "ravi", side)
        check_classes(f"{NAME}'s {side} side", listed, counts, IMAGES_PER_CLASS, REMEDY)
        classes |= here
    return stored_plan(NAME, classes, image_size, SOURCE, LICENCE, REMEDY)


def _plan_pickles(copy: Copy, image_size: int) -> Plan:
    classes = read_pickled_sides(NAME, "ravi", copy, IMAGES_PER_CLASS, REMEDY)
    return array_plan(NAME, classes, image_size, SOURCE, LICENCE)
