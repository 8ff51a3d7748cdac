"""Getting a data set when asked to, and only then.

Says source, licence and size before anything moves. Downloads go on where they broke off, are believed only
with the publisher's digest, and never replace what is there.
"""

import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from pooch.core import retrieve
from pooch.utils import get_logger

from fewshot.data.archives import looks_like_html
from fewshot.data.catalogue import DATASETS
from fewshot.data.locations import data_root
from fewshot.data.progress import progress
from fewshot.errors import DataError, unknown

_CIFAR100 = {"https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"}
# The publishers' addresses and MD5 digests.
DOWNLOADS = {
    "cifar_fs": _CIFAR100,
    "cub": {
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz": (
            "97eceeb196236b17998738112f37df78"
        ),
    },
    "fc100": _CIFAR100,
    "omniglot": {
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_background.zip": (
            "68d2efa1b9178cc56df9314c21c6e718"
        ),
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/images_evaluation.zip": (
            "6b91aef0f799c5bb55b94e3f2daec811"
        ),
    },
}
BLOCK = 1 << 18
TIMEOUT_SECONDS = 60


def get_dataset(
    name: str, root: Path | None = None, source_path: Path | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Put a data set into the data directory, and read it once; the files and folders that hold it.

    source_path: take it from there (a folder that `load_dataset` could read, or an archive or folder of the
        data set in one) instead of downloading it. say: told what happens, a line at a time.
    Raises DataError where the data set cannot be had, is damaged, or the data directory cannot be written.
    """
    if name not in DATASETS:
        raise DataError(unknown("dataset", name, DATASETS))
    dataset = DATASETS[name]
    directory = data_root(root)
    say(f"{name}: {dataset.classes:,} classes, {dataset.images:,} images")
    say(f"source: {dataset.source}")
    say(f"licence: {dataset.licence}")
    say(f"size: {dataset.size}")
    if _found(name, directory) is not None:
        say(f"already in {directory}: nothing is fetched")
    elif source_path is not None:
        source = source_path.expanduser()
        if not source.exists():
            raise DataError(f"--from {source_path}: there is no such file or folder; give one that exists")
        _take(name, _holder(name, source), directory / name, say)
    elif name in DOWNLOADS:
        for address, md5 in DOWNLOADS[name].items():
            target = directory / name / address.rpartition("/")[2]
            if not target.exists():
                say(f"downloading {address} to {target}")
                download(address, md5, target)
    else:
        raise DataError(f"{name} cannot be downloaded: {dataset.how_to_get}")
    dataset.load(directory, dataset.usual_size, False)
    say(f"{name} is complete and reads")
    return list(dataset.find(directory))


def _found(name: str, directory: Path) -> Sequence[Path] | None:
    try:
        return DATASETS[name].find(directory)
    except DataError:
        return None


def _holder(name: str, source: Path) -> Path:
    """The folder to read from: the source, or the one around it where the source is what is found there."""
    around = source.absolute().parent
    belongs = source.is_file() or source.absolute() in (_found(name, around) or ())
    return around if belongs else source


def _take(name: str, source: Path, target: Path, say: Callable[[str], None]) -> None:
    """Copy what the user already has, once it has been read in whole."""
    dataset = DATASETS[name]
    dataset.load(source, dataset.usual_size, False)
    for place in dataset.find(source):
        say(f"copying {place} into {target}")
        part = target / f"{place.name}.part"
        try:
            target.mkdir(parents=True, exist_ok=True)
            if place.is_dir():
                shutil.copytree(place, part, dirs_exist_ok=True)
            else:
                shutil.copy2(place, part)
            part.replace(target / place.name)
        except OSError as error:
            raise _unwritable(target, error) from error


def download(address: str, md5: str, target: Path) -> None:
    """Fetch a file, going on from what an earlier attempt left beside it as `.part`.

    Raises DataError where the server cannot be reached or sends something else.
    """
    get_logger().setLevel("ERROR")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        retrieve(address, f"md5:{md5}", target.name, target.parent, downloader=_resume_into(target))
    except ValueError as error:
        raise DataError(
            f"{address} did not send the publisher's file, its MD5 differs: try again later, or get "
            "the file by other means and use --from PATH"
        ) from error
    except (urllib.error.URLError, HTTPException, ssl.SSLError, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"the download of {address} broke off ({error}): run the same command again, it goes on from "
            "where it stopped; without a network, use --from PATH"
        ) from error
    except OSError as error:
        raise _unwritable(target.parent, error) from error


def _resume_into(target: Path) -> Any:
    """A downloader for pooch, which by itself starts over each time."""
    part = target.with_name(f"{target.name}.part")

    def downloader(address: str, output: str, _: object) -> None:
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            reply = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            # Nothing lies beyond what is here: the digest will say whether it is whole.
            part.replace(output)
            return
        with reply, part.open("ab" if reply.status == 206 else "wb") as file:
            length = int(reply.headers.get("Content-Length") or 0)
            received = 0
            with progress(f"downloading {target.name}", length) as advance:
                while block := reply.read(BLOCK):
                    file.write(block)
                    advance(len(block))
                    received += len(block)
        if received < length:
            raise ConnectionError(f"{received:,} of {length:,} bytes came")
        if looks_like_html(part):
            part.unlink()
            raise DataError(
                f"{address} sent an HTML page in place of the archive, as proxies and login pages do: get "
                "the file by other means and use --from PATH"
            )
        part.replace(output)

    return downloader


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to {target} ({error.strerror or error}): choose another data directory by --data or "
        "$FEWSHOT_DATA"
    )
