"""Tables say what the records say, in the promised columns, and never mix what cannot be compared."""

import io
from typing import Any

import pandas as pd
import pytest

from fewshot.errors import RecordError
from fewshot.harness.record import Record, record_key
from fewshot.report.formats import FORMATS, TERMINAL_COLUMNS
from fewshot.report.results import learner_rank
from fewshot.report.table import COLUMNS, long_table, render, tables
from tests.report.html_pages import stands_alone

COMMON: dict[str, Any] = {
    "suite": "hand_made",
    "config": {"options": {}},
    "backbone": "conv4-64",
    "image_size": 28,
    "dataset": "omniglot",
    "split": "vinyals",
    "side": "test",
    "rotated_test_classes": False,
    "data_digest": "0",
    "way": 5,
    "episodes": 1000,
    "episode_seed": 0,
    "episodes_digest": "0",
    "train_dataset": "omniglot",
    "train_split": "vinyals",
    "train_protocol": "kshot",
    "train_way": 5,
    "train_shot": 1,
    "train_seed": 0,
    "train_steps": 100,
    "train_episodes": 1600,
    "train_seconds": 1.0,
    "selection": None,
    "device": "cpu",
    "threads": 1,
    "transductive": False,
    "ci95": 0.002,
    "ci95_classes": 0.006,
    "checkpoint": None,
    "checkpoint_sha256": None,
    "commit": None,
    "dirty": None,
    "versions": {},
}
NOT_TRAINED = {name: None for name in COMMON if name.startswith("train_")} | {"backbone": None}


def kshot(learner: str, accuracy: float, **fields: Any) -> Record:
    given = COMMON | {"protocol": "kshot", "shot": 1, "query": 15, "accuracy": accuracy} | fields
    return Record(**({"key": record_key({"learner": learner} | fields), "learner": learner} | given))


def stream(learner: str, by_instance: dict[int, float], **fields: Any) -> Record:
    given = COMMON | {"protocol": "stream", "length": 50, "counts": "exact", "labels": "one_hot"}
    given |= {
        "train_protocol": "stream",
        "train_shot": None,
        "accuracy": sum(by_instance.values()) / len(by_instance),
        "accuracy_by_instance": by_instance,
        "ci95_by_instance": dict.fromkeys(by_instance, 0.004),
        "ci95_classes_by_instance": dict.fromkeys(by_instance, 0.011),
    }
    return Record(**({"key": record_key({"learner": learner} | fields), "learner": learner} | given | fields))


def test_the_csv_has_the_columns_of_the_design_and_whole_numbers_as_such() -> None:
    text = render([kshot("prototypical", 0.984), stream("mann", {1: 0.4, 2: 0.951})], "csv")
    header, *rows = text.splitlines()
    assert header == (
        "suite,dataset,split,side,rotated_test_classes,image_size,backbone,protocol,way,shot,instance,counts,"
        "labels,learner,train_dataset,train_protocol,accuracy,ci95,ci95_classes,episodes,train_seeds,"
        "transductive,published,published_source,gap"
    )
    assert rows == [
        "hand_made,omniglot,vinyals,test,False,28,conv4-64,kshot,5,1,,,,prototypical,omniglot,kshot,98.4,0.2,0.6,"
        '1000,1,False,98.8,"Snell et al. 2017, Table 1",-0.4',
        "hand_made,omniglot,vinyals,test,False,28,conv4-64,stream,5,,1,exact,one_hot,mann,omniglot,stream,40.0,0.4,"
        '1.1,1000,1,False,36.4,"Santoro et al. 2016, Table 1",3.6',
        "hand_made,omniglot,vinyals,test,False,28,conv4-64,stream,5,,2,exact,one_hot,mann,omniglot,stream,95.1,0.4,"
        '1.1,1000,1,False,82.8,"Santoro et al. 2016, Table 1",12.3',
    ]


def test_training_seeds_are_averaged_and_counted() -> None:
    frame = long_table([kshot("prototypical", 0.9 + 0.01 * seed, train_seed=seed) for seed in range(3)])
    assert frame[["accuracy", "train_seeds", "ci95"]].values.tolist() == [[91.0, 3, 0.2]]


def test_what_differs_in_more_than_the_seed_is_not_averaged() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"transductive": True},
        {"train_way": 20},
        {"config": {"options": {"widths": [32]}}},
        {"episodes_digest": "1"},
        {"train_dataset": "glyphs"},
    ]
    records = [kshot("prototypical", 0.9, **change) for change in changes]
    assert len(long_table(records)) == len(changes)
    labels = [row.label for table in tables(records) for row in table.rows if not row.published]
    assert len(set(labels)) == len(changes), labels


def test_presentations_that_were_not_asked_are_empty_cells() -> None:
    records = [stream("mann", {1: 0.4, 2: 0.9, 4: 0.95, 10: 0.98}), stream("maml", {2: 0.9})]
    (table,) = tables(records)
    assert table.columns == ("1st", "2nd", "10th")
    assert [row.cells for row in table.rows if row.label == "maml"] == [("", "90.0 ± 0.4", "")]
    assert 4 in long_table(records)["instance"].tolist()


GOLDEN = """\
K-shot · omniglot 28×28, split vinyals (test), upright classes · trained on omniglot
learner               5-way 1-shot   20-way 1-shot
──────────────────────────────────────────────────
prototypical            98.4 ± 0.2      94.7 ± 0.2
  paper                   98.8 [1]        96.0 [1]
  gap                         −0.4            −1.3
maml †                98.92 ± 0.04
  paper             98.7 ± 0.4 [2]
  gap                         +0.2
nearest_neighbour       46.0 ± 0.2
  paper                   41.7 [3]
  gap                         +4.3
Accuracy in %, ± 95 % over 1,000 test episodes; chance 20.0 (5-way), 5.0 (20-way).
95 % over test classes and episodes (bootstrap): prototypical ± 0.6, maml † ± 0.6, nearest_neighbour
± 0.6.
Trained on 5-way 1-shot episodes: prototypical, maml.
† transductive: an answer may depend on the other queries of its episode; not comparable with rows
without the mark.
Nothing is marked as the best: there are no answers to the same episodes to test it on.
[1] Snell et al. 2017, Table 1. Differs: turned test classes count as classes; trained with 60 ways
(20-way) episodes.
[2] Finn et al. 2017. Differs: split random 1,200 / 423 classes; turned test classes count as
classes; backbone Conv4-64 strided.
[3] Vinyals et al. 2016, Table 1 (recalled, not checked against the paper). Differs: turned test
classes count as classes; nearest neighbour, cosine.
"""


def test_the_terminal_table_reads_as_agreed() -> None:
    records = [
        kshot("nearest_neighbour", 0.46, **NOT_TRAINED),
        kshot("maml", 0.9892, transductive=True, ci95=0.0004),
        kshot("prototypical", 0.947, way=20),
        kshot("prototypical", 0.984),
    ]
    assert render(records, "text").rstrip() == GOLDEN.rstrip()


def test_the_terminal_table_fits_its_width() -> None:
    learners = ("mann", "prototypical", "maml", "nearest_neighbour", "count_guesser")
    accuracies = {k: 0.9 + 0.005 * k for k in range(1, 11)}
    records = [stream(name, accuracies) for name in learners]
    records += [stream(name, accuracies, train_dataset="glyphs") for name in learners[:3]]
    records += [kshot("prototypical", 0.9, way=way, shot=shot) for way in (5, 20) for shot in (1, 5)]
    assert max(map(len, render(records, "text").splitlines())) <= TERMINAL_COLUMNS


def test_transductive_rows_are_marked_and_explained_in_every_format() -> None:
    records = [kshot("maml", 0.97, transductive=True), kshot("maml", 0.95)]
    for name, mark in (("text", "maml †"), ("md", "maml †"), ("html", "maml †"), ("latex", r"maml \dag{}")):
        text = render(records, name)
        assert mark in text
        assert "transductive" in text
        assert "97.0" in text
        assert "95.0" in text


def test_learners_trained_elsewhere_stand_apart_and_say_so() -> None:
    records = [kshot("prototypical", 0.98), kshot("prototypical", 0.95, train_dataset="glyphs")]
    here, there = tables(records)
    assert here.title.endswith("trained on omniglot")
    assert there.title.endswith("trained on glyphs")
    assert [row.label for row in there.rows] == ["prototypical (trained on glyphs)"]
    (shared,) = tables([stream("mann", {1: 0.4}), stream("mann", {1: 0.3}, train_dataset="glyphs")])
    assert [row.label for row in shared.rows if not row.published] == [
        "mann",
        "mann (trained on glyphs)",
        "people",
    ]


def test_rotation_and_counts_make_separate_tables() -> None:
    records = [stream("mann", {1: 0.4}, counts=counts) for counts in ("exact", "random")]
    records += [kshot("mann", 0.9, rotated_test_classes=rotated) for rotated in (False, True)]
    titles = [table.title for table in tables(records)]
    assert len(titles) == len(set(titles)) == 4


def test_strings_make_a_table_of_their_own_with_its_own_chance() -> None:
    one_hot, string = tables(
        [stream("mann", {1: 0.4, 2: 0.9}, labels=labels) for labels in ("one_hot", "string")]
    )
    assert one_hot.title.startswith("Stream · 5-way, 50 images, exact counts · ")
    assert string.title.startswith("Stream · 5-way, 50 images, exact counts, string labels · ")
    assert string.notes[0].endswith("; chance 0.03.")
    assert "string cannot be known; a lucky guess is right in 0.03 %." in string.notes[1]
    assert one_hot.notes[0].endswith("; chance 20.0.")
    assert "gives at most 45.7." in one_hot.notes[1]


def test_chains_make_a_table_of_their_own_and_say_how_links_differ() -> None:
    links: list[dict[int, float]] = [{1: 0.97, 2: 0.95, 3: 0.93}, {1: 0.99, 2: 0.93, 3: 0.91}]
    records = [
        stream("mann", {1: 0.4, 2: 0.9}, chain=3, train_seed=seed, accuracy_by_link=by_link)
        for seed, by_link in enumerate(links)
    ]
    single, chain = tables([*records, stream("mann", {1: 0.4, 2: 0.9})])
    assert single.title.startswith("Stream · 5-way, 50 images, exact counts · ")
    assert chain.title.startswith("Stream · 5-way, 50 images, exact counts, chain of 3 episodes · ")
    told = (
        "At presentations 2 and later, in the first episode of a chain and in the others: mann 98.0 and 93.0."
    )
    assert told in chain.notes
    assert not any(note.startswith("At presentations 2") for note in single.notes)
    assert "people" in [row.label for row in single.rows]
    assert "people" not in [row.label for row in chain.rows]


def test_the_long_table_has_a_last_column_for_chains_where_there_are_some() -> None:
    single, chain = stream("mann", {2: 0.9}), stream("mann", {2: 0.8}, chain=10)
    assert "chain" not in long_table([single])
    frame = long_table([single, chain, kshot("mann", 0.9)])
    assert list(frame) == [*COLUMNS, "chain"]
    assert frame[["protocol", "chain"]].values.tolist() == [["kshot", 1], ["stream", 1], ["stream", 10]]


def test_the_long_table_tells_lengths_apart_where_streams_are_alike_otherwise() -> None:
    short, long = stream("mann", {2: 0.9}, length=20), stream("mann", {2: 0.8}, length=100)
    frame = long_table([short, long, kshot("mann", 0.9)])
    assert list(frame) == [*COLUMNS, "length"]
    assert frame[["protocol", "length"]].values.tolist() == [
        ["kshot", pd.NA],
        ["stream", 20],
        ["stream", 100],
    ]
    chained = stream("mann", {2: 0.8}, length=20, chain=10)
    assert list(long_table([short, long, chained])) == [*COLUMNS, "chain", "length"]
    another_way = stream("mann", {2: 0.8}, length=150, way=15)
    assert list(long_table([short, another_way])) == list(COLUMNS)


def test_rows_stand_in_the_order_of_reading() -> None:
    learners = ["count_guesser", "my_own", "nearest_neighbour", "prototypical", "lstm", "mann:no_tie", "mann"]
    expected = ["mann", "mann:no_tie", "lstm", "prototypical", "my_own", "nearest_neighbour", "count_guesser"]
    assert sorted(learners, key=learner_rank) == expected
    assert sorted(["mann:128_slots", "mann:64_slots", "mann"], key=learner_rank) == [
        "mann", "mann:64_slots", "mann:128_slots",
    ]  # fmt: skip
    (table,) = tables([stream(learner, {2: 0.5}) for learner in learners])
    assert [row.label for row in table.rows if not row.published] == [*expected, "people"]


def test_several_training_seeds_are_named_beneath() -> None:
    (table,) = tables([kshot("prototypical", 0.9, train_seed=seed) for seed in range(3)])
    assert any("training seeds" in note and "prototypical 3" in note for note in table.notes)


def test_from_three_training_seeds_on_their_interval_is_told() -> None:
    """Least to most over the columns: t(0.975, 2) = 4.303 by deviations of 0.2 and 1 points over sqrt(3)."""
    records = [
        stream("mann", {2: 0.9 + 0.01 * step, 10: 0.98 + 0.002 * step}, train_seed=seed)
        for seed, step in enumerate((-1, 0, 1))
    ]
    records += [stream("lstm", {2: 0.6 + 0.005 * seed}, train_seed=seed) for seed in range(4)]
    records += [stream("maml", {2: 0.9 + 0.01 * seed}, train_seed=seed) for seed in range(2)]
    (table,) = tables(records)
    assert "95 % over training seeds: mann ± 0.5–2.5, lstm ± 1.0." in table.notes
    (few,) = tables(records[-2:])
    assert not any(note.startswith("95 % over training seeds") for note in few.notes)


def test_markup_is_escaped() -> None:
    records = [kshot("my_own<b>", 0.9, train_dataset="a&b")]
    page = render(records, "html")
    assert "my_own&lt;b&gt;" in page
    assert "a&amp;b" in page
    stands_alone(page)
    assert r"my\_own" in render(records, "latex")
    assert r"a\&b" in render(records, "latex")


def test_every_format_prints_every_learner() -> None:
    records = [kshot("prototypical", 0.984), stream("lstm", {1: 0.33, 2: 0.55})]
    for name in FORMATS:
        text = render(records, name)
        assert "prototypical" in text
        assert "lstm" in text
    assert len(pd.read_csv(io.StringIO(render(records, "csv")))) == 3


def test_an_unknown_format_is_one_clear_line() -> None:
    with pytest.raises(RecordError, match="unknown format 'latx': did you mean 'latex'") as caught:
        render([kshot("mann", 0.9)], "latx")
    assert "\n" not in str(caught.value)


def test_no_records_is_one_clear_line() -> None:
    for name in FORMATS:
        with pytest.raises(RecordError, match=r"no records .*fewshot run"):
            render([], name)


def test_people_stand_last_where_their_figures_were_published() -> None:
    by_instance = {1: 0.4, 2: 0.95, 7: 0.98, 10: 0.99}
    (table,) = tables([stream("mann", by_instance)])
    assert (table.rows[-1].label, table.rows[-1].cells) == ("people", ("34.5", "57.3", "92.4"))
    assert table.notes[-1] == "people: Santoro et al. 2016, Table 1."
    for fields in ({"way": 20}, {"dataset": "glyphs"}, {"labels": "string"}):
        (other,) = tables([stream("mann", by_instance, **fields)])
        assert all(row.label != "people" for row in other.rows)
