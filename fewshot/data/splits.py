"""The splits that have names: committed lists of classes, or fixed rules over the classes' names.

Lists are package data, `lists/<dataset>/<split>/{train,val,test}.txt`, one class name a line.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from fewshot.data.image_set import ImageSet
from fewshot.data.split import SIDES, ClassPool, Side, Split
from fewshot.errors import SplitError, unknown

LISTS = Path(__file__).with_name("lists")


def split_names(image_set: ImageSet) -> tuple[str, ...]:
    """The names that `split_classes` knows for this image set."""
    folder = LISTS / image_set.name
    return tuple(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ()


def split_classes(image_set: ImageSet, name: str) -> Split:
    """The split of that name; SplitError where there is none, or where its classes are not all there."""
    if name not in split_names(image_set):
        raise SplitError(unknown(f"split of {image_set.name}", name, split_names(image_set)))
    folder = LISTS / image_set.name / name
    lists = {side: (folder / f"{side}.txt").read_text(encoding="utf-8").split("\n")[:-1] for side in SIDES}
    return split_by_lists(image_set, name, lists)


def split_by_lists(image_set: ImageSet, name: str, lists: Mapping[Side, Iterable[str]]) -> Split:
    """The split whose sides are lists of class names.

    Raises SplitError for a side that is missing or empty, a name that is not in the image set, and a class
    that is named twice.
    """
    index = {class_name: i for i, class_name in enumerate(image_set.class_names)}
    side_of: dict[str, Side] = {}
    pools: dict[Side, ClassPool] = {}
    for side in SIDES:
        names = list(lists.get(side, ()))
        if not names:
            raise SplitError(
                f"split {name} has no {side} classes: list at least one for each of {', '.join(SIDES)}"
            )
        for class_name in names:
            if class_name not in index:
                raise SplitError(f"split {name}, side {side}: {_unknown_class(image_set, class_name)}")
            if class_name in side_of:
                raise SplitError(
                    f"split {name} names the class {class_name} twice, in {side_of[class_name]} and {side}: "
                    "a class belongs to one side"
                )
            side_of[class_name] = side
        indices = torch.tensor(sorted(index[class_name] for class_name in names))
        pools[side] = ClassPool(image_set, name, side, indices, torch.zeros_like(indices))
    return Split(name, pools["train"], pools["val"], pools["test"])


def _unknown_class(image_set: ImageSet, class_name: str) -> str:
    nearest = unknown("class", class_name, image_set.class_names).partition("there is")[0]
    return f"{nearest}{image_set.name} has {len(image_set.class_names):,} classes and not this one"
