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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot.data.cache import Pixels, Plan, cached_image_set, fingerprint
from fewshot.data.image_set import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from fewshot.data.progress import progress
from fewshot.data.safe_pickle import load_arrays
from fewshot.data.split import SIDES, Side
from fewshot.data.splits import class_list
from fewshot.data.stored_images import StoredImage, decode, list_images, source_files, to_pixels
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


@dataclass(frozen=True)
class Copy:
    """One copy of miniImageNet on disk: its layout, and what holds each side."""

    layout: str
    places: Mapping[Side, Sequence[Path]]

    @property
    def files(self) -> list[Path]:
        """Everything that belongs to the copy, each once: files and folders to copy."""
        return list(dict.fromkeys(place for side in SIDES for place in self.places[side]))


def load_mini_imagenet(root: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """RGB photographs, classes named by their WordNet id.

    image_size: pixels of a side, 84 by default. rebuild: decode anew even if the cache has it.
    Raises DataError where a side, a class or an image is missing or damaged.
    """
    size = image_size or PUBLISHED_SIZE
    copy = find_copy(root)
    plan = _plan_pickles if copy.layout.endswith("pickles") else _plan_stored
    key = fingerprint(entry for place in copy.files for entry in source_files(place, REMEDY))
    return cached_image_set(NAME, size, VERSION, key, lambda: plan(copy, size), rebuild)


def find_copy(root: Path) -> Copy:
    """The first layout of which root, or its folder mini_imagenet, holds anything."""
    for folder in (root / NAME, root):
        layouts: dict[str, dict[Side, list[Path]]] = {
            "pickles": {side: [folder / f"mini-imagenet-cache-{side}.pkl"] for side in SIDES},
            "numbered pickles": {
                side: [folder / f"miniImageNet_category_split_{phase}.pickle"]
                for side, phase in zip(SIDES, ("train_phase_train", "val", "test"), strict=True)
            },
            "csv": {side: [folder / f"{side}.csv", folder / "images"] for side in SIDES},
            "archives": {side: sorted(folder.glob(f"{side}*.zip")) for side in SIDES},
            "folders": {side: [folder / side] for side in SIDES},
        }
        for layout, places in layouts.items():
            there = {side for side in SIDES if places[side] and all(place.exists() for place in places[side])}
            if there == set(SIDES):
                return Copy(layout, places)
            if there:
                missing = ", ".join(side for side in SIDES if side not in there)
                raise DataError(
                    f"mini_imagenet is not complete: {folder} has {', '.join(sorted(there))} as {layout} but "
                    f"no {missing}: add what is missing beside the rest"
                )
    raise DataError(f"no mini_imagenet in {root} or its folder mini_imagenet: {HOW_TO_GET}")


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


def _check_classes(side: Side, counts: Mapping[str, int]) -> None:
    """Raise DataError unless these are the classes of Ravi and Larochelle's list with all their images."""
    expected = set(class_list(NAME, "ravi", side))
    if len(counts) == len(expected) and all(name.startswith(f"{side}/") for name in counts):
        expected = set(counts)  # numbered, not named
    if missing := sorted(expected - set(counts)):
        raise DataError(
            f"mini_imagenet's {side} side lacks {len(missing)} of its {len(expected)} classes, "
            f"first {missing[0]}: {REMEDY}"
        )
    if surplus := sorted(set(counts) - expected):
        raise DataError(f"mini_imagenet's {side} side holds {surplus[0]}, which is not in its list: {REMEDY}")
    for name, count in counts.items():
        if count != IMAGES_PER_CLASS:
            raise DataError(f"mini_imagenet's {name} has {count} images, not {IMAGES_PER_CLASS}: {REMEDY}")


def _plan_stored(copy: Copy, image_size: int) -> Plan:
    find = _stored_by_csv if copy.layout == "csv" else _stored_in_places
    classes: dict[str, list[StoredImage]] = defaultdict(list)
    for side in SIDES:
        here: dict[str, list[StoredImage]] = defaultdict(list)
        for image in find(copy.places[side]):
            here[image.parts[-2]].append(image)
        _check_classes(side, {name: len(images) for name, images in here.items()})
        classes |= {name: sorted(images, key=lambda image: image.parts) for name, images in here.items()}
    ordered = [image for name in sorted(classes) for image in classes[name]]
    kinds = ", ".join(sorted({Path(image.parts[-1]).suffix for image in ordered}))

    def draw(pixels: Pixels) -> None:
        decode(NAME, ordered, pixels, REMEDY, ink_high=False)

    names = {name: [Path(image.parts[-1]).stem for image in images] for name, images in classes.items()}
    return _plan(names, image_size, f"{kinds} images", draw)


def _plan_pickles(copy: Copy, image_size: int) -> Plan:
    classes: dict[str, tuple[Pixels, list[int]]] = {}
    for side in SIDES:
        images, rows = _read_pickle(side, copy.places[side][0])
        _check_classes(side, {name: len(indices) for name, indices in rows.items()})
        classes |= {name: (images, indices) for name, indices in rows.items()}

    def draw(pixels: Pixels) -> None:
        row = iter(pixels)
        with progress(f"decoding {NAME}", len(pixels)) as advance:
            for _, (images, indices) in sorted(classes.items()):
                for index in indices:
                    next(row)[...] = to_pixels(Image.fromarray(images[index]), image_size)
                advance(len(indices))

    names = {name: [f"{index:05d}" for index in indices] for name, (_, indices) in classes.items()}
    return _plan(names, image_size, "pickled arrays", draw)


def _read_pickle(side: Side, path: Path) -> tuple[Pixels, dict[str, list[int]]]:
    """The images (image, height, width, 3), and the rows of each class."""
    content = load_arrays(path, REMEDY)
    try:
        if "class_dict" in content:
            images = np.asarray(content["image_data"])
            rows = {str(name): sorted(map(int, found)) for name, found in content["class_dict"].items()}
        else:
            images = np.asarray(content["data"])
            rows = defaultdict(list)
            for row, label in enumerate(content["labels"]):
                # Some copies number their classes: nothing then says which class of the list is which.
                rows[label if isinstance(label, str) else f"{side}/{int(label):02d}"].append(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} holds neither image_data and class_dict nor data and labels ({error}): {REMEDY}"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"{path} holds {images.dtype} of shape {images.shape}, not RGB images: {REMEDY}")
    named = [row for found in rows.values() for row in found]
    if named and not 0 <= min(named) <= max(named) < len(images):
        raise DataError(f"{path} names image {max(named)} and holds {len(images)}: {REMEDY}")
    return images, dict(rows)


def _plan(classes: dict[str, list[str]], image_size: int, kind: str, draw: Callable[[Pixels], None]) -> Plan:
    return Plan(
        name=NAME,
        classes=classes,
        image_shape=(3, image_size, image_size),
        source=f"{SOURCE}; read from {kind}",
        licence=LICENCE,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        draw=draw,
    )
