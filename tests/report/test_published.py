"""The published figure beside ours is the right one, and only where the two can be compared."""

import csv
from importlib.resources import files
from typing import Any

import pytest

from fewshot.harness.record import Record
from fewshot.report.published import (
    PAPER_NAMES,
    backbone_family,
    differences,
    find_published,
    human_stream,
    load_published,
    made_for,
)


def test_each_figure_says_where_it_was_read_and_each_source_has_a_figure() -> None:
    listed = (
        files("fewshot.report").joinpath("published_sources.csv").read_text(encoding="utf-8").splitlines()
    )
    sources = [row["source"] for row in csv.DictReader(listed)]
    assert len(set(sources)) == len(sources)
    assert {row.source for row in load_published()} == set(sources)
    first = load_published()[0]
    assert (first.paper, first.source) == ("Santoro et al. 2016", "Santoro 2016 Table 1")


def record(learner: str, protocol: str = "kshot", **fields: Any) -> Record:
    given: dict[str, Any] = {
        "key": "0",
        "suite": "hand_made",
        "learner": learner,
        "config": {},
        "backbone": "conv4-64",
        "image_size": 28,
        "dataset": "omniglot",
        "split": "vinyals",
        "side": "test",
        "rotated_test_classes": True,
        "data_digest": "0",
        "protocol": protocol,
        "way": 5,
        "episodes": 1000,
        "episode_seed": 0,
        "episodes_digest": "0",
        "train_dataset": "omniglot",
        "train_split": "vinyals",
        "train_protocol": protocol,
        "train_way": 5,
        "train_shot": None,
        "train_seed": 0,
        "train_steps": 1,
        "train_episodes": 16,
        "train_seconds": 1.0,
        "selection": None,
        "device": "cpu",
        "threads": 1,
        "transductive": False,
        "accuracy": 0.5,
        "ci95": None,
        "ci95_classes": None,
        "checkpoint": None,
        "checkpoint_sha256": None,
        "commit": None,
        "dirty": None,
        "versions": {},
    }
    task = {"shot": 1, "query": 15} if protocol == "kshot" else {"counts": "exact", "labels": "one_hot"}
    return Record(**(given | task | fields))


@pytest.mark.parametrize(
    ("learner", "way", "shot", "transductive", "accuracy"),
    [
        ("prototypical", 5, 1, False, 98.8),
        ("prototypical", 5, 5, False, 99.7),
        ("prototypical", 20, 1, False, 96.0),
        ("prototypical", 20, 5, False, 98.9),
        ("maml", 5, 1, True, 98.7),
        ("maml", 5, 5, True, 99.9),
        ("maml", 20, 1, True, 95.8),
        ("maml", 20, 5, True, 98.9),
        ("matching", 5, 1, False, 98.1),
        ("reptile", 5, 1, True, 97.68),
        ("reptile", 5, 1, False, 95.39),
    ],
)
def test_kshot_figures(learner: str, way: int, shot: int, transductive: bool, accuracy: float) -> None:
    found = find_published(record(learner, way=way, shot=shot, transductive=transductive))
    assert found is not None
    assert found.accuracy == accuracy
    assert found.original


@pytest.mark.parametrize(
    ("learner", "figures"),
    [
        ("mann", {1: 36.4, 2: 82.8, 3: 91.0, 4: 92.6, 5: 94.9, 10: 98.1}),
        ("mann_paper", {1: 36.4, 2: 82.8, 10: 98.1}),
        ("lstm", {1: 24.4, 2: 49.5, 10: 62.5}),
        ("feedforward", {2: 19.6, 10: 19.5}),
    ],
)
def test_stream_figures(learner: str, figures: dict[int, float]) -> None:
    for instance, accuracy in figures.items():
        found = find_published(record(learner, "stream"), instance)
        assert found is not None
        assert found.accuracy == accuracy
        assert found.citation == "Santoro et al. 2016, Table 1"


@pytest.mark.parametrize("instance", [6, 7, 8, 9, 11])
def test_a_presentation_the_paper_does_not_print_is_not_filled_from_elsewhere(instance: int) -> None:
    assert find_published(record("mann", "stream"), instance) is None


def test_stream_figures_never_stand_beside_kshot_ones() -> None:
    assert find_published(record("mann")) is None
    assert find_published(record("lstm", shot=5)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"side": "val"},
        {"train_dataset": "glyphs"},
        {"backbone": "resnet12"},
        {"backbone": None},
        {"dataset": "glyphs", "train_dataset": "glyphs"},
        {"way": 7},
        {"shot": 3},
        {"within_group": True},
        {"split": "folders"},
        {"split": "fraction:0.34/0.33/0.33@0"},
    ],
)
def test_another_setting_has_no_published_figure(fields: dict[str, Any]) -> None:
    assert find_published(record("prototypical")) is not None
    assert find_published(record("prototypical", **fields)) is None


def test_a_variant_has_no_published_figure() -> None:
    assert find_published(record("mann:no_tie", "stream"), 2) is None


@pytest.mark.parametrize(
    ("variant", "fields", "words"),
    [
        ("1shot", {}, ("1shot",)),
        ("1shot", {"train_way": 60}, ("1shot",)),
        ("5shot", {"shot": 5, "train_shot": 5}, ("5shot",)),
        ("5shot", {"shot": 5, "train_shot": (1, 5)}, ("5shot",)),
        ("20way", {"way": 20, "train_way": 60}, ("20way",)),
        ("20way", {"way": 20, "train_way": (5, 25), "train_shot": None}, ("20way",)),
        ("20way_1shot", {"way": 20, "train_way": 20}, ("20way", "1shot")),
        ("inductive", {}, ("inductive",)),
        ("transductive", {"transductive": True}, ("transductive",)),
        ("1shot_transductive", {"transductive": True}, ("1shot", "transductive")),
        # Tested in another setting than that it was made for.
        ("1shot", {"shot": 5}, ()),
        ("20way", {"train_way": 20}, ()),
        ("20way_1shot", {"train_way": 20}, ()),
        ("5way_20way", {"train_way": 20}, ()),
        # Not made for what it says.
        ("5shot", {"shot": 5}, ()),
        ("5shot", {"shot": 5, "train_shot": (1, 4)}, ()),
        ("5shot", {"shot": 5, "train_shot": (6, 9)}, ()),
        ("5shot", {"shot": 5, "train_shot": None}, ()),
        ("1shot", {"train_shot": None, "train_way": None, "train_dataset": None}, ()),
        ("20way", {"way": 20}, ()),
        ("20way", {"way": 20, "train_way": (5, 15)}, ()),
        ("inductive", {"transductive": True}, ()),
        ("transductive", {}, ()),
        ("1shot_transductive", {}, ()),
        # Or something else as well.
        ("1shot_wide", {}, ()),
        ("5", {}, ()),
        ("shot", {}, ()),
        ("0shot", {}, ()),
        ("1shot_", {}, ()),
        ("", {}, ()),
    ],
    ids=str,
)
def test_a_variant_that_says_what_it_was_made_for_is_its_learner_there(
    variant: str, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    given = {"train_way": 5, "train_shot": 1} | fields
    ours = record(f"maml:{variant}", **given)
    assert made_for(ours) == words
    plain = find_published(record("maml", **given))
    assert plain is not None
    assert find_published(ours) == (plain if words else None)


def test_what_was_made_for_a_setting_needs_no_common_backbone_where_its_learner_needs_none() -> None:
    plain = find_published(record("mann", "stream"), 2)
    assert plain is not None
    assert find_published(record("mann:5way", "stream"), 2) == plain


def test_what_is_no_variant_was_made_for_nothing() -> None:
    assert made_for(record("maml", train_shot=1)) == ()


def test_string_labels_have_figures_of_their_own() -> None:
    found = find_published(record("mann", "stream", labels="string", way=15), 10)
    assert found is not None
    assert found.accuracy == 95.3


def test_chains_stand_beside_memories_that_are_never_wiped() -> None:
    found = find_published(record("mann", "stream", chain=10), 2)
    assert found is not None
    assert (found.accuracy, found.learner) == (66.2, "MANN-persistent")
    assert any("not wiped" in words for words in differences(record("mann", "stream", chain=10), found))
    for learner in ("lstm", "feedforward"):
        assert find_published(record(learner, "stream"), 2) is not None
        assert find_published(record(learner, "stream", chain=10), 2) is None


def test_the_family_of_the_backbone_is_what_counts() -> None:
    found = find_published(
        record("maml", dataset="mini_imagenet", train_dataset="mini_imagenet", split="ravi")
    )
    assert found is not None
    assert (found.accuracy, found.backbone) == (48.7, "Conv4-32")
    assert [backbone_family(name) for name in ("conv4-64", "Conv4S", "ResNet-12", "resnet18", None)] == [
        "conv4",
        "conv4",
        "resnet12",
        "resnet18",
        "none",
    ]


def test_differences_name_split_rotation_backbone_and_transduction() -> None:
    ours = record("maml", rotated_test_classes=False, backbone="conv4-32")
    found = find_published(ours)
    assert found is not None
    assert differences(ours, found) == (
        "split random 1,200 / 423 classes",
        "turned test classes count as classes",
        "backbone Conv4-64 strided",
        "transductive",
    )
    same = record("maml", transductive=True, split="random 1,200 / 423 classes", backbone="Conv4-64 strided")
    assert differences(same, found) == ()


def test_recalled_figures_say_so() -> None:
    found = find_published(record("nearest_neighbour", backbone=None, train_dataset=None))
    assert found is not None
    assert found.accuracy == 41.7
    assert "recalled" in found.citation


def test_people_are_known_for_their_task_only() -> None:
    people = human_stream(record("mann", "stream"))
    assert {k: row.accuracy for k, row in people.items()} == {
        1: 34.5,
        2: 57.3,
        3: 70.1,
        4: 71.8,
        5: 81.4,
        10: 92.4,
    }
    for other in (
        {"dataset": "glyphs"},
        {"chain": 10},
        {"split": "folders"},
        {"split": "fraction:0.6/0.2/0.2@0"},
    ):
        assert human_stream(record("mann", "stream", **other)) == {}


def test_the_file_is_consistent() -> None:
    figures = load_published()
    assert len(figures) > 1000
    assert set(PAPER_NAMES.values()) <= {row.learner for row in figures}
    for row in figures:
        assert 0 <= row.accuracy <= 100
        assert (row.instance is not None) == (row.protocol == "stream"), row
        assert (row.shot is None) == (row.protocol == "stream"), row
        assert bool(row.note) == (row.confidence == "low"), row
        assert bool(row.labels) == (row.protocol == "stream"), row
