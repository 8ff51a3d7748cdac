"""Sides never share a class, and lists say exactly which classes they hold."""

import itertools

import pytest
import torch

from fewshot.data.class_lists import class_list, listed_splits
from fewshot.data.image_set import ImageSet
from fewshot.data.split import SIDES, Side, Split
from fewshot.data.splits import split_by_fraction, split_by_lists, split_classes, split_names
from fewshot.errors import SplitError


def image_set_of(class_names: list[str], name: str = "toy", images_per_class: int = 2) -> ImageSet:
    names = sorted(class_names)
    count = len(names) * images_per_class
    return ImageSet(
        name=name,
        images=torch.zeros(count, 1, 4, 4, dtype=torch.uint8),
        class_names=tuple(names),
        class_start=torch.arange(len(names) + 1) * images_per_class,
        image_names=("x",) * count,
        source="a test",
        licence="MIT",
        mean=(0.0,),
        std=(1.0,),
        digest="0",
    )


def names(split: Split, side: Side) -> list[str]:
    pool = split.side(side)
    return [pool.class_name(i) for i in range(len(pool))]


ALPHABETS = image_set_of([f"alphabet{a:02d}/character{c}" for a in range(10) for c in range(3)])


@pytest.mark.parametrize(
    ("dataset", "split", "sizes"),
    [
        ("omniglot", "santoro", (1100, 100, 423)),
        ("omniglot", "vinyals", (1028, 172, 423)),
        ("omniglot", "lake", (806, 158, 659)),
        ("mini_imagenet", "ravi", (64, 16, 20)),
        ("cifar_fs", "bertinetto", (64, 16, 20)),
        ("fc100", "oreshkin", (60, 20, 20)),
        ("cub", "chen", (100, 50, 50)),
        ("tiered_imagenet", "ren", (351, 97, 160)),
    ],
)
def test_committed_lists_are_disjoint_and_of_the_stated_size(
    dataset: str, split: str, sizes: tuple[int, int, int]
) -> None:
    lists = {side: class_list(dataset, split, side) for side in SIDES}
    assert tuple(len(lists[side]) for side in SIDES) == sizes
    assert len(set(itertools.chain(*lists.values()))) == sum(sizes)


def test_omniglot_splits_cover_the_same_classes() -> None:
    covered = [
        {name for side in SIDES for name in class_list("omniglot", split, side)}
        for split in listed_splits("omniglot")
    ]
    assert listed_splits("omniglot") == ("lake", "santoro", "vinyals")
    assert covered[0] == covered[1] == covered[2]


def test_lake_shares_no_alphabet() -> None:
    alphabets = [{name.split("/")[0] for name in class_list("omniglot", "lake", side)} for side in SIDES]
    assert [len(side) for side in alphabets] == [25, 5, 20]
    assert len(set.union(*alphabets)) == 50


def test_listed_split_of_an_image_set() -> None:
    classes = [name for side in SIDES for name in class_list("mini_imagenet", "ravi", side)]
    split = image_set_of(classes, "mini_imagenet").split("ravi")
    for side in SIDES:
        assert names(split, side) == sorted(class_list("mini_imagenet", "ravi", side))
        assert split.side(side).split == split.name == "ravi"


def test_missing_class_of_a_listed_split_is_named() -> None:
    classes = [name for side in SIDES for name in class_list("mini_imagenet", "ravi", side)]
    with pytest.raises(
        SplitError, match=r"side test of split ravi names the class 'n01930112', which mini_ima"
    ):
        image_set_of([c for c in classes if c != "n01930112"], "mini_imagenet").split("ravi")


def test_rotated_classes_stay_on_their_side() -> None:
    split = ALPHABETS.split("default")
    parents = {side: set(names(split, side)) for side in SIDES}
    for side in SIDES:
        pool = split.side(side).with_rotations()
        turned = [pool.class_name(i) for i in range(len(pool))]
        assert len(set(turned)) == 4 * len(parents[side])
        assert {name.partition("@")[0] for name in turned} == parents[side]


def test_default_splits_by_whole_groups() -> None:
    assert split_names(ALPHABETS) == ("default", "fraction")
    split = split_classes(ALPHABETS, "default")
    groups = [sorted({name.split("/")[0] for name in names(split, side)}) for side in SIDES]
    assert groups == [
        [f"alphabet{a:02d}" for a in range(8)],
        ["alphabet08"],
        ["alphabet09"],
    ]
    assert sum(len(split.side(side)) for side in SIDES) == 30


def test_folders_are_sides() -> None:
    image_set = image_set_of(["train/a", "train/b", "val/a", "test/x/y"])
    split = image_set.split("folders")
    assert [names(split, side) for side in SIDES] == [["train/a", "train/b"], ["val/a"], ["test/x/y"]]
    with pytest.raises(SplitError, match="has no val classes"):
        image_set_of(["train/a", "test/b"]).split("folders")
    assert "folders" not in split_names(image_set_of(["train/a", "val/a", "test/a", "extra"]))


def test_copy_that_names_classes_by_side_has_no_listed_split() -> None:
    numbered = image_set_of(["train/00", "val/00", "test/00"], "mini_imagenet")
    assert split_names(numbered) == ("folders", "fraction")


def test_fractions_depend_on_names_and_seed_only() -> None:
    split = split_by_fraction(ALPHABETS, 0.5, 0.2, 0.3, split_seed=7)
    assert [len(split.side(side)) for side in SIDES] == [15, 6, 9]
    assert len({name for side in SIDES for name in names(split, side)}) == 30
    again = split_classes(ALPHABETS, split.name)
    assert split.name == "fraction:0.5/0.2/0.3@7"
    assert again.digest == split.digest
    other = split_by_fraction(ALPHABETS, 0.5, 0.2, 0.3, split_seed=8)
    assert names(other, "train") != names(split, "train")
    assert split_classes(ALPHABETS, "fraction").name == "fraction:0.6/0.2/0.2@0"


@pytest.mark.parametrize("fractions", [(0.5, 0.2, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_fractions_that_are_none_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(SplitError, match="add up to 1"):
        split_by_fraction(ALPHABETS, *fractions, split_seed=0)


def test_fraction_that_leaves_a_side_empty_is_refused() -> None:
    with pytest.raises(SplitError, match=r"\(3 classes\) has no val classes"):
        split_by_fraction(image_set_of(["a", "b", "c"]), 0.9, 0.05, 0.05, split_seed=0)


def test_unknown_split_lists_what_there_is() -> None:
    with pytest.raises(SplitError, match=r"unknown split of toy 'vinyals': there is default, fraction"):
        split_classes(ALPHABETS, "vinyals")


def test_own_lists_are_checked() -> None:
    image_set = image_set_of(["ant", "bee", "cat"])
    split = split_by_lists(image_set, "mine", {"train": ["cat"], "val": ["bee"], "test": ["ant"]})
    assert (names(split, "train"), split.name) == (["cat"], "mine")
    with pytest.raises(SplitError, match="names the class bee twice, in train and val"):
        split_by_lists(image_set, "mine", {"train": ["bee"], "val": ["bee"], "test": ["ant"]})
    with pytest.raises(SplitError, match="'beee', which toy does not have: did you mean bee"):
        split_by_lists(image_set, "mine", {"train": ["cat"], "val": ["beee"], "test": ["ant"]})
    with pytest.raises(SplitError, match="no test classes"):
        split_by_lists(image_set, "mine", {"train": ["cat"], "val": ["bee"]})
    with pytest.raises(SplitError, match="no val classes"):
        split_by_lists(image_set, "mine", {"train": ["cat"], "val": [], "test": ["ant"]})
