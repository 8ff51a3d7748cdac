"""Tables: the long one that programs read, and those that people read.

A table that people read is built once (`tables`) and then written as Markdown, LaTeX, HTML or plain text for
a terminal of 100 columns. In each column what is not distinguishable from the best is marked. Rows of
transductive learners carry a mark, published figures stand in a row of their own beneath ours, with the gap
beneath them, and notes say what every mark and ± means and how the published setting differs.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from fewshot.episodes.labels import first_presentation_ceiling
from fewshot.harness.record import Record
from fewshot.harness.statistics import ordinal
from fewshot.report.best import Cells, find_best
from fewshot.report.formats import ResultTable, Row, write
from fewshot.report.published import Published, differences, find_published, human_stream
from fewshot.report.results import (
    TRANSDUCTIVE_NOTE,
    Figure,
    Result,
    added_columns,
    as_printed,
    begun_note,
    chance_accuracy,
    describe_stream,
    describe_test_set,
    format_figure,
    format_gap,
    grouped,
    learner_rank,
    merge_seeds,
    row_labels,
    stream_setting,
    test_set,
    training,
)

PRESENTATIONS = (1, 2, 3, 5, 10)
"""The presentations that people read; the long table has all."""

COLUMNS = (
    "suite",
    "dataset",
    "split",
    "side",
    "rotated_test_classes",
    "image_size",
    "backbone",
    "protocol",
    "way",
    "shot",
    "instance",
    "counts",
    "labels",
    "learner",
    "train_dataset",
    "train_protocol",
    "accuracy",
    "ci95",
    "ci95_classes",
    "episodes",
    "train_seeds",
    "transductive",
    "published",
    "published_source",
    "gap",
)
"""The columns of the long table (design section 4)."""

_INTEGERS = ("image_size", "way", "shot", "instance", "episodes", "train_seeds")
_PERCENTAGES = ("accuracy", "ci95", "ci95_classes", "published", "gap")


def long_table(records: Iterable[Record]) -> pd.DataFrame:
    """One row per learner configuration and setting (COLUMNS), a stream giving one row per presentation.

    Accuracies in per cent, to two digits; means over training seeds; gap is ours minus the published figure.
    A column `chain` comes last where some record is of one, and then `length` where streams that are alike
    otherwise differ in it. Raises RecordError where there are no records.
    """
    results = merge_seeds(records)
    rows = [
        _long_row(result, instance, figure)
        for result in results
        for instance, figure in result.figures.items()
    ]
    chained = any(result.record.chain > 1 for result in results)
    lengths = added_columns((result.record for result in results), ["length"])
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *["chain"] * chained, *lengths])
    integers = (*_INTEGERS, *lengths)
    return frame.astype(dict.fromkeys(integers, "Int64") | dict.fromkeys(_PERCENTAGES, "Float64"))


def render(records: Iterable[Record], format: str, folder: Path | None = None) -> str:
    """The records as "csv" (the long table), "md", "latex", "html" or "text".

    folder: the results folder, for the answers that say who is not distinguishable from the best; without
    them nobody is marked. Raises RecordError for another format and where there are no records.
    """
    if format == "csv":
        return long_table(records).to_csv(index=False, lineterminator="\n")
    return write(tables(records, folder), format)


def tables(records: Iterable[Record], folder: Path | None = None) -> list[ResultTable]:
    """The tables that people read: K-shot first, then streams.

    One K-shot table per test set and training dataset, one stream table per test set, way and counts.
    Learners that are not trained stand in every table of their test set. folder: as for `render`.
    """
    results = merge_seeds(records)
    kshot = [result for result in results if result.record.protocol == "kshot"]
    stream = [result for result in results if result.record.protocol == "stream"]
    made = []
    for group in grouped(kshot, test_set):
        trained_on = dict.fromkeys(r.record.train_dataset for r in group if r.record.train_dataset)
        for dataset in trained_on or [None]:
            chosen = [r for r in group if r.record.train_dataset in (None, dataset)]
            made.append(_kshot_table(chosen, dataset, folder))
    made += [_stream_table(group, folder) for group in grouped(stream, stream_setting)]
    return made


def _long_row(result: Result, instance: int | None, figure: Figure) -> dict[str, Any]:
    record = result.record
    published = find_published(record, instance)
    names = [name for name in (*COLUMNS, "chain", "length") if name in Record.model_fields]
    row: dict[str, Any] = {name: getattr(record, name) for name in names}
    row |= {
        "instance": instance,
        "accuracy": figure.accuracy,
        "ci95": figure.ci95,
        "ci95_classes": figure.ci95_classes,
        "train_seeds": result.train_seeds,
    }
    if published:
        row |= {
            "published": published.accuracy,
            "published_source": published.citation,
            "gap": figure.accuracy - published.accuracy,
        }
    return row | {name: _rounded(row.get(name)) for name in _PERCENTAGES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _kshot_table(results: list[Result], train_dataset: str | None, folder: Path | None) -> ResultTable:
    settings = sorted({(r.record.way, r.record.shot or 0) for r in results})
    rows: dict[str, Cells] = {}
    for label, result in zip(row_labels(results), results, strict=True):
        column = settings.index((result.record.way, result.record.shot or 0))
        rows[label] = {**rows.get(label, {}), column: (result, None)}
    trained = f" · trained on {train_dataset}" if train_dataset else ""
    table = ResultTable(
        title=f"K-shot · {describe_test_set(results)}{trained}",
        columns=tuple(f"{way}-way {shot}-shot" for way, shot in settings),
    )
    ways = sorted({way for way, _ in settings})
    chance = ", ".join(f"{100 / way:.1f} ({way}-way)" for way in ways)
    return _filled(table, rows, f"chance {chance}", folder)


def _stream_table(results: list[Result], folder: Path | None) -> ResultTable:
    record = results[0].record
    asked = {k for result in results for k in result.figures}
    shown = [k for k in PRESENTATIONS if k in asked]
    rows: dict[str, Cells] = {}
    for label, result in zip(row_labels(results), results, strict=True):
        rows[label] = {column: (result, k) for column, k in enumerate(shown) if k in result.figures}
    table = ResultTable(
        title=f"Stream · {describe_stream(record)} · {describe_test_set(results)}",
        columns=tuple(ordinal(k) for k in shown),
    )
    _filled(table, rows, f"chance {_chance(record)}", folder)
    _add_people(table, shown, human_stream(record))
    columns = f"Columns: the presentation of a class. {_first_presentation(record)}"
    table.notes[1:1] = [columns, *_links_note(results)]
    if record.counts == "exact" and any(r.record.learner == "count_guesser" for r in results):
        table.notes.insert(2, "count_guesser sees no image: it counts which classes are still to come.")
    return table


def _links_note(results: list[Result]) -> list[str]:
    """How the first link of chains, where memories are empty, differs from the others."""
    told = []
    for label, result in zip(row_labels(results), results, strict=True):
        later = [accuracy for link, accuracy in result.links.items() if link > 1]
        if later and 1 in result.links:
            told.append(f"{label} {result.links[1]:.1f} and {fmean(later):.1f}")
    start = "At presentations 2 and later, in the first episode of a chain and in the others"
    return [f"{start}: {', '.join(told)}."] if told else []


def _add_people(table: ResultTable, shown: list[int], people: dict[int, Published]) -> None:
    """A last row with what people reach at the same task, where that was published."""
    if people:
        cells = (as_printed(people[k].accuracy) if k in people else "" for k in shown)
        table.rows.append(Row("people", tuple(cells)))
        table.notes.append(f"people: {next(iter(people.values())).citation}.")


def _first_presentation(record: Record) -> str:
    if record.labels == "string":
        return f"At the 1st its string cannot be known; a lucky guess is right in {_chance(record)} %."
    ceiling = 100 * first_presentation_ceiling(record.way, [record.way])
    return (
        "At the 1st its label cannot be known; guessing among the labels not seen yet gives at most "
        f"{ceiling:.1f}."
    )


def _chance(record: Record) -> str:
    return f"{chance_accuracy(record):.{2 if record.labels == 'string' else 1}f}"


def _filled(table: ResultTable, rows: dict[str, Cells], chance: str, folder: Path | None) -> ResultTable:
    """Write the rows and the notes beneath them."""
    published_notes: dict[str, int] = {}
    best = find_best(rows, folder)
    by_learner = sorted(
        rows.items(), key=lambda item: learner_rank(next(iter(item[1].values()))[0].record.learner)
    )
    for label, cells in by_learner:
        ours, theirs, gaps = ([""] * len(table.columns) for _ in range(3))
        for column, (result, instance) in cells.items():
            ours[column] = format_figure(result.figures[instance])
            published = find_published(result.record, instance)
            if published:
                differing = differences(result.record, published)
                note = published.citation + (f". Differs: {'; '.join(differing)}" if differing else "")
                number = published_notes.setdefault(note, len(published_notes) + 1)
                interval = f" ± {published.ci95:g}" if published.ci95 is not None else ""
                theirs[column] = f"{as_printed(published.accuracy)}{interval} [{number}]"
                gaps[column] = format_gap(result.figures[instance].accuracy - published.accuracy)
        marked = frozenset(column for column in cells if (label, column) in best.cells)
        table.rows.append(Row(label, tuple(ours), marked=marked))
        if any(theirs):
            table.rows.append(Row("paper", tuple(theirs), published=True))
            table.rows.append(Row("gap", tuple(gaps), published=True))
    results = [result for cells in rows.values() for result, _ in cells.values()]
    table.notes.append(f"Accuracy in %, ± 95 % over {_episodes(results)}; {chance}.")
    table.notes += _notes(rows, results)
    if best.cells:
        table.marks = best.note
    elif best.note:
        table.notes.append(best.note)
    table.notes += [f"[{number}] {note}." for note, number in published_notes.items()]
    return table


def _notes(rows: dict[str, Cells], results: list[Result]) -> list[str]:
    notes = []
    if classes := _widths(rows, lambda figure: figure.ci95_classes):
        notes.append(f"95 % over test classes and episodes (bootstrap): {classes}.")
    seeds = {label: {result.train_seeds for result, _ in cells.values()} for label, cells in rows.items()}
    begun = begun_note(result.record for result in results)
    notes += [*_training_note(results), *begun, *_trials_note(results)]
    several = [f"{label} {max(counts)}" for label, counts in seeds.items() if max(counts) > 1]
    if several:
        notes.append(f"Means over training seeds (the ± do not cover them): {', '.join(several)}.")
    if trainings := _widths(rows, lambda figure: figure.ci95_seeds):
        notes.append(f"95 % over training seeds: {trainings}.")
    if any(result.record.transductive for result in results):
        notes.append(TRANSDUCTIVE_NOTE)
    return notes


def _widths(rows: dict[str, Cells], width: Callable[[Figure], float | None]) -> str:
    """ "mann ± 0.3–0.9, maml ± 0.5": the least and greatest half width of the rows that have some."""
    told = []
    for label, cells in rows.items():
        widths = [width(result.figures[k]) for result, k in cells.values()]
        if known := [f"{half:.1f}" for half in sorted(half for half in widths if half is not None)]:
            told.append(f"{label} ± {'–'.join(dict.fromkeys((known[0], known[-1])))}")
    return ", ".join(told)


def _training_note(results: list[Result]) -> list[str]:
    """How the learners were trained, which may be under the other protocol."""
    learners: dict[str, dict[str, None]] = {}
    for result in results:
        if result.record.train_protocol:
            learners.setdefault(training(result.record), {})[result.record.learner] = None
    kinds = [f"{kind}: {', '.join(names)}" for kind, names in learners.items()]
    return [f"Trained on {'; on '.join(kinds)}."] if kinds else []


def _trials_note(results: list[Result]) -> list[str]:
    """How many settings of each learner were tried before it was trained."""
    learners: dict[int, dict[str, None]] = {}
    for result in results:
        if trials := (result.record.config.get("train") or {}).get("trials"):
            learners.setdefault(len(trials["candidates"]), {})[result.record.learner] = None
    kinds = [f"of {count} trials: {', '.join(names)}" for count, names in learners.items()]
    return [f"Settings are the best on validation classes {'; '.join(kinds)}."] if kinds else []


def _episodes(results: list[Result]) -> str:
    """ "1,000 test episodes (maml 200)"."""
    most = max(result.record.episodes for result in results)
    fewer = {r.record.learner: r.record.episodes for r in results if r.record.episodes < most}
    exceptions = f" ({', '.join(f'{name} {count:,}' for name, count in fewer.items())})" if fewer else ""
    side = results[0].record.side
    return f"{most:,} {'validation' if side == 'val' else side} episodes{exceptions}"
