"""Features of a frozen network, kept in the user's cache: it sees each image once, whoever asks and when.

A network that stays as it is gives an image the same features in every episode, test and run. They are looked
up by the network's weights and the image's pixels. Images are embedded one by one, so that what is kept does
not depend on which others were shown beside them, and a figure not on what was in the cache.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fewshot.data.locations import CACHE_VARIABLE, cache_root
from fewshot.errors import DataError

VERSION = 1
"""Raised by hand when the features of the same weights and pixels may move (design decision 6)."""
LARGEST_FILE = 2**30
"""Bytes. More is not kept: images that are distorted anew each time would fill the disk."""
_WAIT_SECONDS = 60.0  # for another process to have written


def weights_digest(network: nn.Module) -> bytes:
    """Of all weights and statistics, 16 bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.digest()


def cached_features(embed: Callable[[Tensor], Tensor], images: Tensor, network: bytes) -> Tensor:
    """(image, feature) of (image, channel, height, width), as `embed` gives them of one image at a time.

    embed: (1, channel, height, width) -> (1, feature) float32. network: what tells it from others. Raises
    DataError where the file of the cache cannot be used.
    """
    told = VERSION.to_bytes(2) + network
    keys = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.numpy()]
    path = cache_root() / "features.sqlite"
    with _opened(path) as store:
        found = {key: _look_up(store, told + key) for key in set(keys)}
    made: dict[bytes, Tensor] = {}
    for key, image in zip(keys, images, strict=True):
        if found[key] is None and key not in made:
            made[key] = embed(image.unsqueeze(0))[0].float()
    if made:
        with _opened(path) as store:
            if path.stat().st_size < LARGEST_FILE:
                _keep(store, {told + key: value for key, value in made.items()})
    known = {
        key: torch.from_numpy(np.frombuffer(value, np.float32).copy())
        for key, value in found.items()
        if value
    }
    return torch.stack([made[key] if key in made else known[key] for key in keys])


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The file for one transaction, made where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as store, store:
            store.execute("CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, value BLOB)")
            yield store
    except (sqlite3.Error, OSError) as error:
        raise DataError(
            f"cannot keep the features of a frozen network in {path} ({error}): delete that file, which only "
            f"saves time, or point ${CACHE_VARIABLE} to a folder with room that can be written"
        ) from error


def _look_up(store: sqlite3.Connection, key: bytes) -> bytes | None:
    row = store.execute("SELECT value FROM features WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def _keep(store: sqlite3.Connection, features: dict[bytes, Tensor]) -> None:
    rows = [(key, value.numpy().tobytes()) for key, value in features.items()]
    store.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)
