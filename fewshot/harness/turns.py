"""In what order a suite's rows run: one that takes another row's weights, or its network, runs after it.

What such a row takes need not be there before the suite runs. What is wrong with the row shall come up
then all the same, and not after the hours of the other one: `without_files` is what can be asked of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fewshot.errors import LearnerError
from fewshot.harness.checkpoint import checkpoint_facts
from fewshot.harness.config import LearnerSettings
from fewshot.harness.plan import adopted, checkpoint_path, job_seeds
from fewshot.learners.registry import learner_class


def taken_files(row: LearnerSettings) -> list[Path]:
    """The checkpoints that a row answers with, or begins with."""
    weights = [adopted(row, seed) for seed in row.train_seeds]
    start = Path(row.start_from) if row.start_from else None
    return [path for path in (*weights, start) if path]


def makers(rows: Iterable[LearnerSettings], folder: Path) -> dict[Path, LearnerSettings]:
    """The checkpoints that rows make in a suite's folder, links resolved, and which row makes each."""
    return {
        checkpoint_path(folder, row.id, seed).resolve(): row
        for row in rows
        if not row.weights
        for seed in job_seeds(row)
    }


def groups_in_turn(rows: list[LearnerSettings], folder: Path) -> list[list[LearnerSettings]]:
    """The rows in groups: none takes a file that a row of its own group or of a later one makes.

    folder: where the suite's files lie. LearnerError for rows that wait for each other, or for themselves.
    """
    groups: list[list[LearnerSettings]] = []
    waiting = rows
    while waiting:
        to_come = makers(waiting, folder)
        ready = [row for row in waiting if not _awaited(row, to_come)]
        if not ready:
            waits = "; ".join(f"{row.id!r} waits for {_awaited(row, to_come)[0].id!r}" for row in waiting)
            raise LearnerError(f"these would wait for ever: {waits}; leave out weights or start_from of one")
        groups.append(ready)
        waiting = [row for row in waiting if row not in ready]
    return groups


def without_files(row: LearnerSettings, to_come: Mapping[Path, LearnerSettings]) -> LearnerSettings:
    """A row that takes files to come, as it can be checked before they are there.

    It trains afresh, as the row that makes its weights does, where it will answer with those. LearnerError
    for weights of another method's row, and for files that are neither there nor to come.
    """
    for path in taken_files(row):
        maker = to_come.get(path.resolve())
        if maker is None:
            checkpoint_facts(path)  # raises where it is missing
        elif row.weights and learner_class(maker.id) is not learner_class(row.id):
            kind = learner_class(maker.id).__name__
            raise LearnerError(f"learner {row.id!r}: {path} will hold no {row.id!r} but a {kind}")
    if not row.weights:
        return row.model_copy(update={"start_from": None})
    (maker, *_) = _awaited(row, to_come)
    return maker.model_copy(
        update={"id": row.id, "options": maker.options | row.options, "weights": None, "start_from": None}
    )


def as_they_are(rows: Sequence[LearnerSettings], folder: Path) -> list[LearnerSettings]:
    """The rows as they can be asked now: those without their files whose files are still to come."""
    to_come = makers(rows, folder)
    return [
        row if all(path.is_file() for path in taken_files(row)) else without_files(row, to_come)
        for row in rows
    ]


def _awaited(row: LearnerSettings, to_come: Mapping[Path, LearnerSettings]) -> list[LearnerSettings]:
    """The rows whose files a row takes."""
    return [to_come[path] for path in (path.resolve() for path in taken_files(row)) if path in to_come]
