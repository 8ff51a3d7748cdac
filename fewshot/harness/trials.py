"""Trials: settings tried on validation classes before a learner is trained, and what came of them.

Each candidate of a row's `trials` is trained for the same number of updates, with one seed that is none of
the training seeds, and then measured as weights are in training: on episodes of validation classes. All
training seeds train with the best one, the first of equals. `trials/<learner>.json` has what came of them,
and the log of classes that they drew stands among those of trainings.

A trial is a training like any other: killed anywhere, it goes on from its last state in the user's cache,
and one that is done stays there until all of them are.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewshot.data.split import Split
from fewshot.errors import RecordError
from fewshot.harness.checkpoint import file_sha256
from fewshot.harness.config import TRIAL_SEED, LearnerSettings, first_problem
from fewshot.harness.plan import Job, fresh_learner, training_key
from fewshot.harness.record import (
    Draws,
    Fraction,
    HalfWidth,
    Record,
    draws_name,
    read_draws,
    record_key,
    remove_draws,
    replace_file,
)
from fewshot.harness.train import Progress, TrainLog, draw_rows, draws_digest, train
from fewshot.learners.registry import learner_class, options_of


class Trial(BaseModel):
    """One candidate, and how accurately it answered episodes of validation classes after its updates.

    ci95: half width of the 95 % interval over episodes; seconds: wall-clock time, validation included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidate: dict[str, Any]
    accuracy: Fraction
    ci95: HalfWidth | None
    seconds: float


class Trials(BaseModel):
    """All trials of a learner. chosen: the place of the best; classes_digest: of the log of classes drawn.

    key: `record_key` of what gives them their meaning.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    steps: int
    train_seed: int
    trials: tuple[Trial, ...] = Field(min_length=2)
    chosen: int
    classes_digest: str

    def __str__(self) -> str:
        best = self.trials[self.chosen].candidate
        settings = (best | best.get("options", {})).items()
        told = ", ".join(f"{name} {value}" for name, value in settings if name != "options")
        told = told or "nothing changed"
        return f"{told}: best of {len(self.trials)} trials of {self.steps} updates on validation classes"


def try_candidates(
    job: Job,
    split: Split,
    on_progress: Callable[[int, Progress], None],
    on_draws: Callable[[Path, Draws], None],
) -> Trials:
    """Train and measure each candidate of a job's trials; what came of it, also where that was done before.

    on_progress: called with the place of the candidate; on_draws: called with the file of what came of the
    trials, before it is written, and the log of the classes that they drew. Raises what `train` raises.
    """
    tried = _trial_jobs(job)
    keys = [training_key(trial, split) for trial in tried]
    key = record_key({"trials": keys})
    if job.trials_path.is_file() and (held := read_trials(job.trials_path)).key == key:
        return held
    states = [trial.state(its_key) for trial, its_key in zip(tried, keys, strict=True)]
    logs = []
    for place, (trial, state) in enumerate(zip(tried, states, strict=True)):
        learner = fresh_learner(trial.learner, TRIAL_SEED, split).to(job.device)
        settings, report = trial.learner.train, partial(on_progress, place)
        logs.append(
            train(learner, split, settings, train_seed=TRIAL_SEED, state_path=state, on_progress=report)
        )
    asked = job.trial_settings
    assert asked is not None
    trials = [
        Trial(
            candidate=candidate, accuracy=log.best_accuracy, ci95=log.best_ci95, seconds=round(log.seconds, 1)
        )
        for candidate, log in zip(asked.candidates, logs, strict=True)
    ]
    drawn = TrainLog(
        draws={side: torch.stack([log.draws[side] for log in logs]).sum(0) for side in logs[0].draws}
    )
    draws = draw_rows(drawn, split, job.learner.train)
    held = Trials(
        key=key,
        steps=asked.steps,
        train_seed=TRIAL_SEED,
        trials=tuple(trials),
        chosen=best_of(trials),
        classes_digest=draws_digest(draws),
    )
    on_draws(job.trials_path, draws)
    replace_file(job.trials_path, f"{held.model_dump_json(indent=1)}\n".encode())
    for state in states:
        state.unlink(missing_ok=True)
    return held


def forget_trials(job: Job, split: Split | None) -> None:
    """Delete what came of a job's trials, and those that are not done.

    split: what it trains on; None where what it begins with is not there, so that these cannot be told.
    """
    remove_draws(job.trials_path)
    states = [trial.state(training_key(trial, split)) for trial in _trial_jobs(job)] if split else []
    for path in (job.trials_path, *states):
        path.unlink(missing_ok=True)


def best_of(trials: Sequence[Trial]) -> int:
    """The place of the most accurate one, the first of equals."""
    return max(range(len(trials)), key=lambda place: trials[place].accuracy)


def read_trials(path: Path) -> Trials:
    """What came of trials; RecordError where the file is missing or says something else."""
    try:
        return Trials.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} is missing: it says what was tried; restore it") from None
    except ValidationError as error:
        raise RecordError(
            f"{path} does not say what was tried ({first_problem(error)}): restore it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}; restore the file") from None


def recorded_trials(folder: Path, record: Record) -> Trials | None:
    """The trials that a record names, once they are known to be those that its settings came from.

    None where there were none. Raises RecordError where they, their log of classes or the record's settings
    do not agree.
    """
    if not (record.config.get("train") or {}).get("trials"):
        return None
    try:
        row = LearnerSettings.model_validate(
            {"id": record.learner, "options": record.config["options"], "train": record.config["train"]}
        )
    except ValidationError as error:
        raise RecordError(f"the record's settings are none: {first_problem(error)}") from None
    asked = row.train.trials
    assert asked is not None
    if record.trials is None:
        raise RecordError("the record has settings that are to be tried, and names no trials")
    path = _trials_path(folder, record)
    held = read_trials(path)
    if file_sha256(path) != record.trials_sha256:
        raise RecordError(f"{path} is not the file that was recorded: its SHA-256 differs")
    if (held.steps, [trial.candidate for trial in held.trials]) != (asked.steps, list(asked.candidates)):
        raise RecordError(f"{path} has other trials than the record's settings")
    best = best_of(held.trials)
    if held.chosen != best:
        raise RecordError(
            f"{path} says that candidate {held.chosen + 1} was chosen, and {best + 1} is the best"
        )
    kind, chosen = learner_class(row.id), row.under(held.trials[best].candidate)
    if (chosen.train, options_of(kind, chosen.options)) != (row.train, options_of(kind, row.options)):
        raise RecordError(f"the record has other settings than those that {path} chose")
    if not (record.selection or "").startswith(f"{held}; "):
        raise RecordError(f'the record says "{record.selection}", and {path} "{held}"')
    if draws_digest(read_draws(path)) != held.classes_digest:
        raise RecordError(f"{draws_name(path)} is not the one that was recorded: its digest differs")
    return held


def read_trial_draws(folder: Path, record: Record) -> list[tuple[str, str, int]]:
    """The log of the classes that the trials of a record drew; empty where there were none."""
    return read_draws(_trials_path(folder, record)) if record.trials else []


def _trials_path(folder: Path, record: Record) -> Path:
    """Where what came of a record's trials lies: beside its weights, which may be those of another folder."""
    assert record.trials is not None
    home = (folder / record.checkpoint).parents[1] if record.checkpoint else folder
    return home / record.trials


def _trial_jobs(job: Job) -> list[Job]:
    """Each candidate as a training of its own, which is measured once, at its end."""
    asked = job.trial_settings
    assert asked is not None
    once = {"steps": asked.steps, "validate_every": asked.steps, "trials": None}
    rows = [job.learner.under(candidate) for candidate in asked.candidates]
    rows = [row.model_copy(update={"train": row.train.model_copy(update=once)}) for row in rows]
    return [replace(job, learner=row, train_seed=TRIAL_SEED) for row in rows]
