"""Run a suite: train what is missing, measure what is missing, record it.

One job is one learner with one train seed, from training to its last record; jobs run side by side, each in a
process of its own with a fixed number of threads, which uses the cores better than many threads do and gives
the same numbers whatever runs beside. A record is looked up by what it means (design decision 6): `run`
again does nothing, and a killed run goes on where it was.
"""

import csv
import ctypes
import io
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from fewshot.data.catalogue import load_dataset
from fewshot.data.locations import cache_root
from fewshot.data.split import ClassPool, Split
from fewshot.data.splits import split_classes
from fewshot.episodes.protocol import Stream, bounds
from fewshot.episodes.sampler import SAMPLER_VERSION, EpisodeSampler
from fewshot.errors import LearnerError, RecordError
from fewshot.harness.checkpoint import checkpoint_facts, file_sha256, load_learner, save_learner
from fewshot.harness.config import DataSettings, KShotSettings, LearnerSettings, Suite, Test
from fewshot.harness.evaluate import evaluate
from fewshot.harness.record import (
    RECORDS_FILE,
    Record,
    append_record,
    check_writable,
    provenance,
    read_records,
    record_key,
    replace_file,
    write_answers,
)
from fewshot.harness.train import (
    Progress,
    TrainLog,
    calibrate,
    draw_rows,
    draws_digest,
    train,
    training_pools,
    validation_protocol,
)
from fewshot.learners.base import Learner
from fewshot.learners.registry import build_learner, learner_class, options_of


@dataclass(frozen=True)
class Job:
    """One learner with one train seed: what a process does."""

    suite: Suite
    learner: LearnerSettings
    train_seed: int
    folder: Path
    root: Path | None
    device: str
    threads: int
    known: frozenset[str]
    """Keys of the records that are there already."""

    @property
    def name(self) -> str:
        seeds = len(self.learner.train_seeds)
        return self.learner.id if seeds == 1 else f"{self.learner.id} seed {self.train_seed}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        return f"{self.learner.id.replace(':', '.')}-{self.train_seed}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / f"{self.stem}.safetensors"


@dataclass(frozen=True)
class Update:
    """News of a job for whoever shows the progress; record is set when one was made."""

    job: str
    stage: str
    done: int
    total: int
    note: str = ""
    record: Record | None = None


Report = Callable[[Update], None]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


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

    jobs: processes side by side, as many as there are cores by default. fresh: forget records, weights and
    unfinished runs of this suite first. only: the learner ids to run, all by default. Raises FewshotError
    subclasses for wrong input, before anything long starts wherever it can be known by then.
    """
    check_writable(folder)
    chosen = _chosen(suite, only)
    for settings in chosen:
        options_of(learner_class(settings.id), settings.options)
    # Images are decoded once, here, and not by every process at the same time.
    _check_suite(suite, chosen, _load(suite.training_data, root), _load(suite.data, root))
    if fresh:
        _forget(suite, folder, root)
    known = frozenset(record.key for record in _records(folder))
    plan = [
        Job(suite, settings, seed, folder, root, device, threads, known)
        for settings in chosen
        for seed in (settings.train_seeds if learner_class(settings.id).trainable else (0,))
    ]
    made: list[Record] = []

    def keep(update: Update) -> None:
        if update.record:
            append_record(folder, update.record)
            made.append(update.record)
        on_update(update)

    workers = min(jobs or max(1, (os.cpu_count() or 1) // threads), len(plan))
    if workers == 1:
        for job in plan:
            run_job(job, keep)
    else:
        _run_side_by_side(plan, workers, keep)
    return made


def train_learner(
    suite: Suite,
    folder: Path,
    *,
    root: Path | None = None,
    device: str = "cpu",
    threads: int = 1,
    on_update: Report = lambda update: None,
) -> Path:
    """Train the first learner of a suite with its first seed, without testing it; returns the checkpoint."""
    check_writable(folder)
    prepare_process(threads)
    settings = suite.learner[0]
    split = _load(suite.training_data, root)
    _check_learner(settings, split)
    job = Job(suite, settings, settings.train_seeds[0], folder, root, device, threads, frozenset())
    _train(job, split, training_key(job, split), on_update)
    return job.checkpoint


def run_job(job: Job, report: Report) -> None:
    """Train one learner if its checkpoint is not there, then make its missing records."""
    prepare_process(job.threads)
    facts = provenance()
    training_split = _load(job.suite.training_data, job.root)
    test_split = _load(job.suite.data, job.root)
    kind = learner_class(job.learner.id)
    train_key = training_key(job, training_split)
    missing = [test for test in _tests(job, test_split, train_key) if test.key not in job.known]
    if not missing:
        report(Update(job.name, "recorded", 1, 1))
        return
    path = job.checkpoint
    if not (path.exists() and checkpoint_facts(path).get("train_key") == train_key):
        _train(job, training_split, train_key, report)
    learner = load_learner(path, job.learner.id).to(job.device)
    training = json.loads(checkpoint_facts(path)["training"])
    sha256 = file_sha256(path)
    for number, test in enumerate(missing):
        report(Update(job.name, "testing", number, len(missing), test.label))
        evaluation = evaluate(learner, test.sampler(job.device), test.episodes)
        answers = Path("answers") / f"{test.key}.parquet"
        fields: dict[str, Any] = {
            "key": test.key,
            "suite": job.suite.name,
            "learner": job.learner.id,
            "config": {
                "options": options_of(kind, job.learner.options),
                "train": job.learner.train.model_dump() if kind.trainable else None,
            },
            "backbone": learner.backbone_name,
            "image_size": test.pool.image_set.image_shape[-1],
            "dataset": job.suite.data.dataset,
            "split": job.suite.data.split,
            "side": test.pool.side,
            "rotated_test_classes": test.pool.rotated,
            "data_digest": test.pool.digest,
            "protocol": test.settings.protocol,
            "way": test.settings.way,
            "within_group": test.settings.within_group,
            "episodes": test.episodes,
            "episode_seed": test.settings.episode_seed,
            "episodes_digest": evaluation.episodes_digest,
            "train_seed": job.train_seed if kind.trainable else None,
            "device": job.device,
            "threads": job.threads,
            "transductive": learner.transductive,
            "accuracy": evaluation.accuracy,
            "accuracy_by_instance": evaluation.accuracy_by_instance,
            "ci95": evaluation.ci95,
            "ci95_classes": evaluation.ci95_classes,
            "ci95_by_instance": evaluation.ci95_by_instance,
            "ci95_classes_by_instance": evaluation.ci95_classes_by_instance,
            "answers": str(answers),
            "answers_sha256": write_answers(job.folder / answers, evaluation.answers),
            "checkpoint": str(path.relative_to(job.folder)),
            "checkpoint_sha256": sha256,
            "method_versions": {"learner": kind.version, "sampler": SAMPLER_VERSION},
        }
        if isinstance(test.settings, KShotSettings):
            fields |= {"shot": test.settings.shot, "query": test.settings.query}
        else:
            fields |= {
                "length": test.settings.length,
                "counts": test.settings.counts,
                "labels": "one_hot",
            }
        record = Record(**fields, **training, **facts)
        report(Update(job.name, "testing", number + 1, len(missing), test.label, record))


def prepare_process(threads: int) -> None:
    """Fix the number of threads, and let the allocator keep what it has.

    By default glibc gives every large block back to the system at once and page-faults it in again: measured
    on Conv4-64, that is a quarter of a training step and a third of a forward pass.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def training_key(job: Job, split: Split) -> str:
    """What gives the weights their meaning."""
    kind = learner_class(job.learner.id)
    return record_key(
        {
            "data": split.digest,
            "learner": job.learner.id.partition(":")[0],
            "version": kind.version,
            "sampler": SAMPLER_VERSION,
            "options": _plain(options_of(kind, job.learner.options)),
            "train": job.learner.train.model_dump(mode="json") if kind.trainable else None,
            "train_seed": job.train_seed,
        }
    )


@dataclass(frozen=True)
class _Planned:
    """One test of one learner."""

    settings: Test
    pool: ClassPool
    episodes: int
    key: str

    @property
    def label(self) -> str:
        settings = self.settings
        turned = " rotated" if self.pool.rotated else ""
        if isinstance(settings, KShotSettings):
            return f"{settings.way}-way {settings.shot}-shot{turned}"
        return f"{settings.way}-way stream, {settings.counts} counts{turned}"

    def sampler(self, device: str) -> EpisodeSampler:
        return EpisodeSampler(
            self.pool, self.settings.build(), episode_seed=self.settings.episode_seed, device=device
        )


def _tests(job: Job, split: Split, train_key: str) -> Iterator[_Planned]:
    fixed_way = learner_class(job.learner.id).fixed_way
    for settings in job.suite.test:
        if fixed_way and settings.way != job.learner.train.episodes.way:
            continue
        few = job.learner.stream_episodes if isinstance(settings.build(), Stream) else None
        for rotated in settings.rotated:
            pool = split.test.with_rotations() if rotated else split.test
            episodes = min(few or settings.episodes, settings.episodes)
            key = record_key(
                {
                    "training": train_key,
                    "learner": job.learner.id,
                    "pool": pool.digest,
                    "test": settings.model_dump(mode="json", exclude={"rotated", "episodes"}),
                    "episodes": episodes,
                }
            )
            yield _Planned(settings, pool, episodes, key)


def _train(job: Job, split: Split, train_key: str, report: Report) -> None:
    """Train, round to the stored precision, calibrate, store: what is measured is what is stored."""
    settings = job.learner.train
    kind = learner_class(job.learner.id)
    options = options_of(kind, job.learner.options)
    learner = _fresh_learner(job.learner, job.train_seed, split).to(job.device)
    log = TrainLog()
    state = cache_root() / "runs" / f"{train_key}.state"
    if kind.trainable:
        log = train(
            learner,
            split,
            settings,
            train_seed=job.train_seed,
            state_path=state,
            on_progress=lambda progress: report(_training_update(job, progress)),
        )
    training = _training_fields(job, split, log) if kind.trainable else _UNTRAINED
    names = {"train_key": train_key, "training": json.dumps(training)}
    path = job.checkpoint
    save_learner(learner, path, job.learner.id, _plain(options), **names)
    learner = load_learner(path).to(job.device)
    calibrate(learner, split, settings)
    save_learner(learner, path, job.learner.id, _plain(options), **names)
    if kind.trainable:
        _write_curve(job, log)
        _write_draws(job, draw_rows(log, split, settings))
    state.unlink(missing_ok=True)


def _fresh_learner(settings: LearnerSettings, train_seed: int, split: Split) -> Learner:
    with torch.random.fork_rng():
        torch.manual_seed(train_seed)
        way = bounds(settings.train.episodes.way)[1]
        return build_learner(settings.id, split.train.image_set.image_shape, way, settings.options)


def _check_suite(suite: Suite, chosen: list[LearnerSettings], training: Split, tested: Split) -> None:
    """Raise now what would otherwise come up after hours: what cannot be built, drawn or answered."""
    shapes = [split.train.image_set.image_shape for split in (training, tested)]
    if shapes[0] != shapes[1]:
        raise RecordError(
            f"suite {suite.name} trains on images of (channel, height, width) {shapes[0]} and tests on "
            f"{shapes[1]}: give both one image_size, and images with as many channels"
        )
    for settings in chosen:
        _check_learner(settings, training)
    for test in suite.test:
        for rotated in test.rotated:
            pool = tested.test.with_rotations() if rotated else tested.test
            EpisodeSampler(pool, test.build(), test.episode_seed)


def _check_learner(settings: LearnerSettings, split: Split) -> None:
    """Raise unless the learner can be built, and its training and validation episodes drawn."""
    _fresh_learner(settings, 0, split)
    if learner_class(settings.id).trainable:
        protocols = (settings.train.episodes.build(), validation_protocol(settings.train))
        for pool, protocol in zip(training_pools(split, settings.train), protocols, strict=True):
            EpisodeSampler(pool, protocol, 0)


_UNTRAINED: dict[str, Any] = dict.fromkeys(
    (
        "train_dataset",
        "train_split",
        "train_protocol",
        "train_way",
        "train_shot",
        "train_steps",
        "train_episodes",
        "train_seconds",
        "train_classes_digest",
        "selection",
    )
)


def _training_fields(job: Job, split: Split, log: TrainLog) -> dict[str, Any]:
    settings = job.learner.train
    episodes = settings.episodes
    protocol = (settings.validate_on or episodes).build()
    return {
        "train_dataset": job.suite.training_data.dataset,
        "train_split": job.suite.training_data.split,
        "train_protocol": episodes.protocol,
        "train_way": episodes.way,
        "train_shot": episodes.shot if isinstance(episodes, KShotSettings) else None,
        "train_steps": log.best_step,
        "train_episodes": log.best_step * settings.batch,
        "train_seconds": round(log.seconds, 1),
        "train_classes_digest": draws_digest(draw_rows(log, split, settings)),
        "selection": f"best of every {settings.validate_every} steps by the accuracy of "
        f"{settings.validate_episodes} episodes over validation classes: {protocol}",
    }


def _training_update(job: Job, progress: Progress) -> Update:
    note = f"loss {progress.loss:.3f}"
    if progress.val_accuracy is not None:
        note += f", best val {100 * progress.val_accuracy:.1f} %"
    return Update(job.name, "training", progress.step, progress.steps, note)


def _write_curve(job: Job, log: TrainLog) -> None:
    """Learning curve: the loss every few steps, accuracy on validation classes where it was measured."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["learner", "train_seed", "step", "episodes", "seconds", "loss", "val_accuracy"])
    for step, episodes, seconds, loss, accuracy in log.curve:
        shown = ["" if value is None else f"{value:.5g}" for value in (loss, accuracy)]
        writer.writerow([job.learner.id, job.train_seed, step, episodes, f"{seconds:.1f}", *shown])
    replace_file(job.folder / "curves" / f"{job.stem}.csv", text.getvalue().encode())


def _write_draws(job: Job, rows: list[tuple[str, str, int]]) -> None:
    """The audit log: which classes of which side were drawn, and how often."""
    text = "".join(f"{side}\t{name}\t{draws}\n" for side, name, draws in rows)
    replace_file(job.folder / "draws" / f"{job.stem}.tsv", text.encode())


def _chosen(suite: Suite, only: tuple[str, ...]) -> list[LearnerSettings]:
    there = [settings.id for settings in suite.learner]
    for name in only:
        if name not in there:
            raise LearnerError(f"suite {suite.name} has no learner {name!r}; it has {', '.join(there)}")
    return [settings for settings in suite.learner if not only or settings.id in only]


def _forget(suite: Suite, folder: Path, root: Path | None) -> None:
    """Delete this suite's records, weights and unfinished runs, and nothing else."""
    split = _load(suite.training_data, root)
    for settings in suite.learner:
        for seed in settings.train_seeds:
            job = Job(suite, settings, seed, folder, root, "cpu", 1, frozenset())
            (cache_root() / "runs" / f"{training_key(job, split)}.state").unlink(missing_ok=True)
            job.checkpoint.unlink(missing_ok=True)
    for record in _records(folder):
        if record.answers:
            (folder / record.answers).unlink(missing_ok=True)
    (folder / RECORDS_FILE).unlink(missing_ok=True)


def _records(folder: Path) -> list[Record]:
    return read_records(folder) if (folder / RECORDS_FILE).exists() else []


def _load(data: DataSettings, root: Path | None) -> Split:
    return split_classes(load_dataset(data.dataset, root, data.image_size), data.split)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON knows them (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(options))
    return plain


def _run_side_by_side(plan: list[Job], workers: int, report: Report) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(workers, mp_context=context) as pool:
        queue = manager.Queue()
        running = {pool.submit(run_job, job, queue.put) for job in plan}
        problem: BaseException | None = None
        try:
            while running:
                done, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                _drain(queue, report)
                for job in done:  # the other jobs' records are kept, whatever became of this one
                    problem = problem or job.exception()
            _drain(queue, report)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    if problem:
        raise problem


def _drain(queue: Any, report: Report) -> None:
    while True:
        try:
            report(queue.get_nowait())
        except Empty:
            return
