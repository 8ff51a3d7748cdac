"""A pickle gives arrays and containers, and runs nothing."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshot.data.safe_pickle import load_arrays
from fewshot.errors import DataError


class Attack:
    """Unpickled the usual way, this creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.witness}",)


def test_command_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "attack.pkl", tmp_path / "witness"
    path.write_bytes(pickle.dumps({"image_data": np.zeros(3), "class_dict": Attack(witness)}))
    with pytest.raises(DataError, match=r"attack\.pkl is refused.*wants to import posix\.system"):
        load_arrays(path, "get another")
    assert not witness.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_come_through(protocol: int, tmp_path: Path) -> None:
    content = {
        "array": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "scalar": np.int64(7),
        "text": ["ä", b"bytes", 1.5, None, True],
        "ordered": OrderedDict(a=(1, 2)),
    }
    path = tmp_path / "content.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = load_arrays(path, "")
    assert np.array_equal(loaded.pop("array"), content.pop("array"))
    assert loaded == content


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pkl"
    path.write_bytes(b"(dp0\nS'n01532829'\np1\n(lp2\nI0\naI1\nas.")
    assert load_arrays(path, "") == {"n01532829": [0, 1]}


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x80\x04}\x94(", b"PK\x03\x04"])
def test_what_is_no_pickle_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.pkl .*get another"):
        load_arrays(path, "get another")
