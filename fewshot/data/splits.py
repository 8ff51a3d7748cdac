"""The splits that have names: committed lists of classes, or fixed rules over the names of the classes.

Lists are package data (`fewshot.data.class_lists`):

    omniglot/vinyals     1,028 / 172 / 423: of Vinyals et al. 2016, as the authors of ProtoNets used it
    omniglot/santoro     1,100 / 100 / 423: the sorted names once shuffled by random.Random(2016); Santoro et
                         al. 2016 train on 1,200 random classes and did not publish which
    omniglot/lake        806 / 158 / 659: images_background, of which every sixth alphabet by name is val, so
                         that none was chosen for its looks; images_evaluation is test
    mini_imagenet/ravi   64 / 16 / 20: of Ravi and Larochelle 2017
    cifar_fs/bertinetto  64 / 16 / 20: of Bertinetto et al. 2019
    fc100/oreshkin       60 / 20 / 20: of Oreshkin et al. 2018, whole superclasses, 12 / 4 / 4
    cub/chen             100 / 50 / 50: of Chen et al. 2019, who train on the classes of odd number, and split
                         the others by turns
    tiered_imagenet/ren  351 / 97 / 160: of Ren et al. 2018, whole categories, 20 / 6 / 8

Rules, for any image set:

    folders              classes below folders train, val and test
    default              whole groups (alphabets) by name, 80 % train, then 10 % val, then 10 % test (at
                         least one each), where neither lists nor such folders say otherwise
    fraction:A/B/C@SEED  those fractions of the classes, see `split_by_fraction`; "fraction" alone is
                         fraction:0.6/0.2/0.2@0
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import torch

from fewshot.data.class_lists import class_list, listed_splits
from fewshot.data.image_set import ImageSet
from fewshot.data.split import SIDES, ClassPool, Side, Split
from fewshot.errors import SplitError, unknown

FRACTION = re.compile(r"fraction:(\d*\.?\d+)/(\d*\.?\d+)/(\d*\.?\d+)@(\d+)")


def split_names(image_set: ImageSet) -> tuple[str, ...]:
    """The names that `split_classes` knows for this image set."""
    # A copy whose classes are named by side lacks the names that the lists have.
    by_side = _tops(image_set) <= set(SIDES)
    names = ["folders"] if by_side else list(listed_splits(image_set.name))
    if not names and len(_groups(image_set)) >= len(SIDES):
        names.append("default")
    return (*names, "fraction")


def split_classes(image_set: ImageSet, name: str) -> Split:
    """The split of that name; SplitError where there is none, or where its classes are not all there."""
    if name == "fraction":
        return split_by_fraction(image_set, 0.6, 0.2, 0.2, split_seed=0)
    if match := FRACTION.fullmatch(name):
        train, val, test, split_seed = match.groups()
        return split_by_fraction(image_set, float(train), float(val), float(test), int(split_seed))
    if name not in split_names(image_set):
        raise SplitError(unknown(f"split of {image_set.name}", name, split_names(image_set)))
    return split_by_lists(image_set, name, _lists(image_set, name))


def _lists(image_set: ImageSet, name: str) -> Mapping[Side, Sequence[str]]:
    if name in listed_splits(image_set.name):
        return {side: class_list(image_set.name, name, side) for side in SIDES}
    if name == "folders":
        return {side: [c for c in image_set.class_names if c.startswith(f"{side}/")] for side in SIDES}
    groups = _groups(image_set)
    tenth = max(1, round(0.1 * len(groups)))
    sides = _cut(groups, tenth, tenth)
    return {side: [c for c in image_set.class_names if _group(c) in set(sides[side])] for side in SIDES}


def split_by_fraction(image_set: ImageSet, train: float, val: float, test: float, split_seed: int) -> Split:
    """Fractions of the classes, in an order that only split_seed and the classes' names decide.

    The order is that of SHA-256 of "split_seed/class name". Raises SplitError for fractions that do not
    add up to 1, and where a side would be empty.
    """
    if min(train, val, test) <= 0 or abs(train + val + test - 1) > 1e-6:
        raise SplitError(f"fractions are above 0 and add up to 1; got {train:g}, {val:g} and {test:g}")
    names = sorted(
        image_set.class_names, key=lambda name: hashlib.sha256(f"{split_seed}/{name}".encode()).digest()
    )
    sides = _cut(names, round(val * len(names)), round(test * len(names)))
    return split_by_lists(image_set, f"fraction:{train:g}/{val:g}/{test:g}@{split_seed}", sides)


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
                f"split {name} of {image_set.name} ({len(index):,} classes) has no {side} classes: "
                f"each of {', '.join(SIDES)} needs at least one"
            )
        for class_name in names:
            if class_name not in index:
                raise SplitError(_unknown_class(image_set, f"side {side} of split {name}", class_name))
            if class_name in side_of:
                raise SplitError(
                    f"split {name} names the class {class_name} twice, in {side_of[class_name]} and {side}: "
                    "a class belongs to one side, once"
                )
            side_of[class_name] = side
        indices = torch.tensor(sorted(index[class_name] for class_name in names))
        pools[side] = ClassPool(image_set, name, side, indices, torch.zeros_like(indices))
    return Split(name, pools["train"], pools["val"], pools["test"])


def _cut(names: Sequence[str], val: int, test: int) -> dict[Side, Sequence[str]]:
    """The first for train, then val and then test of so many; train takes what is left."""
    train = len(names) - val - test
    return {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}


def _group(class_name: str) -> str:
    return class_name.rpartition("/")[0]


def _groups(image_set: ImageSet) -> list[str]:
    return sorted({_group(name) for name in image_set.class_names})


def _tops(image_set: ImageSet) -> set[str]:
    """The first folder of each class that lies in one, "" for the others."""
    return {name.partition("/")[0] if "/" in name else "" for name in image_set.class_names}


def _unknown_class(image_set: ImageSet, where: str, class_name: str) -> str:
    near = difflib.get_close_matches(class_name, image_set.class_names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"its first is {image_set.class_names[0]}"
    return f"{where} names the class {class_name!r}, which {image_set.name} does not have: {hint}"
