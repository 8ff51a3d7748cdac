"""Committed lists of classes: package data, lists/<dataset>/<split>/{train,val,test}.txt, one name a line.

`fewshot.data.splits` says which lists there are, and where they come from. Reading them takes no torch.
"""

from pathlib import Path
from typing import Literal

LISTS = Path(__file__).with_name("lists")

# What follows the name of a grey data set that is to stand beside photographs; its classes are the same.
AS_RGB = ":rgb"


def listed_splits(dataset: str) -> tuple[str, ...]:
    """The names of the splits of a dataset that are committed lists."""
    folder = _lists_of(dataset)
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()


def class_list(dataset: str, split: str, side: Literal["train", "val", "test"]) -> list[str]:
    """The class names of one side of a committed list."""
    return (_lists_of(dataset) / split / f"{side}.txt").read_text(encoding="utf-8").splitlines()


def _lists_of(dataset: str) -> Path:
    return LISTS / dataset.removesuffix(AS_RGB)
