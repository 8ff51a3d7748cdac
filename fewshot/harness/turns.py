"""In what order a suite's rows run: one that takes another row's weights, or its network, runs after it.

What such a row takes need not be there before the suite runs. What is wrong with the row shall come up
then all the same, and not after the hours of the other one (`check_waiting`).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fewshot.data.split import Split
from fewshot.episodes.protocol import bounds
from fewshot.errors import LearnerError
from fewshot.harness.checkpoint import checkpoint_facts
from fewshot.harness.config import LearnerSettings, Suite
from fewshot.harness.plan import adopted, check_answers, check_suite, checkpoint_path, job_seeds
from fewshot.learners.registry import build_learner, learner_class


def taken_files(row: LearnerSettings) -> list[Path]:
    """The checkpoints that a row answers with, or begins with."""
    weights = [adopted(row, seed) for seed in job_seeds(row)]
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


def check_waiting(
    suite: Suite,
    row: LearnerSettings,
    to_come: Mapping[Path, LearnerSettings],
    training: Split,
    tested: Split,
) -> None:
    """Raise now what can be told of a row before the files that it takes are there.

    Whether they fit is left: that is checked once they are.
    """
    later = without_files(row, to_come)
    if not row.weights:
        check_suite(suite, [later], training, tested)
        return
    # It will answer, and not train: what its options would make of the maker's training says nothing.
    way = bounds(later.train.episodes.way)[1]
    try:
        learner = build_learner(row.id, training.train.image_set.image_shape, way, later.options)
    except LearnerError as error:
        raise LearnerError(f"learner {row.id!r}: {error}") from error
    check_answers(suite, row, learner)


def without_files(row: LearnerSettings, to_come: Mapping[Path, LearnerSettings]) -> LearnerSettings:
    """A row that takes files to come, for the time before they are there: with none, trained afresh.

    One that will answer with another's weights is trained as that one. LearnerError for files that are
    neither there nor to come, and for what will be in them: another method, another seed, nothing trained.
    """
    for path in taken_files(row):
        if path.resolve() not in to_come:
            checkpoint_facts(path)  # raises where it is missing
    awaited = _awaited(row, to_come)
    for maker in awaited:
        kind, made = learner_class(row.id), learner_class(maker.id)
        if row.weights and made is not kind:
            raise LearnerError(
                f"learner {row.id!r}: {maker.id!r} will make weights of {made.__name__}, not of "
                f"{kind.__name__}"
            )
        if row.weights and not set(job_seeds(row)) <= set(job_seeds(maker)):
            raise LearnerError(
                f"learner {row.id!r}: the weights of {maker.id!r} have train seeds {job_seeds(maker)}, the "
                f"row says {job_seeds(row)}: give both the same"
            )
        if row.start_from and not (kind.trainable and made.trainable):
            nothing = row.id if not kind.trainable else maker.id
            raise LearnerError(f"learner {row.id!r}: {nothing!r} has nothing to train: leave out start_from")
    if not row.weights:
        return row.model_copy(update={"start_from": None})
    maker = awaited[0]
    return maker.model_copy(
        update={"id": row.id, "options": maker.options | row.options, "weights": None, "start_from": None}
    )


def as_they_are(rows: Sequence[LearnerSettings], folder: Path) -> list[LearnerSettings]:
    """The rows for the time before the suite ran: those that take files which are not there, without them."""
    to_come = makers(rows, folder)
    return [
        row if all(path.is_file() for path in taken_files(row)) else without_files(row, to_come)
        for row in rows
    ]


def _awaited(row: LearnerSettings, to_come: Mapping[Path, LearnerSettings]) -> list[LearnerSettings]:
    """The rows whose files a row takes."""
    return [to_come[path] for path in (path.resolve() for path in taken_files(row)) if path in to_come]
