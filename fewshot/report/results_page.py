"""A results folder as one page that needs nothing else: its tables, how learners were trained, its plots."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from fewshot.harness.record import Record, read_records
from fewshot.report.figure import png
from fewshot.report.pages import data_uri, fill
from fewshot.report.plot import PLOT_COLORS, suite_figures
from fewshot.report.training_table import tables_and_training


def results_page(folder: Path, command: str) -> str:
    """The page as HTML, the same for the same records and curves; command: what was typed to make it.

    Raises RecordError where there are no records, or a curve is malformed.
    """
    records = read_records(folder)
    return fill(
        "results.html",
        title=f"Results: {', '.join(dict.fromkeys(record.suite for record in records))}",
        made=_made(records),
        command=command,
        check=shlex.join(["fewshot", "verify", str(folder)]),
        tables=tables_and_training(records, folder),
        plots=[
            {"title": figure.get_label(), "image": data_uri(png(figure, PLOT_COLORS))}
            for figure in suite_figures(folder).values()
        ],
    )


def _made(records: Sequence[Record]) -> str:
    """What was measured and when, and by which code."""
    learners = {record.learner for record in records}
    days = sorted(f"{record.created:%Y-%m-%d}" for record in records)
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    code = {
        f"{record.commit[:7]}{' (changed)' if record.dirty else ''}" for record in records if record.commit
    }
    by = f", by the code of {', '.join(sorted(code))}" if code else ""
    return (
        f"Learners: {len(learners)}; records: {len(records)}, one per setting and training seed, "
        f"made {when}{by}."
    )
