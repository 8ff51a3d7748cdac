"""The audit of results, or of a suite: every guard, held against everything that it concerns.

Of results: the log of draws beside each checkpoint, the stored learner, the recorded episodes drawn again,
and the recorded answers to streams. Of a suite that was not run: what it would draw, and its learners before
training, or those whose weights it adopts.
"""

import json
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from fewshot.data.catalogue import load_dataset
from fewshot.data.split import ClassPool, Split
from fewshot.episodes.protocol import Protocol
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import RecordError
from fewshot.harness.audit.answers import first_presentations_are_guesses
from fewshot.harness.audit.draws import (
    log_is_whole,
    settings_are_the_best_tried,
    sides_are_apart,
    test_classes_were_unseen,
    weights_were_chosen_on_validation,
)
from fewshot.harness.audit.episodes import audit_source
from fewshot.harness.audit.finding import Finding
from fewshot.harness.audit.learners import audit_learner
from fewshot.harness.checkpoint import load_learner
from fewshot.harness.config import LearnerSettings, Suite, read_suite
from fewshot.harness.evaluate import describe
from fewshot.harness.plan import adopted, check_learner_settings, load_split, untrained
from fewshot.harness.processes import prepare_process, run_side_by_side
from fewshot.harness.record import Draws, Record, read_answers, read_draws, read_records
from fewshot.harness.train import count_draws, training_pools, training_protocol, validation_protocol
from fewshot.harness.trials import read_trial_draws
from fewshot.harness.turns import as_they_are
from fewshot.harness.verify import protocol_of, recorded_split

DRAWN_EPISODES = 1000
"""Episodes that are drawn of each test, the first ones: of most tests all."""

Task = Callable[[], list[Finding]]
Item = TypeVar("Item")


def plan_audit(what: Path, root: Path | None = None) -> list[Task]:
    """All that is to be done to audit a results folder, or a suite's TOML file.

    Raises RecordError for a folder without records or a malformed suite, DataError where the images are not
    there.
    """
    return _tasks_of_suite(read_suite(what), root) if what.suffix == ".toml" else _tasks_of(what, root)


def carry_out(
    tasks: Sequence[Task], jobs: int | None = None, advance: Callable[[int], None] = lambda count: None
) -> list[Finding]:
    """What the tasks find, in their order.

    jobs: processes side by side, one per core by default. advance: called with 1 after each task.
    """
    found: dict[int, list[Finding]] = {}

    def keep(news: tuple[int, list[Finding]]) -> None:
        found[news[0]] = news[1]
        advance(1)

    numbered = list(enumerate(tasks))
    workers = min(jobs or os.cpu_count() or 1, len(tasks))
    if workers == 1:
        for task in numbered:
            _work(task, keep)
    else:
        run_side_by_side(_work, numbered, workers, keep)
    return [finding for number in sorted(found) for finding in found[number]]


def _work(numbered: tuple[int, Task], report: Callable[[tuple[int, list[Finding]]], None]) -> None:
    prepare_process(1)
    number, task = numbered
    report((number, task()))


def _tasks_of(folder: Path, root: Path | None) -> list[Task]:
    records = read_records(folder)
    if not records:
        raise RecordError(f"no records in {folder}: make some with `fewshot run`")
    for name, size in {(record.dataset, record.image_size) for record in records}:
        load_dataset(name, root, size)  # decoded once, here, and not by every process
    with_weights = [record for record in records if record.checkpoint]
    with_answers = [record for record in records if record.answers and record.protocol == "stream"]
    return [
        *(partial(_audit_weights, folder, record, root) for record in _each(with_weights, _stored_learner)),
        *(partial(_audit_test, record, root) for record in _each(records, _test)),
        *(partial(_audit_answers, folder, record) for record in with_answers),
    ]


def _tasks_of_suite(suite: Suite, root: Path | None) -> list[Task]:
    training, tested = load_split(suite.training_data, root), load_split(suite.data, root)
    sources: dict[tuple[str, Protocol], partial[list[Finding]]] = {}
    rows = as_they_are(suite.learner, Path("results") / suite.name)
    for settings in rows:
        check_learner_settings(settings, training)
        for pool, protocol in _training_episodes(settings, training):
            sources[pool.digest, protocol] = partial(_audit_source, pool, protocol, 0)
    for test in suite.test:
        for rotated in test.rotated:
            pool = tested.test.with_rotations() if rotated else tested.test
            sources[pool.digest, test.build()] = partial(_audit_source, pool, test.build(), test.episode_seed)
    learners = [partial(_audit_planned, suite, settings, root) for settings in rows]
    return [*learners, *sources.values()]


def _audit_weights(folder: Path, record: Record, root: Path | None) -> list[Finding]:
    """The log and the learner of one checkpoint; record: one that was measured with it."""
    assert record.checkpoint is not None
    path, subject = folder / record.checkpoint, _learner_name(record)
    split = recorded_split(record.dataset, record.split, record.image_size, root)
    pool = split.side(record.side)
    learner = load_learner(path, options=record.config["options"])
    learned = audit_learner(subject, learner, pool, learner.way if learner.fixed_way else record.way)
    try:
        draws = read_draws(path)
        drawn = draws + read_trial_draws(folder, record)
    except RecordError as error:
        return [
            Finding("the log has all that was drawn", subject, False, str(error), "then audit again"),
            *learned,
        ]
    here = record.train_dataset in (None, record.dataset)  # None: it was calibrated only
    trained_on = split
    if here and record.train_split:
        trained_on = recorded_split(record.dataset, record.train_split, record.image_size, root)
    return [
        log_is_whole(subject, record, draws),
        sides_are_apart(subject, drawn, trained_on if here else None),
        test_classes_were_unseen(subject, drawn, pool if here else None),
        weights_were_chosen_on_validation(subject, record, draws),
        *settings_are_the_best_tried(subject, folder, record),
        *learned,
    ]


def _audit_test(record: Record, root: Path | None) -> list[Finding]:
    """The recorded episodes, drawn again."""
    pool = recorded_split(record.dataset, record.split, record.image_size, root).side(record.side)
    pool = pool.with_rotations() if record.rotated_test_classes else pool
    return _audit_source(pool, protocol_of(record), record.episode_seed)


def _audit_answers(folder: Path, record: Record) -> list[Finding]:
    assert record.answers is not None
    subject = f"{_learner_name(record)}, {describe(protocol_of(record))}"
    found = first_presentations_are_guesses(subject, record, read_answers(folder, record))
    return [found] if found else []


def _audit_planned(suite: Suite, settings: LearnerSettings, root: Path | None) -> list[Finding]:
    """A learner of a suite: what its training would draw, or drew, and what it answers as it is."""
    training, tested = load_split(suite.training_data, root), load_split(suite.data, root)
    learner = untrained(settings, training)
    weights = adopted(settings, settings.train_seeds[0])
    draws: Draws = read_draws(weights) if weights else _planned_draws(settings, training)
    here = training.train.image_set.name == tested.test.image_set.name
    tests = [test for test in suite.test if not learner.refusal(test.build())]
    if not tests:
        reason = learner.refusal(suite.test[0].build())
        raise RecordError(f"suite {suite.name} has no test for {settings.id!r}: {reason}")
    way = learner.way if learner.fixed_way else tests[0].way
    return [
        sides_are_apart(settings.id, draws, training),
        test_classes_were_unseen(settings.id, draws, tested.test if here else None),
        *audit_learner(settings.id, learner, tested.test, way),
    ]


def _planned_draws(settings: LearnerSettings, training: Split) -> Draws:
    """The log that the first training and validation episodes would leave."""
    draws = []
    for pool, protocol in _training_episodes(settings, training):
        source = EpisodeSampler(pool, protocol, settings.train_seeds[0])
        drawn = count_draws(source, DRAWN_EPISODES).tolist()
        draws += [(pool.side, pool.class_name(i), times) for i, times in enumerate(drawn) if times]
    return draws


def _training_episodes(settings: LearnerSettings, training: Split) -> Iterable[tuple[ClassPool, Protocol]]:
    """Of training and of validation: classes and protocol."""
    train = settings.train
    protocols = training_protocol(train, train.steps - 1), validation_protocol(train)
    return zip(training_pools(training, train), protocols, strict=True)


def _audit_source(pool: ClassPool, protocol: Protocol, episode_seed: int) -> list[Finding]:
    turned = ", turned classes too" if pool.rotated else ""
    subject = f"{pool.image_set.name}/{pool.split}/{pool.side}{turned}, {describe(protocol)}"
    return audit_source(subject, EpisodeSampler(pool, protocol, episode_seed), DRAWN_EPISODES)


def _each(items: Iterable[Item], what: Callable[[Item], Hashable]) -> list[Item]:
    """The first of the items with the same `what`."""
    return list({what(item): item for item in reversed(list(items))}.values())[::-1]


def _stored_learner(record: Record) -> Hashable:
    return record.checkpoint, record.learner, json.dumps(record.config["options"], sort_keys=True)


def _test(record: Record) -> Hashable:
    place = record.dataset, record.split, record.side, record.image_size, record.rotated_test_classes
    return *place, protocol_of(record), record.episode_seed


def _learner_name(record: Record) -> str:
    return record.learner if record.train_seed is None else f"{record.learner} seed {record.train_seed}"
