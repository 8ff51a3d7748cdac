"""CIFAR-FS and FC100: the photographs of CIFAR-100, 100 classes of 600, 32x32, under two splits.

Krizhevsky, Learning multiple layers of features from tiny images, 2009. CIFAR-FS: Bertinetto et al.,
Meta-learning with differentiable closed-form solvers, ICLR 2019. FC100: Oreshkin et al., TADAM: task
dependent adaptive metric for improved few-shot learning, NeurIPS 2018; its sides share no superclass. A class
is named "superclass/class". Read from one of these, in this order:

    cifar-100-python.tar.gz     the publisher's archive, its pickles read without running them
    cifar-100-python/           what is in it: train, test and meta
    cifar100.zip                Bertinetto et al.'s archive of cifar100/data/<class>/<image>
    cifar100/                   what is in it
    CIFAR_FS_<side>.pickle,     arrays of Lee et al., Meta-learning with differentiable convex optimization,
    FC100_<side>.pickle         CVPR 2019, whose classes are numbered
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from fewshot.data.cache import Pixels, Plan, cached_image_set, fingerprint
from fewshot.data.class_lists import class_list
from fewshot.data.copies import Copy, Layout, check_classes, find_copy, undivided
from fewshot.data.image_set import ImageSet
from fewshot.data.photographs import NamedArrays, array_plan, read_pickled_sides, stored_plan
from fewshot.data.safe_pickle import load_part
from fewshot.data.split import SIDES
from fewshot.data.stored_images import StoredImage, list_images, source_files
from fewshot.errors import DataError

CIFAR_FS = "cifar_fs"
FC100 = "fc100"
SPLITS = {CIFAR_FS: "bertinetto", FC100: "oreshkin"}
VERSION = 1
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html"
LICENCE = "none stated; its author asks to cite the report"
PUBLISHED_SIZE = 32
IMAGES_PER_CLASS = 600
PARTS = ("train", "test")
REMEDY = "replace it with a whole copy, or point --data or $FEWSHOT_DATA to another"

Image = TypeVar("Image")


def load_cifar100(name: str, root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """RGB photographs, with the classes of both sets.

    name: cifar_fs or fc100. image_size: pixels of a side, 32 by default. rebuild: decode anew even if the
        cache has it.
    Raises DataError where a class or an image is missing or damaged.
    """
    size = image_size or PUBLISHED_SIZE
    copy = find_cifar100(name, root)
    key = fingerprint(entry for place in copy.files for entry in _source_files(copy.layout, place))
    return cached_image_set(name, size, VERSION, key, lambda: _plan(name, copy, size), rebuild)


def find_cifar100(name: str, root: Path) -> Copy:
    """The first layout of which the folder of either set, or root itself, holds anything."""
    absent = (
        f"no {name} in {root} or its folder {name}: run `fewshot data get {name}`, or point --data or "
        "$FEWSHOT_DATA to where cifar-100-python.tar.gz is"
    )
    folders = (root / name, *(root / other for other in SPLITS if other != name), root)
    return find_copy(name, folders, lambda folder: _layouts(name, folder), absent)


def _layouts(name: str, folder: Path) -> Mapping[str, Layout]:
    unpacked = folder / "cifar100"
    return {
        "archive": undivided(folder / "cifar-100-python.tar.gz"),
        "pickles": undivided(folder / "cifar-100-python"),
        "class archive": undivided(folder / "cifar100.zip"),
        **({"class folders": undivided(unpacked)} if (unpacked / "data").is_dir() else {}),
        "numbered pickles": {side: [folder / f"{name.upper()}_{side}.pickle"] for side in SIDES},
    }


def _source_files(layout: str, place: Path) -> list[tuple[str, Path]]:
    if layout == "pickles":
        return [(part, place / part) for part in (*PARTS, "meta") if (place / part).is_file()]
    return source_files(place, REMEDY)


def _plan(name: str, copy: Copy, image_size: int) -> Plan:
    if copy.layout == "numbered pickles":
        numbered = read_pickled_sides(name, SPLITS[name], copy, IMAGES_PER_CLASS, REMEDY)
        return array_plan(name, numbered, image_size, SOURCE, LICENCE)
    (place,) = copy.files
    if copy.layout in ("archive", "pickles"):
        return array_plan(name, _named(name, place, _arrays(place)), image_size, SOURCE, LICENCE)
    return stored_plan(name, _named(name, place, _stored(place)), image_size, SOURCE, LICENCE, REMEDY)


def _named(name: str, place: Path, found: Mapping[str, Sequence[Image]]) -> dict[str, Sequence[Image]]:
    """The classes under their full names, checked against the split's lists."""
    listed = [class_name for side in SIDES for class_name in class_list(name, SPLITS[name], side)]
    full = {class_name.rpartition("/")[2]: class_name for class_name in listed}
    classes = {full.get(class_name, class_name): images for class_name, images in found.items()}
    counts = {class_name: len(images) for class_name, images in classes.items()}
    check_classes(str(place), listed, counts, IMAGES_PER_CLASS, REMEDY)
    return classes


def _stored(place: Path) -> dict[str, list[StoredImage]]:
    """The images of each class folder."""
    classes: dict[str, list[StoredImage]] = defaultdict(list)
    for image in list_images(place, REMEDY):
        if len(image.parts) >= 2:
            classes[image.parts[-2]].append(image)
    return classes


def _arrays(place: Path) -> dict[str, NamedArrays]:
    """The images of each class out of the publisher's pickles, in order of the publisher's file names."""
    classes: dict[str, list[tuple[str, Pixels]]] = defaultdict(list)
    try:
        names = load_part(place, "meta", REMEDY)["fine_label_names"]
        for part in PARTS:
            content = load_part(place, part, REMEDY)
            # A row is an image, all of its red before its green and its blue.
            images = content["data"].reshape(-1, 3, PUBLISHED_SIZE, PUBLISHED_SIZE).transpose(0, 2, 3, 1)
            files = (Path(file).stem for file in content["filenames"])
            for label, file, image in zip(content["fine_labels"], files, images, strict=True):
                classes[names[label]].append((file, image))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(f"{place} is not CIFAR-100 for Python ({error!r}): {REMEDY}") from error
    return {name: sorted(images, key=itemgetter(0)) for name, images in classes.items()}
