"""Tables of comparisons: by how much two learners differ on the same test episodes, and whether it is chance.

What the intervals and p-values mean is said in `fewshot.harness.comparison`, and in short beneath the tables.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fewshot.harness.comparison import Compared
from fewshot.harness.record import Record
from fewshot.harness.statistics import LEAST_SEEDS, ordinal
from fewshot.report.formats import ResultTable, Row, write
from fewshot.report.results import (
    TRANSDUCTIVE_MARK,
    TRANSDUCTIVE_NOTE,
    added_columns,
    counted,
    describe_stream,
    describe_test_set,
    grouped,
    stream_setting,
    test_set,
)

SIGNIFICANT = 0.05

SETTING = (
    "dataset",
    "split",
    "side",
    "rotated_test_classes",
    "protocol",
    "way",
    "shot",
    "instance",
    "counts",
    "labels",
    "chain",
)
_ADDED = ("image_size", "length", "query", "within_group")

COLUMNS = (
    *SETTING,
    "learner_a",
    "learner_b",
    "train_seeds_a",
    "train_seeds_b",
    "accuracy_a",
    "accuracy_b",
    "difference",
    "ci95",
    "ci95_classes",
    "ci95_methods",
    "p",
    "p_holm",
    "episodes",
)
"""The columns of the long table: accuracies, differences and half widths in per cent."""


def render(compared: Sequence[Compared], format: str) -> str:
    """The comparisons as "csv" (the long table), "md", "latex", "html" or "text".

    Raises RecordError for another format.
    """
    if format == "csv":
        return long_table(compared).to_csv(index=False, lineterminator="\n")
    return write(tables(compared), format)


def long_table(compared: Sequence[Compared]) -> pd.DataFrame:
    """One row per comparison (COLUMNS), and at the end whatever else tells two tests apart (_ADDED)."""
    added = added_columns((one.record for one in compared), _ADDED)
    frame = pd.DataFrame([_long_row(one) for one in compared], columns=[*COLUMNS, *added])
    integers = {"shot", "instance", *added} - {"within_group"}
    return frame.astype(dict.fromkeys(integers, "Int64"))


def tables(compared: Sequence[Compared]) -> list[ResultTable]:
    """Tables of K-shot settings, one per test set, then one per kind of stream; notes beneath the last."""
    kshot = [one for one in compared if one.record.protocol == "kshot"]
    stream = [one for one in compared if one.record.protocol == "stream"]
    made = [_table("K-shot", "setting", group) for group in grouped(kshot, test_set)]
    made += [
        _table(f"Stream · {describe_stream(group[0].record)}", "presented", group)
        for group in grouped(stream, stream_setting)
    ]
    made[-1].notes += _notes(compared)
    return made


def claim(compared: Sequence[Compared]) -> str:
    """Whether all these comparisons are about methods, or some about the checkpoints at hand."""
    if all(one.comparison.ci95_methods is not None for one in compared):
        return "This is about the methods."
    return f"About these checkpoints only: for methods it takes {LEAST_SEEDS} training seeds of each."


def _table(protocol: str, stub: str, compared: Sequence[Compared]) -> ResultTable:
    learners = " and ".join(_names(compared[0]))
    return ResultTable(
        title=f"{learners} · {protocol} · {describe_test_set(compared)}, {_episodes(compared)}",
        columns=("A", "B", "A − B", "± episodes", "± classes", "± seeds", "p", "verdict"),
        stub=stub,
        rows=[Row(_setting(one), _cells(one)) for one in compared],
    )


def _notes(compared: Sequence[Compared]) -> list[str]:
    a, b = _names(compared[0])
    of_a, of_b = _seeds([one.a for one in compared]), _seeds([one.b for one in compared])
    notes = [
        f"A: {a}, {of_a}; B: {b}, {of_b}. {claim(compared)}",
        "Accuracy in %, difference in points; ± half the 95 % interval of the difference: over episodes; "
        "over test classes and episodes; over training seeds, test classes and episodes.",
        "p: of no difference, two-sided, by the widest interval, corrected for "
        f"{counted(len(compared), 'comparison')} (Holm). Undecided: not distinguishable, p of "
        f"{SIGNIFICANT:g} or more.",
    ]
    if any(one.record.protocol == "stream" for one in compared):
        notes.insert(1, "All: at every presentation at which both were asked.")
    if any(side[0].transductive for one in compared for side in (one.a, one.b)):
        notes.append(TRANSDUCTIVE_NOTE)
    return notes


def _names(one: Compared) -> tuple[str, str]:
    """The learners' ids, with their suites where only these tell them apart."""
    records = one.a[0], one.b[0]
    alike = records[0].learner == records[1].learner
    a, b = (
        f"{record.learner}{f' ({record.suite})' * alike}{f' {TRANSDUCTIVE_MARK}' * record.transductive}"
        for record in records
    )
    return a, b


def _seeds(tested: Sequence[Sequence[Record]]) -> str:
    if tested[0][0].train_seed is None:
        return "not trained"
    fewest = min(len(records) for records in tested)
    return f"{fewest} training seed{'s' if fewest > 1 else ''}"


def _episodes(compared: Sequence[Compared]) -> str:
    counts = sorted({one.episodes for one in compared}, reverse=True)
    return f"{' and '.join(f'{count:,}' for count in counts)} episodes"


def _setting(one: Compared) -> str:
    if one.record.protocol == "kshot":
        return f"{one.record.way}-way {one.record.shot}-shot"
    return "all" if one.instance is None else ordinal(one.instance)


def _cells(one: Compared) -> tuple[str, ...]:
    found = one.comparison
    widths = (found.ci95, found.ci95_classes, found.ci95_methods)
    return (
        f"{100 * found.accuracy_a:.2f}",
        f"{100 * found.accuracy_b:.2f}",
        f"{100 * found.difference:+.2f}".replace("-", "−"),
        *("" if width is None else f"{100 * width:.2f}" for width in widths),
        "<0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}",
        _verdict(one),
    )


def _verdict(one: Compared) -> str:
    if one.p_holm >= SIGNIFICANT:
        return "undecided"
    return "A better" if one.comparison.difference > 0 else "B better"


def _long_row(one: Compared) -> dict[str, Any]:
    found = one.comparison
    percentages = {
        "accuracy_a": found.accuracy_a,
        "accuracy_b": found.accuracy_b,
        "difference": found.difference,
        "ci95": found.ci95,
        "ci95_classes": found.ci95_classes,
        "ci95_methods": found.ci95_methods,
    }
    return {
        **{name: getattr(one.record, name) for name in (*SETTING, *_ADDED) if name in Record.model_fields},
        "instance": one.instance,
        "learner_a": one.a[0].learner,
        "learner_b": one.b[0].learner,
        "train_seeds_a": len(one.a),
        "train_seeds_b": len(one.b),
        **{name: None if value is None else round(100 * value, 3) for name, value in percentages.items()},
        "p": float(f"{found.p_value:.3g}"),
        "p_holm": float(f"{one.p_holm:.3g}"),
        "episodes": one.episodes,
    }
