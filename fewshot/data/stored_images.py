"""Encoded images, as files in a folder or as members of a zip archive, and their decoding.

Images are decoded one after another: a 28x28 Omniglot takes 2 s and the 60,000 photographs of miniImageNet
about 15 s, once. Two threads gain 15 % at best (Pillow spends the time in Python or
under the interpreter's lock), and processes would run the caller's script again.
"""

import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fewshot.data.cache import Pixels
from fewshot.data.progress import progress
from fewshot.errors import DataError

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
    """All images of a folder or zip archive, in no particular order; DataError where it does not read."""
    if place.is_dir():
        return [
            StoredImage(file.relative_to(place).parts, file)
            for file in place.rglob("*")
            if _is_image(file.relative_to(place).parts)
        ]
    with open_archive(place, remedy) as archive:
        return [
            StoredImage(parts, place, member)
            for member in archive.namelist()
            if _is_image(parts := PurePosixPath(member).parts)
        ]


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


def open_archive(path: Path, remedy: str) -> zipfile.ZipFile:
    """The zip archive, or a DataError that says what the file is instead and what to do."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} {_what_instead(path)}: {remedy}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error


def _what_instead(path: Path) -> str:
    size = path.stat().st_size
    if looks_like_html(path):
        return "is not a zip archive but an HTML page, as servers send when a download is refused"
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return f"is a zip archive that was cut short ({size:,} bytes, no directory at its end)"
    return f"is not a zip archive ({size:,} bytes)"


def looks_like_html(path: Path) -> bool:
    """Whether a file begins as web pages do."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    return head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


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


def opened(images: Iterable[StoredImage], remedy: str) -> Iterator[Image.Image]:
    """Each image as Pillow gives it, decoded; DataError for one that is damaged."""
    archives: dict[Path, zipfile.ZipFile] = {}
    with ExitStack() as stack:
        for stored in images:
            if stored.member is not None and stored.file not in archives:
                archives[stored.file] = stack.enter_context(open_archive(stored.file, remedy))
            try:
                encoded = (
                    stored.file.read_bytes()
                    if stored.member is None
                    else archives[stored.file].read(stored.member)
                )
                image = Image.open(io.BytesIO(encoded))
                image.load()
            except (OSError, ValueError, SyntaxError, zipfile.BadZipFile, UnidentifiedImageError) as error:
                raise DataError(f"{stored} is damaged ({error}): {remedy}") from error
            yield image


def to_pixels(image: Image.Image, image_size: int) -> Pixels:
    """(channel, image_size, image_size) of a grey or RGB image."""
    return np.asarray(fit(image, image_size)).reshape(image_size, image_size, -1).transpose(2, 0, 1)


def decode(what: str, images: Sequence[StoredImage], pixels: Pixels, remedy: str, ink_high: bool) -> None:
    """Decode into pixels (image, channel, size, size), grey for one channel and RGB for three.

    ink_high: turn dark into bright, so that ink is 255 and paper 0.
    """
    mode = "L" if pixels.shape[1] == 1 else "RGB"
    with progress(f"decoding {what}", len(images)) as advance:
        for row, image in zip(pixels, opened(images, remedy), strict=True):
            decoded = to_pixels(image.convert(mode), pixels.shape[-1])
            row[...] = 255 - decoded if ink_high else decoded
            advance(1)
