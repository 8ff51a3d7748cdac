"""Any folder of class folders: birds/sparrow/1.jpg is an image of the class "sparrow".

Folders may be nested: letters/Greek/alpha/1.png is of the class "Greek/alpha", in the group "Greek".
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fewshot.data.cache import Pixels, Plan, cached_image_set, fingerprint
from fewshot.data.image_set import IMAGENET_MEAN, IMAGENET_STD, ImageSet
from fewshot.data.stored_images import StoredImage, decode, list_images, refuse
from fewshot.errors import DataError

VERSION = 1
LICENCE = "not known: as the folder's owner says"
REMEDY = "replace or remove what is damaged"
GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})


def load_image_folder(folder: Path, image_size: int | None = None, rebuild: bool = False) -> ImageSet:
    """One channel if all images are grey (then mean 0 and deviation 1), else RGB (then ImageNet's).

    image_size: pixels of a side; images that are not square are cut to their central square. May be None
        where all images are squares of one size.
    rebuild: decode anew even if the cache has it.
    Raises DataError for a folder without class folders, and for damaged images. Brightness is kept as it
    is: turn dark ink on white paper round before, if the learner should see ink as high.
    """
    name = folder.resolve().name
    stored = sorted(list_images(folder, REMEDY), key=lambda image: image.parts)
    if not stored:
        raise DataError(f"{folder} holds no images: point to a folder that holds one folder for each class")
    if loose := [image for image in stored if len(image.parts) < 2]:
        raise DataError(f"{loose[0]} lies in no class folder: move it into the folder of its class")
    key = fingerprint(("/".join(image.parts), image.file) for image in stored)
    size = image_size or _common_size(stored)
    return cached_image_set(name, size, VERSION, key, lambda: _plan(name, stored, size), rebuild)


def _common_size(stored: list[StoredImage]) -> int:
    sizes = {header.size for header in _headers(stored)}
    width, height = min(sizes)
    if len(sizes) > 1 or width != height:
        others = (
            f"{width}x{height} to {'x'.join(map(str, max(sizes)))}" if len(sizes) > 1 else f"{width}x{height}"
        )
        raise DataError(f"{stored[0].file.parent.parent} holds images of {others}: choose an image_size")
    return width


def _headers(stored: Sequence[StoredImage]) -> list[Image.Image]:
    """What Pillow knows of each image before it is decoded; DataError where one is no image."""
    headers: list[Image.Image] = []
    problems: list[str] = []
    for image in stored:
        try:
            with Image.open(image.file) as opened:
                headers.append(opened)
        except (OSError, ValueError, SyntaxError) as error:
            problems.append(f"{image} is not an image that reads ({error})")
    refuse(problems, REMEDY)
    return headers


def _plan(name: str, stored: list[StoredImage], image_size: int) -> Plan:
    modes = {header.mode: image for header, image in zip(_headers(stored), stored, strict=True)}
    for mode, image in modes.items():
        if mode not in GREY_MODES | COLOUR_MODES:
            raise DataError(f"{image} has more than 8 bits a channel (mode {mode}): convert it to 8 bits")
    grey = GREY_MODES.issuperset(modes)
    classes: dict[str, list[StoredImage]] = defaultdict(list)
    for image in stored:
        classes["/".join(image.parts[:-1])].append(image)
    ordered = [image for class_name in sorted(classes) for image in classes[class_name]]

    def draw(pixels: Pixels) -> None:
        decode(name, ordered, pixels, REMEDY, ink_high=False)

    return Plan(
        name=name,
        classes={class_name: [image.parts[-1] for image in images] for class_name, images in classes.items()},
        image_shape=(1 if grey else 3, image_size, image_size),
        source=f"the image folder {name}",
        licence=LICENCE,
        mean=(0.0,) if grey else IMAGENET_MEAN,
        std=(1.0,) if grey else IMAGENET_STD,
        draw=draw,
    )
