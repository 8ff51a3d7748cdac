"""Which figures of a table are not distinguishable from the best of their column.

The best is the highest accuracy. Each other figure of the column is compared with it on the episodes that
both answered (`fewshot.harness.comparison`: over test classes and episodes, and over training seeds where
there are enough of them), and the p-values are corrected over all comparisons of the table (Holm). What the
test does not tell from the best is marked as the best is; it may be worse all the same.

Transductive learners are left out: theirs is another task. So is what answered other episodes than the best,
as at another image size, and the first presentation of a stream's classes, at which nothing can be known.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fewshot.errors import RecordError
from fewshot.harness.comparison import Compared
from fewshot.harness.pairing import Pair, compare_pairs, setting
from fewshot.report.comparison_table import SIGNIFICANT, claim
from fewshot.report.results import TRANSDUCTIVE_MARK, Result, counted

NO_ANSWERS = "Nothing is marked as the best: there are no answers to the same episodes to test it on."

Cells = Mapping[int, tuple[Result, int | None]]
"""Figures of a row by column: a result, and the presentation in a stream."""


class Best(NamedTuple):
    """cells: (row, column) of what is marked. note: what the mark means, or why there is none."""

    cells: frozenset[tuple[str, int]]
    note: str


NOTHING = Best(frozenset(), "")
FAR = 10  # points; who is so far below the best and not told from it is named in the note: the mark misleads
_UNKNOWN = 1  # the presentation at which a class was not named yet


def find_best(rows: Mapping[str, Cells], folder: Path | None) -> Best:
    """The cells to mark in a table whose rows these are, by label; NOTHING where there is nothing to compare.

    folder: the results folder, where the answers lie; None where there are records alone.
    """
    cells: dict[tuple[str, int], Pair] = {}
    leaders: set[tuple[str, int]] = set()
    far: set[tuple[str, int]] = set()
    for column in sorted({column for row in rows.values() for column in row}):
        figures = {label: row[column] for label, row in rows.items() if column in row}
        ranked = {
            label: (result, instance)
            for label, (result, instance) in figures.items()
            if not result.record.transductive and instance != _UNKNOWN
        }
        if not ranked:
            continue
        leader = max(ranked, key=lambda label: _accuracy(*ranked[label]))
        best, instance = ranked[leader]
        others = {
            (label, column): Pair(best.records, result.records, instance)
            for label, (result, _) in ranked.items()
            if label != leader and setting(result.record) == setting(best.record)
        }
        if others:
            leaders.add((leader, column))
            cells |= others
            top = _accuracy(best, instance)
            far |= {cell for cell in others if top - _accuracy(*ranked[cell[0]]) >= FAR}
    if not cells:
        return NOTHING
    if folder is None:
        return Best(frozenset(), NO_ANSWERS)
    try:
        compared = compare_pairs(folder, cells.values())
    except RecordError:  # a table is printed from records alone too; `fewshot verify` says what is wrong
        return Best(frozenset(), NO_ANSWERS)
    alike = {cell for cell, one in zip(cells, compared, strict=True) if one.p_holm >= SIGNIFICANT}
    shown = [figure for row in rows.values() for figure in row.values()]
    apart = [TRANSDUCTIVE_MARK] if any(result.record.transductive for result, _ in shown) else []
    apart += ["the 1st presentation"] if any(instance == _UNKNOWN for _, instance in shown) else []
    odd = dict.fromkeys(label for label, column in cells if (label, column) in alike & far)
    return Best(frozenset(leaders | alike), _note(compared, apart, list(odd)))


def _accuracy(result: Result, instance: int | None) -> float:
    return result.figures[instance].accuracy


def _note(compared: Sequence[Compared], apart: Sequence[str], odd: Sequence[str]) -> str:
    about_methods = all(one.comparison.ci95_methods is not None for one in compared)
    over = "training seeds, test classes" if about_methods else "test classes"
    left_out = f" Not among them: {' and '.join(apart)}." if apart else ""
    far = f" {FAR} points and more below the best, marked as it varies so: {', '.join(odd)}." if odd else ""
    return (
        f"not distinguishable from the best of the column (p of {SIGNIFICANT:g} or more): paired test on the "
        f"same episodes, over {over} and episodes, Holm-corrected over "
        f"{counted(len(compared), 'comparison')}. {claim(compared)}{left_out}{far}"
    )
