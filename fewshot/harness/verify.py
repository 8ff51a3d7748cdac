"""Verify recorded figures: load the stored weights, answer the recorded episodes again, compare.

What is compared (design decision 7): digests of data, episodes and files agree; at least 99.8 % of the
answers are those recorded (another machine may round differently), where after the first of them it is
recorded whether they are right; accuracy differs by at most 0.1 point; and what the record says (accuracies,
intervals, training, classes drawn) is what its answers, its checkpoint and its log of draws say. A checkpoint
that training began with is the recorded one, or is not there: figures do not need it.
"""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewshot.data.catalogue import load_dataset
from fewshot.data.split import Split
from fewshot.data.splits import split_classes
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import AbsentError, FewshotError, RecordError
from fewshot.harness.checkpoint import checkpoint_facts, file_sha256, load_learner
from fewshot.harness.evaluate import evaluate
from fewshot.harness.processes import die_with_parent, prepare_process
from fewshot.harness.record import (
    QUICK_EPISODES,
    Record,
    accuracy_by_link,
    answer_columns,
    answers_digest,
    draws_name,
    kept_answers,
    read_answers,
    read_draws,
    read_records,
)
from fewshot.harness.statistics import summarise
from fewshot.harness.train import draws_digest
from fewshot.harness.trials import read_trial_draws, recorded_trials
from fewshot.learners.base import Learner
from fewshot.learners.registry import learner_class

LEAST_SAME_ANSWERS = 0.998
LARGEST_DIFFERENCE = 0.001


@dataclass(frozen=True)
class Verdict:
    """What verifying one record gave; problem is None where all agrees.

    same_answers: fraction of the answers that are those recorded; difference: of accuracy, a fraction.
    measured: not where what the learner is made of is not here, and the problem says what.
    """

    record: Record
    episodes: int
    same_answers: float
    difference: float
    problem: str | None
    measured: bool = True

    def __str__(self) -> str:
        record = self.record
        protocol = protocol_of(record)
        setting = f"{record.shot}-shot" if isinstance(protocol, KShot) else f"stream, {protocol.manner}"
        turned = ", rotated classes" if record.rotated_test_classes else ""
        name = f"{record.learner}  {record.dataset}  {record.way}-way {setting}{turned}"
        if not self.measured:
            return f"not measured  {name}: {self.problem}"
        if self.problem:
            return f"DIFFERS  {name}: {self.problem}"
        return (
            f"agrees   {name}: {100 * self.same_answers:.2f} % of the answers of {self.episodes} "
            f"episodes are the same, accuracy within {100 * self.difference:.2f} points"
        )


def verify_records(
    folder: Path, *, root: Path | None = None, full: bool = False, jobs: int | None = None
) -> Iterator[Verdict]:
    """Verify each record of a results folder, as they are done.

    full: all recorded episodes instead of the first 200. Raises RecordError for a folder without records and
    DataError where the images are not there; a figure that does not agree is a Verdict with a problem.
    """
    records = read_records(folder)
    if not records:
        raise RecordError(f"no records in {folder}: make some with `fewshot run`")
    for name, size in {(record.dataset, record.image_size) for record in records}:
        load_dataset(name, root, size)
    workers = min(jobs or os.cpu_count() or 1, len(records))
    if workers == 1:
        for record in records:
            yield verify_record(folder, record, root, full)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=die_with_parent) as pool:
        jobs_ = [pool.submit(verify_record, folder, record, root, full) for record in records]
        for job in jobs_:
            yield job.result()


def verify_record(folder: Path, record: Record, root: Path | None, full: bool) -> Verdict:
    """Verify one record."""
    prepare_process(1)
    episodes = record.episodes if full else min(record.episodes, QUICK_EPISODES)
    try:
        same, difference = _measure_again(folder, record, root, episodes)
    except FewshotError as error:
        return Verdict(record, 0, 0.0, 1.0, str(error), measured=not isinstance(error, AbsentError))
    problem = None
    if same < LEAST_SAME_ANSWERS:
        problem = f"only {100 * same:.2f} % of the answers are those recorded"
    elif difference > LARGEST_DIFFERENCE:
        problem = f"accuracy differs by {100 * difference:.2f} points"
    return Verdict(record, episodes, same, difference, problem)


def protocol_of(record: Record) -> Protocol:
    """The protocol that a record was measured under."""
    if record.protocol == "kshot":
        assert record.shot is not None
        assert record.query is not None
        return KShot(record.way, record.shot, record.query, record.within_group)
    assert record.length is not None
    assert record.counts is not None
    labels = record.labels or "one_hot"
    return Stream(record.way, record.length, record.counts, record.within_group, labels, record.chain)


def _measure_again(folder: Path, record: Record, root: Path | None, episodes: int) -> tuple[float, float]:
    """Fraction of answers that are those recorded, and by how much the accuracy of these episodes differs."""
    learner = _recorded_learner(folder, record)
    pool = recorded_split(record.dataset, record.split, record.image_size, root).side(record.side)
    if record.rotated_test_classes:
        pool = pool.with_rotations()
    if pool.digest != record.data_digest:
        raise RecordError("the images or the class split are not those recorded: the data digest differs")
    if record.train_dataset in (None, record.dataset) and record.checkpoint:  # None: it was calibrated only
        draws = read_draws(folder / record.checkpoint) + read_trial_draws(folder, record)
        if seen := pool.parents_among(name for _, name, _ in draws):
            raise RecordError(f"{len(seen)} of the test classes were drawn in training ({seen[0]}, ...)")
    sampler = EpisodeSampler(pool, protocol_of(record), episode_seed=record.episode_seed)
    if sampler.digest(record.episodes) != record.episodes_digest:
        raise RecordError("the episodes are not those recorded: the sampler draws others")
    recorded = _recorded_answers(folder, record, pool.class_index.numpy())
    again = evaluate(learner, sampler, episodes).answers
    first = recorded.filter(pc.less(recorded["episode"], episodes))
    old, new = _flat_answers(first), _flat_answers(again)
    if old.shape != new.shape:
        raise RecordError(f"{len(old)} answers are recorded for {episodes} episodes, {len(new)} were given")
    accuracy = [pc.sum(table["correct"]).as_py() / pc.sum(table["count"]).as_py() for table in (first, again)]
    return float((old == new).mean()), abs(accuracy[0] - accuracy[1])


def _recorded_learner(folder: Path, record: Record) -> Learner:
    """The learner of the stored weights, once the record is known to tell the truth about it."""
    if record.checkpoint is None:
        raise RecordError("the record names no checkpoint: it cannot be verified")
    path = folder / record.checkpoint
    if record.config.get("weights"):  # another row's, answering under options of this one
        learner = load_learner(path, options=record.config["options"])
        if type(learner) is not learner_class(record.learner):
            raise RecordError(f"{path} holds no {record.learner!r} but a {type(learner).__name__}")
    else:
        learner = load_learner(path, record.learner)
    if file_sha256(path) != record.checkpoint_sha256:
        raise RecordError(f"{path} is not the file that was recorded: its SHA-256 differs")
    facts = checkpoint_facts(path)
    if not record.config.get("weights"):
        trained, options = json.loads(facts["options"]), record.config["options"]
        if strange := [name for name, value in options.items() if trained.get(name, value) != value]:
            name = strange[0]
            raise RecordError(
                f"the record says option {name} {options[name]!r}, the checkpoint {trained[name]!r}"
            )
    told = json.loads(facts["training"]) | {
        "backbone": learner.backbone_name,
        "transductive": learner.transductive and record.protocol == "kshot",
    }
    recorded = record.model_dump(mode="json")
    for name, value in told.items():
        if recorded[name] != value:
            raise RecordError(f"the record says {name} {recorded[name]!r}, the checkpoint {value!r}")
    rows = read_draws(path)
    if draws_digest(rows) != record.train_classes_digest:
        raise RecordError(f"{draws_name(path)} is not the one that was recorded: its digest differs")
    start = folder / record.train_start if record.train_start else None
    if start is not None and start.exists() and file_sha256(start) != record.train_start_sha256:
        raise RecordError(
            f"{start}, with whose network training began, is another file now: its SHA-256 differs"
        )
    recorded_trials(folder, record)
    if any(side == "test" for side, *_ in (*rows, *read_trial_draws(folder, record))):
        raise RecordError(f"{draws_name(path)} says that test classes were drawn in training")
    return learner


def _recorded_answers(folder: Path, record: Record, parents: NDArray[np.int64]) -> pa.Table:
    """The recorded answers, once they are known to be those that the recorded figures were computed from."""
    table = read_answers(folder, record)
    if answers_digest(table) != record.answers_sha256:
        raise RecordError(
            f"the answers in {record.answers} are not those that were recorded: their SHA-256 differs"
        )
    summary = vars(summarise(**answer_columns(table, parents)))
    summary["accuracy_by_link"] = accuracy_by_link(table, record.way)
    for name, counted in summary.items():
        if not _agree(getattr(record, name), counted):
            raise RecordError(f"the recorded {name} is not that of the recorded answers")
    return table


def _agree(recorded: object, counted: object) -> bool:
    """Whether figures are the same but for rounding: numbers, None, or dicts of them."""
    if isinstance(recorded, dict) and isinstance(counted, dict):
        return recorded.keys() == counted.keys() and all(_agree(recorded[k], counted[k]) for k in counted)
    if isinstance(recorded, float) and isinstance(counted, float):
        return abs(recorded - counted) < 1e-6
    return recorded == counted


def _flat_answers(table: pa.Table) -> NDArray[np.int16]:
    return np.asarray(pc.list_flatten(kept_answers(table)["answers"]).to_numpy())


@lru_cache(maxsize=2)
def recorded_split(dataset: str, split: str, image_size: int, root: Path | None) -> Split:
    """The split of a data set's classes that a record names."""
    return split_classes(load_dataset(dataset, root, image_size), split)
