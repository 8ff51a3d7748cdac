"""Zip and tar archives as their publishers ship them, and what a file is that is none."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from fewshot.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def is_tar(path: Path) -> bool:
    """Whether the name says so."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def open_zip(path: Path, remedy: str) -> zipfile.ZipFile:
    """The zip archive, or a DataError that says what the file is instead and what to do."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} {_what_instead(path)}: {remedy}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error


@contextmanager
def open_tar(path: Path, remedy: str) -> Iterator[tarfile.TarFile]:
    """The tar archive, compressed or not, to be read from the front; DataError where it turns out damaged."""
    try:
        with tarfile.open(path) as archive:
            yield archive
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} {_no_tar(path)}: {remedy}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}): {remedy}") from error


@contextmanager
def open_part(place: Path, name: str, remedy: str) -> Iterator[IO[bytes]]:
    """The file of that name in a folder, or in any folder of a tar archive; DataError if it is not there."""
    if not is_tar(place):
        try:
            file = (place / name).open("rb")
        except OSError as error:
            raise DataError(f"{place / name} cannot be read ({error.strerror or error}): {remedy}") from error
        with file:
            yield file
        return
    with open_tar(place, remedy) as archive:
        for entry in archive:
            if entry.isfile() and PurePosixPath(entry.name).name == name:
                content = archive.extractfile(entry)
                assert content is not None
                yield content
                return
    raise DataError(f"{place} holds no file {name}: {remedy}")


def part_names(place: Path, remedy: str) -> set[str]:
    """The names of the files of a folder, or of all folders of a tar archive: what `open_part` would find."""
    if not is_tar(place):
        return {path.name for path in place.iterdir() if path.is_file()}
    with open_tar(place, remedy) as archive:
        return {PurePosixPath(entry.name).name for entry in archive if entry.isfile()}


def looks_like_html(path: Path) -> bool:
    """Whether a file begins as web pages do."""
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    return head.startswith((b"<!doctype", b"<html", b"<head", b"<?xml"))


def _what_instead(path: Path) -> str:
    size = path.stat().st_size
    if looks_like_html(path):
        return "is not a zip archive but an HTML page, as servers send when a download is refused"
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return f"is a zip archive that was cut short ({size:,} bytes, no directory at its end)"
    return f"is not a zip archive ({size:,} bytes)"


def _no_tar(path: Path) -> str:
    if looks_like_html(path):
        return "is not a tar archive but an HTML page, as servers send when a download is refused"
    return f"is not a tar archive, or one that was cut short ({path.stat().st_size:,} bytes)"
