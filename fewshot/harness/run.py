"""Run a suite: try and train what is missing, measure what is missing, record it.

A record is looked up by what it means (`fewshot.harness.plan`): `run` again does nothing, and a killed run
goes on where it was.
"""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from fewshot.data.split import Split
from fewshot.harness.config import Suite
from fewshot.harness.job import Report, Update, is_trained, make_checkpoint, run_job, run_trials, settled
from fewshot.harness.plan import (
    Job,
    check_learner_settings,
    check_suite,
    chosen_learners,
    job_seeds,
    load_split,
    planned_tests,
    training_key,
)
from fewshot.harness.processes import prepare_process, run_side_by_side
from fewshot.harness.record import (
    RECORDS_FILE,
    Record,
    add_answers,
    add_draws,
    answers_file,
    append_record,
    check_writable,
    read_records,
    remove_draws,
    remove_records,
)
from fewshot.harness.train import TrainLog
from fewshot.harness.trials import forget_trials
from fewshot.harness.turns import check_waiting, groups_in_turn, makers, taken_files
from fewshot.learners.registry import learner_class


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    root: Path | None = None,
    device: str = "cpu",
    jobs: int | None = None,
    threads: int = 1,
    fresh: bool = False,
    only: tuple[str, ...] = (),
    on_update: Report = lambda update: None,
) -> list[Record]:
    """Make what is missing of a suite's records in `folder`; returns the new ones.

    A learner's first new record takes the place of those that it had under other settings. jobs: processes
    side by side, as many as there are cores by default. fresh: first forget records, weights and unfinished
    runs of the learners to run. only: the learner ids to run, all by default. A row that takes the weights or
    the network of another row to run waits until all that need not wait are done. Raises FewshotError
    subclasses for wrong input, before anything long starts wherever it can be known by then.
    """
    check_writable(folder)
    chosen = chosen_learners(suite, only)
    groups = groups_in_turn(chosen, folder)
    # Images are decoded once, here, and not by every process at the same time.
    training_split, test_split = load_split(suite.training_data, root), load_split(suite.data, root)
    check_suite(suite, groups[0], training_split, test_split)
    to_come = makers(chosen, folder)
    for row in (row for group in groups[1:] for row in group):
        check_waiting(suite, row, to_come, training_split, test_split)
    job = partial(Job, suite, folder=folder, root=root, device=device, threads=threads)
    if fresh:
        _forget([job(row, seed) for row in chosen for seed in job_seeds(row)], training_split)
    workers = jobs or max(1, (os.cpu_count() or 1) // threads)
    taken = {path.resolve() for row in chosen for path in taken_files(row)}
    made: list[Record] = []
    for group in groups:
        if group is not groups[0]:  # what they take is there now
            check_suite(suite, group, training_split, test_split)
        known = frozenset(record.key for record in _records(folder))
        plan = [job(row, seed, known=known) for row in group for seed in job_seeds(row)]
        # Weights that are lost, and wanted, are made again, and what is known of them is measured again.
        plan = [
            replace(one, known=frozenset()) if _is_wanted(one, taken, training_split) else one for one in plan
        ]
        made += _run_group(plan, workers, training_split, test_split, on_update)
    return made


def _is_wanted(job: Job, taken: set[Path], split: Split) -> bool:
    """Whether another row takes a job's checkpoint, and it is not there as it should be."""
    wanted = not job.weights and job.checkpoint.resolve() in taken
    return wanted and not is_trained(job.checkpoint, training_key(job, split))


def _run_group(
    plan: list[Job], workers: int, training_split: Split, test_split: Split, on_update: Report
) -> list[Record]:
    """Run jobs of which none waits for another's files; returns the new records."""
    folder = plan[0].folder
    keys = {job.name: training_key(job, training_split) for job in plan}
    tests = {job.name: {test.key for test in planned_tests(job, test_split, keys[job.name])} for job in plan}
    planned = set[str]().union(*tests.values())
    # One for each learner: its training seeds share the trials.
    trying = {job.learner.id: job for job in plan if job.trial_settings and not tests[job.name] <= job.known}
    made: list[Record] = []

    def keep(update: Update) -> None:
        if update.draws:  # a log to keep, and no progress to show
            add_draws(*update.draws)
            return
        record = update.record
        if record:
            gone = [old for old in _of_same_job(folder, record) if old.key not in planned - {record.key}]
            remove_records(folder, gone)
            add_answers(folder, answers_file(record.episodes_digest), record.key, update.answers)
            append_record(folder, record)
            made.append(record)
        on_update(update)

    for work, tasks in ((run_trials, [*trying.values()]), (run_job, plan)):
        if min(workers, len(tasks)) > 1:
            run_side_by_side(work, tasks, min(workers, len(tasks)), keep)
        else:
            for task in tasks:
                work(task, keep)
    return made


def train_learner(
    suite: Suite,
    folder: Path,
    *,
    root: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    on_update: Report = lambda update: None,
) -> tuple[Path, TrainLog]:
    """Train the first learner of a suite with its first seed, without testing it: checkpoint and log."""
    check_writable(folder)
    prepare_process(threads)
    settings = suite.learner[0]
    split = load_split(suite.training_data, root)
    check_learner_settings(settings, split)
    job = Job(suite, settings, settings.train_seeds[0], folder, root, device, threads)
    train_key = training_key(job, split)

    def keep(update: Update) -> None:
        if update.draws:  # a log to keep, and no progress to show
            add_draws(*update.draws)
            return
        on_update(update)

    return job.checkpoint, make_checkpoint(settled(job, split, keep), split, train_key, keep)


def _forget(jobs: list[Job], split: Split) -> None:
    """Delete the jobs' records, their own weights, trials and unfinished runs, and nothing else."""
    # What a job takes may be among what goes. A run that began with another file is not found by its name.
    whole = [job for job in jobs if all(path.is_file() for path in taken_files(job.learner))]
    states = {job.name: job.state(training_key(job, split)) for job in whole}
    for job in jobs:
        if job.trial_settings:
            forget_trials(job, split if job in whole else None)
    for job in jobs:
        if not job.weights:
            remove_draws(job.checkpoint)
            for path in (states.get(job.name), job.checkpoint, job.curve):
                if path:
                    path.unlink(missing_ok=True)
        seed = job.train_seed if learner_class(job.learner.id).trainable else None
        owner = (job.suite.name, job.learner.id, seed)
        remove_records(job.folder, [record for record in _records(job.folder) if _owner(record) == owner])


def _of_same_job(folder: Path, record: Record) -> list[Record]:
    return [other for other in _records(folder) if _owner(other) == _owner(record)]


def _owner(record: Record) -> tuple[str, str, int | None]:
    return record.suite, record.learner, record.train_seed


def _records(folder: Path) -> list[Record]:
    return read_records(folder) if (folder / RECORDS_FILE).exists() else []
