"""Encoded images, as files in a folder or as members of a zip or tar archive, and their decoding.

Images are decoded one after another: a 28x28 Omniglot takes 2 s and the 60,000 photographs of miniImageNet
about 15 s, once. Two threads gain 15 % at best (Pillow spends the time in Python or
under the interpreter's lock), and processes would run the caller's script again.
"""

import io
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from fewshot.data.archives import is_tar, open_tar, open_zip
from fewshot.data.cache import Pixels
from fewshot.data.progress import progress
from fewshot.errors import DataError

NAMED = 3
"""So many damaged images are named; of others it is said how many there are."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class StoredImage:
    """One encoded image: a file, or a member of the archive that is the file.

    parts: its path below the folder or inside the archive.
    """

    parts: tuple[str, ...]
    file: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.file) if self.member is None else f"{self.member} in {self.file}"


def list_images(place: Path, remedy: str) -> list[StoredImage]:
    """All images of a folder or archive, in no particular order; DataError where it does not read."""
    if place.is_dir():
        return [
            StoredImage(file.relative_to(place).parts, file)
            for file in place.rglob("*")
            if _is_image(file.relative_to(place).parts)
        ]
    return [
        StoredImage(parts, place, member)
        for member in _members(place, remedy)
        if _is_image(parts := PurePosixPath(member).parts)
    ]


def _members(place: Path, remedy: str) -> list[str]:
    if is_tar(place):
        with open_tar(place, remedy) as archive:
            return [entry.name for entry in archive if entry.isfile()]
    with open_zip(place, remedy) as archive:
        return archive.namelist()


def source_files(place: Path, remedy: str) -> list[tuple[str, Path]]:
    """The name and place of each file that decides the images: the file itself, or the images of a folder."""
    if place.is_file():
        return [(place.name, place)]
    stored = list_images(place, remedy)
    return sorted(("/".join((place.name, *image.parts)), image.file) for image in stored)


def _is_image(parts: tuple[str, ...]) -> bool:
    # "__MACOSX/._0709_01.png" and its like are no images, whatever their suffix says.
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in IMAGE_SUFFIXES


def fit(image: Image.Image, image_size: int) -> Image.Image:
    """The image at image_size x image_size, cut to its central square first if it is not square.

    Shrinking takes the mean over each new pixel's area (BOX). Wider filters blur: a stroke of Omniglot is
    less than one pixel wide at 28x28, and bilinear halves its contrast. Pillow computes it in fixed-point
    integers, so that pixels are the same on every machine.
    """
    if image.size == (image_size, image_size):
        return image
    if image.width != image.height:
        return ImageOps.fit(image, (image_size, image_size), Image.Resampling.BOX)
    return image.resize((image_size, image_size), Image.Resampling.BOX, reducing_gap=None)


def opened(images: Sequence[StoredImage], remedy: str) -> Iterator[tuple[int, Image.Image]]:
    """Each image as Pillow gives it, decoded, after its place in the sequence.

    In order, but for members of a tar archive: that can only be read from the front. DataError for damaged
    ones, when all others were given.
    """
    damaged: list[str] = []
    for place, encoded in _encoded(images, remedy, damaged):
        with _noting(images[place], damaged):
            image = Image.open(io.BytesIO(encoded))
            image.load()
            yield place, image
    refuse(damaged, remedy)


def refuse(problems: Sequence[str], remedy: str) -> None:
    """Raise DataError for the problems of images, if there are any: the first few in words."""
    if problems:
        more = f"; and {len(problems) - NAMED:,} more" if len(problems) > NAMED else ""
        raise DataError(f"{'; '.join(problems[:NAMED])}{more}: {remedy}")


def _encoded(images: Sequence[StoredImage], remedy: str, damaged: list[str]) -> Iterator[tuple[int, bytes]]:
    zips: dict[Path, zipfile.ZipFile] = {}
    tars: dict[Path, dict[str, int]] = defaultdict(dict)
    with ExitStack() as stack:
        for place, stored in enumerate(images):
            if stored.member is not None and is_tar(stored.file):
                tars[stored.file][stored.member] = place
                continue
            if stored.member is not None and stored.file not in zips:
                zips[stored.file] = stack.enter_context(open_zip(stored.file, remedy))
            with _noting(stored, damaged):
                encoded = (
                    stored.file.read_bytes()
                    if stored.member is None
                    else zips[stored.file].read(stored.member)
                )
                yield place, encoded
    for file, wanted in tars.items():
        with open_tar(file, remedy) as archive:
            for entry in archive:
                if entry.name in wanted and (content := archive.extractfile(entry)):
                    yield wanted[entry.name], content.read()


@contextmanager
def _noting(stored: StoredImage, damaged: list[str]) -> Iterator[None]:
    """Note of which image it is that reading or decoding fails."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, zipfile.BadZipFile) as error:
        damaged.append(f"{stored} is damaged ({error})")


def to_pixels(image: Image.Image, image_size: int) -> Pixels:
    """(channel, image_size, image_size) of a grey or RGB image."""
    return np.asarray(fit(image, image_size)).reshape(image_size, image_size, -1).transpose(2, 0, 1)


def decode(what: str, images: Sequence[StoredImage], pixels: Pixels, remedy: str, ink_high: bool) -> None:
    """Decode into pixels (image, channel, size, size), grey for one channel and RGB for three.

    ink_high: turn dark into bright, so that ink is 255 and paper 0.
    """
    mode = "L" if pixels.shape[1] == 1 else "RGB"
    with progress(f"decoding {what}", len(images)) as advance:
        for place, image in opened(images, remedy):
            decoded = to_pixels(image.convert(mode), pixels.shape[-1])
            pixels[place] = 255 - decoded if ink_high else decoded
            advance(1)
