"""What learners were trained on, and for how long: a fair comparison shows it beside its figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fewshot.errors import RecordError
from fewshot.harness.record import Record
from fewshot.report.formats import ResultTable, Row, write
from fewshot.report.results import begun_note, learner_rank, training
from fewshot.report.table import tables

COLUMNS = ("on", "updates", "episodes", "images", "time", "seeds")


def render(records: Iterable[Record], format: str) -> str:
    """The table as "md", "latex", "html" or "text"; RecordError for others, and where nobody was trained."""
    return write([training_table(records)], format)


def tables_and_training(records: Sequence[Record], folder: Path) -> list[ResultTable]:
    """All tables of a results folder, that of training last where somebody was trained."""
    shown = tables(records, folder)
    return [*shown, training_table(records)] if any(map(was_trained, records)) else shown


def training_table(records: Iterable[Record]) -> ResultTable:
    """One row per learner that was trained for these results; who answers with another's weights has none.

    Images count each time that one is shown, to two digits: where way or shot varied, what they were on
    average. Raises RecordError where nobody was trained.
    """
    trained: dict[str, list[Record]] = {}
    for record in records:
        if was_trained(record):
            trained.setdefault(record.learner, []).append(record)
    if not trained:
        raise RecordError("no learner was trained for these results: leave --training out")
    rows = [Row(learner, _cells(trained[learner])) for learner in sorted(trained, key=learner_rank)]
    note = (
        "For each training seed; the time is wall-clock time, a mean over seeds, looks at validation classes "
        "included and trials of settings not, on a core or two of a machine that may have had other work."
    )
    devices = {learner: own[0].train_device for learner, own in trained.items()}
    others = [f"{learner} ({device})" for learner, device in devices.items() if device not in (None, "cpu")]
    notes = [note, f"Not on a CPU alone: {', '.join(others)}."] if others else [note]
    notes += begun_note(own[0] for own in trained.values())
    return ResultTable("Training", COLUMNS, rows=rows, notes=notes)


def was_trained(record: Record) -> bool:
    """Whether its learner was trained for it: not one without training, nor one with another's weights."""
    return bool(record.train_steps) and not record.config.get("weights")


def _cells(own: list[Record]) -> tuple[str, ...]:
    first = own[0]
    by_seed = {record.train_seed: record.train_seconds or 0.0 for record in own}
    return (
        training(first),
        f"{first.train_steps:,}",
        f"{first.train_episodes:,}",
        _in_words(_images(first)),
        _duration(fmean(by_seed.values())),
        str(len(by_seed)),
    )


def _images(record: Record) -> float:
    """How many images the training was shown, support and query or streams alike."""
    settings = record.config["train"]
    episodes, updates = settings["episodes"], record.train_steps or 0
    per_update = (record.train_episodes or 0) / updates
    if episodes["protocol"] == "kshot":
        shown: float = _middle(episodes["way"]) * (_middle(episodes["shot"]) + episodes["query"])
        return updates * per_update * shown
    per_class: float = episodes["length"] / episodes["way"] * episodes.get("chain", 1)
    ways: list[int] = [episodes["way"]] * updates
    if growing := settings.get("curriculum"):
        ways = [
            min(growing["first_way"] + step // growing["every"], episodes["way"]) for step in range(updates)
        ]
    return per_update * per_class * sum(ways)


def _middle(value: Any) -> float:
    return float(fmean(value)) if isinstance(value, list | tuple) else float(value)


def _in_words(count: float) -> str:
    """ "1.2 million", "640,000"; two digits."""
    if count >= 1e6:
        return f"{float(f'{count:.2g}') / 1e6:g} million"
    return f"{int(float(f'{count:.2g}')):,}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
