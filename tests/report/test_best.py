"""What a paired test does not tell from the best of a column is marked, and nothing else is."""

import shutil
from pathlib import Path

import pytest

from fewshot.harness.pairing import Pair, compare_pairs
from fewshot.harness.record import Record, read_records
from fewshot.report.best import NO_ANSWERS, NOTHING, find_best
from fewshot.report.comparison_table import SIGNIFICANT
from fewshot.report.formats import TERMINAL_COLUMNS, ResultTable, Row, html, latex, markdown, text
from fewshot.report.results import counted, merge_seeds
from fewshot.report.table import render, tables
from tests.report.test_table import kshot


@pytest.fixture
def folder(tiny_results: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_results, tmp_path / "tiny")


def test_the_best_and_what_the_test_does_not_tell_from_it_are_marked(folder: Path) -> None:
    """Held against the test itself, column by column, in a stream of three learners.

    At the first presentation nobody can know a class: no column of it is compared, and none marked.
    """
    records = [r for r in read_records(folder) if r.protocol == "stream"]
    (table,) = tables(records, folder)
    results = {result.record.learner: result for result in merge_seeds(records)}
    pairs, expected = {}, set()
    for column, k in ((1, 2), (2, 3)):
        best = max(results, key=lambda learner: results[learner].figures[k].accuracy)
        expected.add((best, column))
        for other in results.keys() - {best}:
            pairs[other, column] = Pair(results[best].records, results[other].records, k)
    compared = compare_pairs(folder, pairs.values())
    told = {cell for cell, one in zip(pairs, compared, strict=True) if one.p_holm < SIGNIFICANT}
    marked = {(row.label, column) for row in table.rows for column in row.marked}
    assert marked == expected | (pairs.keys() - told)
    assert told, "the test tells nobody apart: it would not be noticed if nobody was compared"
    assert table.columns[0] == "1st"
    assert "Holm-corrected over 4 comparisons. About these checkpoints only" in table.marks
    assert table.marks.endswith("Not among them: the 1st presentation.")


def test_the_claim_is_about_methods_where_all_have_three_seeds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [r for r in read_records(folder) if r.protocol == "stream" and r.learner != "prototypical"]
    monkeypatch.setattr("fewshot.harness.comparison.LEAST_SEEDS", 2)
    (table,) = tables(records, folder)
    assert "over training seeds, test classes and episodes" in table.marks
    assert "This is about the methods." in table.marks


def test_who_is_marked_though_far_below_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is significant all are marked, however far below."""
    monkeypatch.setattr("fewshot.report.best.SIGNIFICANT", 0.0)
    monkeypatch.setattr("fewshot.report.best.FAR", 3)
    records = [r for r in read_records(folder) if r.protocol == "stream"]
    (table,) = tables(records, folder)
    results = {result.record.learner: result for result in merge_seeds(records)}
    top = {k: max(result.figures[k].accuracy for result in results.values()) for k in (2, 3)}
    gaps = {n: [top[k] - result.figures[k].accuracy for k in (2, 3)] for n, result in results.items()}
    far = {n for n, below in gaps.items() if max(below) >= 3}
    assert 0 < len(far) < len(results)
    assert " 3 points and more below the best, marked as it varies so: " in table.marks
    assert set(table.marks.rpartition(": ")[2].removesuffix(".").split(", ")) == far


def test_one_comparison_is_not_several() -> None:
    assert [counted(number, "comparison") for number in (1, 2)] == ["1 comparison", "2 comparisons"]


def test_without_answers_the_table_is_printed_and_says_so(folder: Path) -> None:
    records = [r for r in read_records(folder) if r.protocol == "stream"]
    whole = tables(records, folder)
    shutil.rmtree(folder / "answers")
    for (table,) in (tables(records), tables(records, folder)):
        assert [row.cells for row in table.rows] == [row.cells for row in whole[0].rows]
        assert not any(row.marked for row in table.rows)
        assert NO_ANSWERS in table.notes
        assert not table.marks


def test_turned_classes_without_a_list_are_not_compared(folder: Path) -> None:
    turned = [r for r in read_records(folder) if r.rotated_test_classes]
    (table,) = tables(turned, folder)
    assert NO_ANSWERS in table.notes


def rows_of(records: list[Record]) -> dict[str, dict[int, tuple[object, int | None]]]:
    return {r.record.learner: {0: (r, None)} for r in merge_seeds(records)}


def test_what_is_alone_or_transductive_or_answered_otherwise_is_not_compared() -> None:
    alone = [kshot("prototypical", 0.9)]
    assert find_best(rows_of(alone), None) == NOTHING
    assert find_best(rows_of([*alone, kshot("maml", 0.95, transductive=True)]), None) == NOTHING
    assert find_best(rows_of([kshot("maml", 0.95, transductive=True)]), None) == NOTHING
    assert find_best(rows_of([*alone, kshot("matching", 0.9, image_size=20)]), None) == NOTHING
    assert find_best(rows_of([*alone, kshot("matching", 0.9)]), None).note == NO_ANSWERS


def test_marks_in_every_format() -> None:
    table = ResultTable("A table", ("5-way", "20-way"), marks="as good.", notes=["First.", "Last."])
    table.rows = [Row("a_learner", ("97.9", "91_5"), marked=frozenset({1})), Row("paper", ("98", ""), True)]
    plain = text([table])
    assert "*91_5" in plain
    assert "*97.9" not in plain
    assert plain.split("First.\n")[1].startswith("*: as good.\nLast.")
    assert "| a_learner | 97.9 | **91_5** |" in markdown([table])
    assert "- **Bold**: as good." in markdown([table])
    assert r"a\_learner & 97.9 & \textbf{91\_5} \\" in latex([table])
    page = html([table])
    assert '<td>97.9</td><td class="marked">91_5</td>' in page
    assert page.count('class="marked"') == 1
    table.marks = ""
    assert "as good" not in text([table])


def test_marks_do_not_widen_what_fits(folder: Path) -> None:
    records = read_records(folder)
    shown = render(records, "text", folder)
    assert "*" in shown
    assert max(map(len, shown.splitlines())) <= TERMINAL_COLUMNS
