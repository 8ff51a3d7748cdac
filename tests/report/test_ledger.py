"""A published figure is rerun and matched by rules that no choice among our records can bend."""

from pathlib import Path
from typing import Any

import pytest

from fewshot.errors import RecordError
from fewshot.harness.record import append_record
from fewshot.report.ledger import (
    LEAST_EPISODES,
    PublishedFigure,
    Rerun,
    ledger_page,
    load_reasons,
    published_figures,
    read_results,
    rerun_figures,
)
from fewshot.report.published import load_published
from fewshot.report.results import Result, merge_seeds
from tests.report.test_table import NOT_TRAINED, kshot, stream

ROOT = Path(__file__).parents[2]


def results_of(*records: Any) -> list[Result]:
    return merge_seeds(records)


def turned(learner: str, accuracy: float, **fields: Any) -> Any:
    """A record as published ones of Omniglot: turned test classes count."""
    return kshot(learner, accuracy, **({"rotated_test_classes": True} | fields))


def names(results: list[Result]) -> list[str]:
    return [f"{rerun.figure.row.paper}: {rerun.figure.row.learner}" for rerun in rerun_figures(results)]


def santoro(learner: str, by_instance: dict[int, float], **fields: Any) -> Any:
    given = {"split": "santoro", "train_split": "santoro", "backbone": None, "image_size": 20}
    return stream(learner, by_instance, **(given | fields))


MANN = {1: 0.30, 2: 0.83, 3: 0.91, 4: 0.93, 5: 0.95, 10: 0.982}  # 36.4, 82.8, 91.0, 92.6, 94.9, 98.1


# --- Which figures count ------------------------------------------------------------------------------------


def test_a_figure_is_one_paper_method_and_setting() -> None:
    figures = published_figures()
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        if figure.row.protocol != "stream":
            assert len(figure.rows) == 1


def test_all_presentations_of_a_stream_are_one_figure_without_the_first() -> None:
    (figure,) = (
        f for f in published_figures()
        if (f.row.paper, f.row.learner, f.row.labels) == ("Santoro et al. 2016", "MANN", "one_hot")
    )  # fmt: skip
    assert [row.instance for row in figure.rows] == [2, 3, 4, 5, 10]


def test_presentations_below_thirty_per_cent_do_not_count() -> None:
    found = {
        (f.row.way, f.row.learner): [row.instance for row in f.rows]
        for f in published_figures()
        if f.row.labels == "string"
    }
    assert found[15, "MANN-feedforward"] == [5, 10]  # 12.8, 22.3, 28.8, 32.2, 43.4
    assert (15, "LSTM") not in found  # at most 12.7
    assert (5, "Feedforward") not in found


@pytest.mark.parametrize("learner", ["Human", "kNN", "kNN-autoencoder", "Pixels", "NearestNeighbour"])
def test_people_and_what_learns_nothing_do_not_count(learner: str) -> None:
    assert learner in {row.learner for row in load_published()}
    assert learner not in {figure.row.learner for figure in published_figures()}


def test_what_was_recalled_or_does_not_say_its_split_does_not_count() -> None:
    assert all(row.confidence == "high" for figure in published_figures() for row in figure.rows)
    omniglot = [figure.row for figure in published_figures() if figure.row.dataset == "omniglot"]
    assert all(row.split and row.rotated_test_classes is not None for row in omniglot)
    assert "Li et al. 2017" in {row.paper for row in load_published() if row.dataset == "omniglot"}
    assert "Li et al. 2017" not in {row.paper for row in omniglot}


def test_of_two_versions_of_a_paper_the_final_one_has_the_figure() -> None:
    found = [
        f.row for f in published_figures()
        if (f.row.learner, f.row.dataset, f.row.way, f.row.shot) == ("Reptile", "omniglot", 5, 1)
    ]  # fmt: skip
    assert {(row.transductive, row.accuracy) for row in found} == {(False, 95.39), (True, 97.68)}


# --- What stands for a figure -------------------------------------------------------------------------------


def test_a_record_in_the_same_setting_reruns_it() -> None:
    (rerun,) = rerun_figures(results_of(turned("prototypical", 0.987)))
    assert (rerun.figure.row.accuracy, rerun.figure.row.way, rerun.figure.row.shot) == (98.8, 5, 1)
    assert rerun.figure.name == "Snell et al. 2017: ProtoNet, omniglot 5-way 1-shot, turned classes, Conv4-64"


@pytest.mark.parametrize(
    "fields",
    [
        {"rotated_test_classes": False},
        {"split": "lake", "train_split": "lake"},
        {"train_split": "santoro"},
        {"train_dataset": "glyphs"},
        {"side": "val"},
        {"backbone": "resnet12"},
        {"backbone": None},
        {"backbone": "conv4-64 averaged"},
        {"transductive": True},
        {"within_group": True},
        {"episodes": LEAST_EPISODES - 1},
        {"way": 7},
        {"shot": 3},
    ],
    ids=str,
)
def test_a_record_in_another_setting_does_not(fields: dict[str, Any]) -> None:
    assert rerun_figures(results_of(turned("prototypical", 0.99)))
    named = [name for name in names(results_of(turned("prototypical", 0.99, **fields))) if "Snell" in name]
    assert named == []


def test_another_list_of_the_same_kind_of_split_does() -> None:
    given = {"split": "santoro", "train_split": "santoro"}
    assert names(results_of(turned("prototypical", 0.99, **given))) == ["Snell et al. 2017: ProtoNet"]
    assert names(results_of(turned("maml", 0.99, transductive=True))) == ["Finn et al. 2017: MAML"]


def test_what_is_not_said_to_be_transductive_is_rerun_inductively() -> None:
    assert names(results_of(turned("maml", 0.99))) == []
    assert names(results_of(turned("maml:transductive", 0.99, transductive=True))) == [
        "Finn et al. 2017: MAML"
    ]
    upright = {"rotated_test_classes": False}  # Reptile's test classes are not turned
    for learner, transductive, theirs in (("reptile", True, 97.68), ("reptile:inductive", False, 95.39)):
        (rerun,) = rerun_figures(results_of(turned(learner, 0.97, transductive=transductive, **upright)))
        assert rerun.figure.row.accuracy == theirs


@pytest.mark.parametrize("learner", ["prototypical:cosine", "nearest_neighbour", "count_guesser", "my_own"])
def test_variants_and_what_learns_nothing_stand_for_nothing(learner: str) -> None:
    fields = NOT_TRAINED if learner in ("nearest_neighbour", "count_guesser") else {}
    assert rerun_figures(results_of(turned(learner, 0.99, **fields))) == []


def test_a_network_behind_an_encoder_is_not_the_one_on_pixels() -> None:
    assert names(results_of(santoro("mann_paper", MANN))) == ["Santoro et al. 2016: MANN"]
    assert names(results_of(santoro("mann", MANN, backbone="conv4-64"))) == []


def test_a_stream_that_was_not_asked_at_all_presentations_is_no_rerun() -> None:
    asked = {k: accuracy for k, accuracy in MANN.items() if k != 4}
    assert names(results_of(santoro("mann_paper", asked))) == []


def test_which_record_stands_for_a_figure_does_not_depend_on_its_accuracy() -> None:
    def standing(*records: Any) -> Any:
        (rerun,) = rerun_figures(results_of(*records))
        return rerun.result.record

    letter, free = santoro("mann_paper", MANN), santoro("mann", dict.fromkeys(MANN, 0.99))
    assert standing(free, letter).learner == "mann_paper"
    random = santoro("mann_paper", dict.fromkeys(MANN, 0.99), counts="random")
    assert standing(random, letter).counts == "exact"
    named = santoro("mann_paper", MANN, suite="santoro_table1")
    better = santoro("mann_paper", dict.fromkeys(MANN, 0.99), suite="a_suite", train_episodes=10**9)
    assert standing(better, named).suite == "santoro_table1"
    seeds = [turned("prototypical", 0.97, suite="seeds", train_seed=seed) for seed in range(2)]
    lucky = turned("prototypical", 0.999, suite="lucky", train_episodes=10**9)
    assert standing(lucky, *seeds).suite == "seeds"
    longer = turned("prototypical", 0.9, suite="longer", train_episodes=10**9)
    assert standing(turned("prototypical", 0.999, suite="brief"), longer).suite == "longer"
    first = turned("simpleshot", 0.9, suite="first", train_episodes=10**9, checkpoint_sha256="1" * 64)
    links = {"checkpoint_sha256": "2" * 64, "train_start_sha256": "1" * 64}
    second = turned("simpleshot", 0.9, suite="second", **links)
    begun = turned("prototypical", 0.9, suite="begun", train_start_sha256="2" * 64)
    assert standing(turned("prototypical", 0.999, suite="brief"), begun, second, first).suite == "begun"
    taken = turned("prototypical", 0.97, suite="a_suite", config={"weights": "results/own/checkpoints/x"})
    assert standing(taken, turned("prototypical", 0.97, suite="own")).suite == "own"


def test_what_was_trained_for_a_setting_stands_there_before_the_plain_row_and_nowhere_else() -> None:
    shots = (1, 5)
    plain = [turned("prototypical", 0.99, shot=shot, suite="snell", train_episodes=10**9) for shot in shots]
    named = [turned(f"prototypical:{k}shot", 0.9, shot=shot, train_shot=k) for k in shots for shot in shots]
    both = [turned("prototypical:5way_1shot", 0.8, suite="z")]

    def standing(*records: Any) -> list[str]:
        return [rerun.result.record.learner for rerun in rerun_figures(results_of(*records))]

    assert standing(*plain) == ["prototypical", "prototypical"]
    assert standing(*plain, *named) == ["prototypical:1shot", "prototypical:5shot"]
    assert standing(*plain, *named, *both) == ["prototypical:5way_1shot", "prototypical:5shot"]
    assert standing(*plain, *named[:2]) == ["prototypical:1shot", "prototypical"]
    assert standing(named[1]) == standing(named[2]) == []


def test_a_variant_that_was_not_trained_for_the_setting_of_its_name_stands_for_nothing() -> None:
    ours = {"shot": 5, "train_shot": 5, "transductive": True}
    assert names(results_of(turned("maml:5shot_transductive", 0.99, **ours))) == ["Finn et al. 2017: MAML"]
    for false in ({"train_shot": 1}, {"transductive": False}):
        assert names(results_of(turned("maml:5shot_transductive", 0.99, **(ours | false)))) == []


def test_ours_is_the_mean_over_training_seeds() -> None:
    seeds = [turned("prototypical", accuracy, train_seed=i) for i, accuracy in enumerate((0.97, 0.98, 0.99))]
    (rerun,) = rerun_figures(results_of(*seeds))
    assert rerun.pairs[0][1].accuracy == pytest.approx(98)
    assert rerun.verdict == "below"


# --- Verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        (0.9859, "below"),  # theirs 98.8, ours ± 0.2
        (0.9861, "matched"),
        (0.9999, "matched"),
    ],
)
def test_a_match_has_theirs_within_or_below_our_interval(accuracy: float, verdict: str) -> None:
    (rerun,) = rerun_figures(results_of(turned("prototypical", accuracy)))
    assert rerun.verdict == verdict


def test_what_is_two_points_above_exceeds() -> None:
    for accuracy, verdict in ((0.979, "matched"), (0.981, "exceeds")):
        (rerun,) = rerun_figures(results_of(turned("prototypical", accuracy, way=20)))  # theirs 96.0
        assert rerun.verdict == verdict


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "matched"),
        ({1: 0.01}, "matched"),
        ({4: 0.91}, "below"),
        ({2: 0.86}, "exceeds"),
        ({2: 0.86, 10: 0.97}, "below"),
    ],
    ids=str,
)
def test_a_stream_is_matched_at_every_presentation_that_counts(
    changed: dict[int, float], verdict: str
) -> None:
    (rerun,) = rerun_figures(results_of(santoro("mann_paper", MANN | changed)))
    assert rerun.verdict == verdict


# --- The page -----------------------------------------------------------------------------------------------


def test_the_page_counts_and_says_why_not() -> None:
    results = results_of(
        turned("prototypical", 0.95),
        turned("prototypical", 0.99, way=20),
        turned("prototypical", 0.989, way=20, shot=5),
        turned("matching", 0.99, episodes=200),
    )
    page = ledger_page(results)
    assert (
        "**3 published figures were rerun**, 3 of the method's own paper and 0 of reruns by others." in page
    )
    assert "**Matched: 2**; of these, more than 2 points above theirs somewhere, which says" in page
    assert "may differ: 1. Below: 1." in page
    row = "| Snell et al. 2017, Table 1 | ProtoNet | omniglot 20-way 1-shot, turned classes, Conv4-64 | "
    assert f"{row}prototypical (hand_made) | 96.0 | 99.00 ± 0.20 | +3.0 | exceeds |" in page
    why = page.split("## Why others are not matched")[1].split("## Not rerun")[0]
    assert why.count("\n- ") == 2
    assert "20-way 1-shot, turned classes, Conv4-64: exceeds. Differs: trained with 60 ways" in why
    assert "Reason: not looked for yet." in why
    assert (
        "What is recorded has fewer than 1,000 test episodes:\n\n- Vinyals et al. 2016: MatchingNet" in page
    )


def test_what_began_with_the_network_of_another_says_so() -> None:
    start = {"train_start": "../first/checkpoints/simpleshot-0.safetensors", "train_start_sha256": "0"}
    page = ledger_page(results_of(turned("prototypical", 0.95, **start), turned("matching", 0.99)))
    assert (
        "1 of the reruns, 0 of the matched and 0 of those above among them, began with the network of another"
        in page
    )
    assert "| prototypical (hand_made, begun with simpleshot of first) |" in page
    assert "trained afresh, ours began with the network of simpleshot of first. Reason: " in page
    assert "began with the network" not in ledger_page(results_of(turned("matching", 0.99)))


def test_reruns_by_others_stand_apart() -> None:
    figure = next(f for f in published_figures() if f.row.paper == "oscarknagg/few-shot")
    assert not figure.row.original
    ours = turned("prototypical", 0.99, split="lake", train_split="lake")
    assert "0 of the method's own paper and 1 of reruns by others." in ledger_page(results_of(ours))


def test_a_folder_without_results_has_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"^no results of suites below [^\n]+: name the folder [^\n]+$"):
        read_results(tmp_path / "absent")


def test_a_reason_belongs_to_a_figure_and_the_record_that_stands_for_it() -> None:
    reruns = rerun_figures(read_results(ROOT / "results"))
    assert load_reasons().keys() == {rerun.key for rerun in reruns if rerun.verdict != "matched"}


def test_suites_are_read_from_their_folders(tmp_path: Path) -> None:
    for suite in ("b", "a"):
        append_record(tmp_path / suite, turned("prototypical", 0.9, suite=suite))
    assert [result.record.suite for result in read_results(tmp_path)] == ["a", "b"]


def test_the_recorded_page_is_that_of_the_records() -> None:
    written = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert written == ledger_page(read_results(ROOT / "results")), "`fewshot ledger` writes it again"


def test_a_rerun_shows_theirs_and_ours_presentation_by_presentation() -> None:
    (result,) = results_of(santoro("mann_paper", MANN))
    (found,) = rerun_figures([result])
    assert found == Rerun(PublishedFigure(found.figure.rows), result)
    assert [(theirs.accuracy, ours.accuracy) for theirs, ours in found.pairs] == [
        (82.8, 83), (91.0, 91), (92.6, 93), (94.9, 95), (98.1, pytest.approx(98.2)),
    ]  # fmt: skip
