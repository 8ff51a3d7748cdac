"""Arrays out of a pickle, without running what else a pickle can carry.

A pickle is a program: it may import any function and call it. Here it may only build numbers, text,
containers and numpy arrays; everything else that it asks for is refused by name before anything runs.
"""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.data.archives import open_part
from fewshot.errors import DataError


class _RefusedError(Exception):
    pass


def _encode(text: str, encoding: str) -> bytes:
    """How Python 2 and protocol 2 spell bytes; `codecs.encode` itself would import codecs by name."""
    if encoding != "latin1":
        raise _RefusedError(f"bytes are spelled in latin1, not {encoding}")
    return text.encode("latin1")


# numpy's own rebuilding functions, under the names of numpy 1 and 2. Taken from what numpy says of its own
# objects, for the modules they live in are private.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR = np.int64(0).__reduce__()[0]
PERMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PERMITTED:
            raise _RefusedError(f"it wants to import {module}.{name}")
        return PERMITTED[module, name]


def load_arrays(path: Path, remedy: str) -> Any:
    """What the pickle holds; DataError if it is damaged, or wants to import more than arrays need."""
    return load_part(path.parent, path.name, remedy)


def load_part(place: Path, name: str, remedy: str) -> Any:
    """What the pickle of that name in a folder or tar archive holds; DataError as in `load_arrays`."""
    with open_part(place, name, remedy) as file:
        try:
            return _ArraysOnly(file, encoding="latin1").load()
        except _RefusedError as error:
            raise DataError(f"{place / name} is refused, nothing in it was run: {error}; {remedy}") from error
        except Exception as error:  # a damaged pickle can make the unpickler raise anything
            raise DataError(f"{place / name} is not a pickle of arrays, or is damaged: {remedy}") from error
