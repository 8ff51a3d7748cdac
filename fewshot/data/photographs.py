"""Plans of image sets of RGB photographs: of stored images, and of arrays out of pickles.

Some pickles number their classes: nothing then says which class of a list is which. Such classes are named
by their side and number, "train/00", and have the split "folders".
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewshot.data.cache import Pixels, Plan
from fewshot.data.class_lists import class_list
from fewshot.data.copies import Copy, check_classes
from fewshot.data.image_set import IMAGENET_MEAN, IMAGENET_STD
from fewshot.data.progress import progress
from fewshot.data.safe_pickle import load_arrays
from fewshot.data.split import SIDES, Side
from fewshot.data.stored_images import StoredImage, decode, to_pixels
from fewshot.errors import DataError

NamedArrays = Sequence[tuple[str, Pixels]]
"""The images of a class: name and (height, width, 3) of each."""


def photograph_plan(
    name: str,
    image_names: dict[str, list[str]],
    image_size: int,
    source: str,
    licence: str,
    draw: Callable[[Pixels], None],
) -> Plan:
    """RGB at image_size, with ImageNet's mean and deviation."""
    return Plan(
        name=name,
        classes=image_names,
        image_shape=(3, image_size, image_size),
        source=source,
        licence=licence,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        draw=draw,
    )


def stored_plan(
    name: str,
    classes: Mapping[str, Sequence[StoredImage]],
    image_size: int,
    source: str,
    licence: str,
    remedy: str,
) -> Plan:
    """The plan of encoded images; an image is named by its file without the suffix."""
    ordered = {
        class_name: sorted(classes[class_name], key=lambda image: image.parts)
        for class_name in sorted(classes)
    }
    images = [image for group in ordered.values() for image in group]
    kinds = ", ".join(sorted({Path(image.parts[-1]).suffix for image in images}))

    def draw(pixels: Pixels) -> None:
        decode(name, images, pixels, remedy, ink_high=False)

    names = {
        class_name: [Path(image.parts[-1]).stem for image in group] for class_name, group in ordered.items()
    }
    return photograph_plan(name, names, image_size, f"{source}; read from {kinds} images", licence, draw)


def array_plan(
    name: str, classes: Mapping[str, NamedArrays], image_size: int, source: str, licence: str
) -> Plan:
    """The plan of images that a pickle held."""
    ordered = {class_name: classes[class_name] for class_name in sorted(classes)}

    def draw(pixels: Pixels) -> None:
        row = iter(pixels)
        with progress(f"decoding {name}", len(pixels)) as advance:
            for images in ordered.values():
                for _, image in images:
                    next(row)[...] = to_pixels(Image.fromarray(image), image_size)
                advance(len(images))

    names = {class_name: [image for image, _ in images] for class_name, images in ordered.items()}
    return photograph_plan(name, names, image_size, f"{source}; read from pickled arrays", licence, draw)


def read_pickled_sides(name: str, split: str, copy: Copy, each: int, remedy: str) -> dict[str, NamedArrays]:
    """The classes of three pickles, one for each side, checked against the split's lists.

    each: images that every class should have. Classes that are numbered are only counted.
    """
    classes: dict[str, NamedArrays] = {}
    for side in SIDES:
        here, listed = _read_side(side, copy.places[side][0], remedy), class_list(name, split, side)
        numbered = all(class_name.startswith(f"{side}/") for class_name in here)
        counts = {class_name: len(images) for class_name, images in here.items()}
        expected = here if numbered and len(here) == len(listed) else listed
        check_classes(f"{name}'s {side} side", expected, counts, each, remedy)
        classes |= here
    return classes


def _read_side(side: Side, path: Path, remedy: str) -> dict[str, NamedArrays]:
    """The classes of a pickle of arrays and labels, or of arrays and the rows of each class."""
    content = load_arrays(path, remedy)
    try:
        if "class_dict" in content:
            images = np.asarray(content["image_data"])
            rows = {str(name): sorted(map(int, found)) for name, found in content["class_dict"].items()}
        else:
            images = np.asarray(content["data"])
            rows = defaultdict(list)
            for row, label in enumerate(content["labels"]):
                rows[label if isinstance(label, str) else f"{side}/{int(label):02d}"].append(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} holds neither image_data and class_dict nor data and labels ({error}): {remedy}"
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"{path} holds {images.dtype} of shape {images.shape}, not RGB images: {remedy}")
    named = [row for found in rows.values() for row in found]
    if named and not 0 <= min(named) <= max(named) < len(images):
        raise DataError(f"{path} names image {max(named)} and holds {len(images)}: {remedy}")
    return {name: [(f"{row:05d}", images[row]) for row in found] for name, found in rows.items()}
