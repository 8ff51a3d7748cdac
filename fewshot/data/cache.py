"""Decoded image sets, each kept as one memory-mapped file.

A file holds, in this order: a magic word; the length and the SHA-256 of a JSON header; the header; zeros up
to a page boundary; the pixels. Its name says data set, image size, reader version and a fingerprint of the
source files, so that a stale file is never met; it is removed when its successor is stored.

A file is believed only after its size, its header's SHA-256 and the CRC-32 of *all* its pixels agree (about
0.3 s for the 1.27 GB of miniImageNet, 10 ms for Omniglot at 28x28); a damaged one is built again. The SHA-256
that identifies the images is computed when they are decoded, and again by `fewshot data check`.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewshot.data.image_set import ImageSet
from fewshot.data.locations import CACHE_VARIABLE, cache_root
from fewshot.data.progress import progress
from fewshot.errors import DataError

Pixels = NDArray[np.uint8]

MAGIC = b"fewshot images 1"
LENGTH_BYTES = 8
PREAMBLE_BYTES = len(MAGIC) + LENGTH_BYTES + hashlib.sha256().digest_size
PAGE = 4096
BLOCK = 1 << 24
FILE_NAME = re.compile(r"(.+)-(\d+)-v\d+-.+\.images")
"""Of which data set and image size; the data set's own name may look like the beginning of another's."""


@dataclass(frozen=True)
class Plan:
    """Everything about an image set but its pixels, and the function that makes those.

    classes: the image names of each class.
    image_shape: (channel, height, width).
    draw: fills an array (image, channel, height, width), ordered by class name, then as in `classes`.
    """

    name: str
    classes: dict[str, list[str]]
    image_shape: tuple[int, int, int]
    source: str
    licence: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    draw: Callable[[Pixels], None]


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 over the name, size and modification time of each (name, file): changes when any file does."""
    lines = []
    for name, file in files:
        facts = file.stat()
        lines.append(f"{name}\t{facts.st_size}\t{facts.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def content_digest(pixels: Pixels, classes: dict[str, list[str]]) -> str:
    """SHA-256 over shape, class names, image names and pixels: what an ImageSet carries as its digest."""
    names = json.dumps([list(pixels.shape), sorted(classes.items())], ensure_ascii=False)
    digest = hashlib.sha256(names.encode())
    with progress("computing the digest", pixels.size) as advance:
        for block in _blocks(pixels):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def image_set_digest(image_set: ImageSet) -> str:
    """The digest computed afresh from what the image set holds; differs from `.digest` if that is a lie."""
    names = iter(image_set.image_names)
    counts = image_set.images_per_class.tolist()
    classes = {
        name: [next(names) for _ in range(count)]
        for name, count in zip(image_set.class_names, counts, strict=True)
    }
    return content_digest(image_set.images.numpy(), classes)


def cached_image_set(
    name: str, image_size: int, version: int, key: str, plan: Callable[[], Plan], rebuild: bool = False
) -> ImageSet:
    """The image set from the cache, or made by `plan` and put there.

    version: of the reader, raised by hand when its pixels may move.
    key: what else decides the pixels: the fingerprint of the source files, or the settings of a generator.
    rebuild: make it anew whatever the cache holds.
    Raises DataError where the cache directory cannot be written.
    """
    path = cache_root() / "images" / f"{name}-{image_size}-v{version}-{key[:16]}.images"
    image_set = None if rebuild else _load(path)
    if image_set is None:
        _store(path, plan())
        _remove_predecessors(path, name, image_size)
        image_set = _load(path)
    if image_set is None:
        raise DataError(
            f"the decoded images do not read back from {path}: the disk is damaged or another process "
            f"changes the file; point ${CACHE_VARIABLE} elsewhere"
        )
    return image_set


def _blocks(pixels: Pixels) -> Iterable[memoryview]:
    flat = pixels.reshape(-1).data
    return (flat[start : start + BLOCK] for start in range(0, len(flat), BLOCK))


def _checksum(pixels: Pixels) -> int:
    checksum = 0
    with progress("verifying decoded images", pixels.size) as advance:
        for block in _blocks(pixels):
            checksum = zlib.crc32(block, checksum)
            advance(len(block))
    return checksum


def _pixels_at(header_length: int) -> int:
    return -(PREAMBLE_BYTES + header_length) % PAGE + PREAMBLE_BYTES + header_length


def _store(path: Path, plan: Plan) -> None:
    classes = dict(sorted(plan.classes.items()))
    shape = (sum(map(len, classes.values())), *plan.image_shape)
    size = math.prod(shape)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < size:
            # A memory map that finds the disk full kills the process: ask first.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        header: dict[str, Any] = {
            "name": plan.name,
            "source": plan.source,
            "licence": plan.licence,
            "mean": plan.mean,
            "std": plan.std,
            "shape": shape,
            "classes": classes,
            "digest": "0" * 64,
            "crc32": "0" * 8,
        }
        # Digests have a fixed width, so the header's length is known before the pixels are.
        start = _pixels_at(len(_encoded(header)))
        with part.open("wb") as file:
            file.truncate(start + size)
        pixels = np.memmap(part, np.uint8, "r+", start, shape)
        plan.draw(pixels)
        header["digest"] = content_digest(pixels, classes)
        header["crc32"] = f"{_checksum(pixels):08x}"
        pixels.flush()
        del pixels
        with part.open("r+b") as file:
            encoded = _encoded(header)
            file.write(MAGIC + len(encoded).to_bytes(LENGTH_BYTES) + hashlib.sha256(encoded).digest())
            file.write(encoded)
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"cannot keep the {size / 1e6:.0f} MB of decoded images in {path.parent} "
            f"({error.strerror or error}): point ${CACHE_VARIABLE} to a folder with room that can be written"
        ) from error
    finally:
        if part.exists():
            part.unlink()


def _remove_predecessors(path: Path, name: str, image_size: int) -> None:
    """Delete what an older reader or other source files left of the same data set and size."""
    for other in path.parent.iterdir():
        match = FILE_NAME.fullmatch(other.name)
        if other != path and match and match.groups() == (name, str(image_size)):
            with contextlib.suppress(OSError):  # it only takes room
                other.unlink()


def _encoded(header: dict[str, Any]) -> bytes:
    return json.dumps(header, ensure_ascii=False).encode()


def _load(path: Path) -> ImageSet | None:
    """The image set in the file, or None where there is none to be believed."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            length = int.from_bytes(file.read(LENGTH_BYTES))
            promised = file.read(PREAMBLE_BYTES - len(MAGIC) - LENGTH_BYTES)
            size = path.stat().st_size
            if magic != MAGIC or length > size:
                return None
            encoded = file.read(length)
    except OSError:
        return None
    if hashlib.sha256(encoded).digest() != promised:
        return None
    header = json.loads(encoded)
    shape = tuple(header["shape"])
    start = _pixels_at(length)
    if size != start + math.prod(shape):
        return None
    # Copy on write: the tensor may be written to (PyTorch warns of read-only memory), the file never is.
    pixels = np.memmap(path, np.uint8, "c", start, shape)
    if f"{_checksum(pixels):08x}" != header["crc32"]:
        return None
    classes: dict[str, list[str]] = header["classes"]
    return ImageSet(
        name=header["name"],
        images=torch.from_numpy(pixels),
        class_names=tuple(classes),
        class_start=torch.tensor([0, *map(len, classes.values())]).cumsum(0),
        image_names=tuple(image for images in classes.values() for image in images),
        source=header["source"],
        licence=header["licence"],
        mean=tuple(header["mean"]),
        std=tuple(header["std"]),
        digest=header["digest"],
    )
