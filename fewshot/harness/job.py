"""One job: train a learner if its weights are not there, then measure it and report a record per test.

Jobs run side by side, and records, answers and logs of draws share files: whoever takes the reports writes
those. Where its settings are to be tried first, the trials come before the training.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from fewshot.data.split import Split
from fewshot.episodes.sampler import SAMPLER_VERSION
from fewshot.harness.checkpoint import checkpoint_facts, file_sha256, load_learner, save_learner
from fewshot.harness.config import KShotSettings
from fewshot.harness.evaluate import Evaluation, evaluate
from fewshot.harness.plan import (
    Job,
    PlannedTest,
    fresh_learner,
    has_own_code,
    load_split,
    plain,
    planned_tests,
    training_key,
)
from fewshot.harness.processes import prepare_process
from fewshot.harness.record import (
    Draws,
    Record,
    answers_digest,
    answers_file,
    has_draws,
    kept_answers,
    provenance,
    read_draws,
    replace_file,
)
from fewshot.harness.train import (
    TRAINING_VERSION,
    CurveRow,
    Progress,
    TrainLog,
    calibrate,
    draw_rows,
    draws_digest,
    train,
    training_protocol,
    validation_protocol,
)
from fewshot.harness.trials import read_trials, try_candidates
from fewshot.learners.base import Learner
from fewshot.learners.registry import learner_class, options_of, telling_options

CURVE_ROWS = 50
OWN_CODE_NOTE = "code of one's own is not watched: after a change, --fresh trains and measures again"


@dataclass(frozen=True)
class Update:
    """News of a job for whoever shows the progress; record and answers are set when one was made.

    answers: those of the record (`fewshot.harness.record.ANSWERS_SCHEMA`); draws: the checkpoint, or what
    came of trials, and the log of the classes drawn to make it, once that is whole.
    """

    job: str
    stage: str
    done: int
    total: int
    note: str = ""
    record: Record | None = None
    answers: pa.Table | None = None
    draws: tuple[Path, Draws] | None = None


Report = Callable[[Update], None]


def run_job(job: Job, report: Report) -> None:
    """Train one learner if its checkpoint is not there, then make its missing records."""
    prepare_process(job.threads)
    facts = provenance()
    training_split = load_split(job.suite.training_data, job.root)
    test_split = load_split(job.suite.data, job.root)
    train_key = training_key(job, training_split)
    missing = [test for test in planned_tests(job, test_split, train_key) if test.key not in job.known]
    note = OWN_CODE_NOTE if has_own_code(job.learner) else ""
    if not missing:
        report(Update(job.name, "recorded", 1, 1, note))
        return
    job = settled(job, training_split, report)
    path = job.checkpoint
    trained = is_trained(path, train_key)
    if trained and note:
        report(Update(job.name, "trained", 1, 1, note))
    if not (job.weights or trained):
        make_checkpoint(job, training_split, train_key, report)
    learner = load_learner(path, options=job.learner.options).to(job.device)
    facts |= {"train_seed": job.train_seed if learner.trainable else None}
    facts |= json.loads(checkpoint_facts(path)["training"])
    facts |= {"checkpoint": os.path.relpath(path, job.folder), "checkpoint_sha256": file_sha256(path)}
    for number, test in enumerate(missing):
        report(Update(job.name, "testing", number, len(missing), test.label))
        evaluation = evaluate(learner, test.sampler(job.device), test.episodes)
        evaluation = replace(evaluation, answers=kept_answers(evaluation.answers))
        record = Record(**facts, **_record_fields(job, test, learner, evaluation))
        done = Update(job.name, "testing", number + 1, len(missing), test.label, record, evaluation.answers)
        report(done)


def is_trained(checkpoint: Path, train_key: str) -> bool:
    """Whether a checkpoint is of this training, calibrated, and the log of its draws beside it.

    A run may have been stopped in between: the log is written last, and its digest is in the checkpoint.
    """
    if not checkpoint.exists():
        return False
    facts = checkpoint_facts(checkpoint)
    if facts.get("train_key") != train_key or not has_draws(checkpoint):
        return False
    told: str = json.loads(facts["training"])["train_classes_digest"]
    return draws_digest(read_draws(checkpoint)) == told


def run_trials(job: Job, report: Report) -> None:
    """Run the trials of a learner, where that was not done."""
    prepare_process(job.threads)
    settled(job, load_split(job.suite.training_data, job.root), report)


def settled(job: Job, split: Split, report: Report) -> Job:
    """The job with the settings that its trials chose; they are run where that is not known yet."""
    asked = job.trial_settings
    if asked is None:
        return job

    def on_progress(place: int, progress: Progress) -> None:
        stage = f"trial {place + 1}/{len(asked.candidates)}"
        report(_training_update(job.learner.id, stage, progress))

    def on_draws(made: Path, draws: Draws) -> None:
        count = len(asked.candidates)
        report(Update(job.learner.id, "trials", count, count, draws=(made, draws)))

    tried = try_candidates(job, split, on_progress, on_draws)
    return replace(job, learner=job.learner.under(tried.trials[tried.chosen].candidate))


def make_checkpoint(job: Job, split: Split, train_key: str, report: Report) -> TrainLog:
    """Train, round to the stored precision, calibrate, store: what is measured is what is stored."""
    settings = job.learner.train
    kind = learner_class(job.learner.id)
    options = options_of(kind, job.learner.options)
    learner = fresh_learner(job.learner, job.train_seed, split).to(job.device)
    log = TrainLog()
    state = job.state(train_key)
    if kind.trainable:
        log = train(
            learner,
            split,
            settings,
            train_seed=job.train_seed,
            state_path=state,
            on_progress=lambda progress: report(_training_update(job.name, "training", progress)),
        )

    def store(learner: Learner) -> None:
        training = json.dumps(_training_fields(job, split, log))
        save_learner(
            learner,
            job.checkpoint,
            job.learner.id,
            plain(options),
            float16=settings.float16,
            train_key=train_key,
            training=training,
        )

    store(learner)
    learner = load_learner(job.checkpoint).to(job.device)
    calibrate(learner, split, log)
    store(learner)
    if kind.trainable:
        replace_file(job.curve, _curve(job, log).encode())
    report(Update(job.name, "stored", 1, 1, draws=(job.checkpoint, _all_draws(job, split, log))))
    state.unlink(missing_ok=True)
    return log


def _record_fields(job: Job, test: PlannedTest, learner: Learner, evaluation: Evaluation) -> dict[str, Any]:
    kind = type(learner)
    trained = json.loads(checkpoint_facts(job.checkpoint)["options"])
    settings = test.settings
    fields: dict[str, Any] = {
        "key": test.key,
        "suite": job.suite.name,
        "learner": job.learner.id,
        "config": {
            # Without what a later version adds, so that seeds of several versions go together; but whole
            # where the row answers with another's weights, whose own options may differ.
            "options": plain(
                (options_of if job.weights else telling_options)(kind, trained | job.learner.options)
            ),
            "train": job.learner.train.model_dump() if kind.trainable and not job.weights else None,
            "weights": job.learner.weights,
        }
        | ({"start_from": job.learner.start_from} if job.start_from else {}),
        "backbone": learner.backbone_name,
        "image_size": test.pool.image_set.image_shape[-1],
        "dataset": test.pool.image_set.name,
        "split": test.pool.split,
        "side": test.pool.side,
        "rotated_test_classes": test.pool.rotated,
        "data_digest": test.pool.digest,
        "protocol": settings.protocol,
        "way": settings.way,
        "within_group": settings.within_group,
        "episodes": test.episodes,
        "episode_seed": settings.episode_seed,
        "episodes_digest": evaluation.episodes_digest,
        "device": job.device,
        "threads": job.threads,
        # In a stream one image is asked at a time: there is no other query to learn from.
        "transductive": learner.transductive and settings.protocol == "kshot",
        "accuracy": evaluation.accuracy,
        "accuracy_by_instance": evaluation.accuracy_by_instance,
        "accuracy_by_link": evaluation.accuracy_by_link,
        "ci95": evaluation.ci95,
        "ci95_classes": evaluation.ci95_classes,
        "ci95_by_instance": evaluation.ci95_by_instance,
        "ci95_classes_by_instance": evaluation.ci95_classes_by_instance,
        "answers": answers_file(evaluation.episodes_digest),
        "answers_sha256": answers_digest(evaluation.answers),
        "method_versions": {
            "learner": kind.version,
            "sampler": SAMPLER_VERSION,
            "training": TRAINING_VERSION,
        },
    }
    if isinstance(settings, KShotSettings):
        return fields | {"shot": settings.shot, "query": settings.query}
    names = ("length", "counts", "labels", "chain")
    return fields | {name: getattr(settings, name) for name in names}


def _training_fields(job: Job, split: Split, log: TrainLog) -> dict[str, Any]:
    """The fields of a record that the training decides; they are stored in the checkpoint."""
    settings = job.learner.train
    digest = draws_digest(_all_draws(job, split, log))
    names = ("dataset", "split", "protocol", "way", "shot", "steps", "episodes", "seconds", "seed", "device")
    if not learner_class(job.learner.id).trainable:
        untrained: dict[str, Any] = dict.fromkeys(f"train_{name}" for name in names)
        return untrained | {"train_classes_digest": digest, "selection": None}
    episodes = settings.episodes
    first, last = (training_protocol(settings, step).way for step in (0, settings.steps - 1))
    values = (
        split.train.image_set.name,
        split.name,
        episodes.protocol,
        last if first == last else (first, last),
        episodes.shot if isinstance(episodes, KShotSettings) else None,
        settings.steps,
        settings.steps * settings.batch,
        round(log.seconds, 1),
        job.train_seed,
        ", then ".join(log.devices),
    )
    fields: dict[str, Any] = {f"train_{name}": value for name, value in zip(names, values, strict=True)}
    fields |= {
        "train_classes_digest": digest,
        "selection": f"weights of step {log.best_step}, the best of every {settings.validate_every} by the "
        f"accuracy of {settings.validate_episodes} episodes over validation classes: "
        f"{validation_protocol(settings)}",
    }
    if job.start_from:
        fields |= {
            "train_start": os.path.relpath(job.start_from, job.folder),
            "train_start_sha256": file_sha256(job.start_from),
        }
    if job.trial_settings:
        fields["selection"] = f"{read_trials(job.trials_path)}; {fields['selection']}"
        fields |= {
            "trials": os.path.relpath(job.trials_path, job.folder),
            "trials_sha256": file_sha256(job.trials_path),
        }
    return fields


def _all_draws(job: Job, split: Split, log: TrainLog) -> list[tuple[str, str, int]]:
    """The log of all classes that the weights have seen: of this training, and of what it started from."""
    rows = draw_rows(log, split, job.learner.train)
    if not job.start_from:
        return rows
    seen = Counter({(side, name): count for side, name, count in rows})
    seen.update({(side, name): count for side, name, count in read_draws(job.start_from)})
    return [(side, name, count) for (side, name), count in seen.items()]


def _training_update(job: str, stage: str, progress: Progress) -> Update:
    note = f"loss {progress.loss:.3f}"
    if progress.val_accuracy is not None:
        note += f", best val {100 * progress.val_accuracy:.1f} %"
    return Update(job, stage, progress.step, progress.steps, note)


def _curve(job: Job, log: TrainLog) -> str:
    """Learning curve: the loss every few steps, accuracies on validation classes where they were measured.

    Of a long run's losses some CURVE_ROWS are kept.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["learner", "train_seed", *CurveRow._fields])
    every = -(-len(log.curve) // CURVE_ROWS)
    for number, (step, episodes, seconds, *values) in enumerate(log.curve):
        if number % every and all(value is None for value in values[1:]):
            continue
        shown = ["" if value is None else f"{value:.4g}" for value in values]
        # To five digits, not to a decimal place: a small learner's first look comes within a tenth of a
        # second, and plots of this column are logarithmic.
        writer.writerow([job.learner.id, job.train_seed, step, episodes, f"{seconds:.5g}", *shown])
    return text.getvalue()
