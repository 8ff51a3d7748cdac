"""What a suite asks for: jobs, the tests of each, the keys by which results are known, where files lie.

A key is a digest of what gives a result its meaning (design decision 6): data, method, settings, seeds and
the integer versions that are raised by hand. Source text is never in it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fewshot.data.catalogue import load_dataset
from fewshot.data.locations import cache_root
from fewshot.data.split import ClassPool, Split
from fewshot.data.splits import split_classes
from fewshot.episodes.protocol import KShot, Stream, bounds
from fewshot.episodes.sampler import SAMPLER_VERSION, EpisodeSampler
from fewshot.errors import FewshotError, LearnerError, RecordError
from fewshot.harness.checkpoint import (
    begin_with_network,
    checkpoint_facts,
    file_sha256,
    load_learner,
)
from fewshot.harness.config import DataSettings, LearnerSettings, Suite, Test, TrialSettings
from fewshot.harness.record import read_draws, record_key
from fewshot.harness.train import (
    TRAINING_VERSION,
    calibration_streams,
    check_askable,
    training_pools,
    validation_protocol,
)
from fewshot.learners.backbones import Backbone
from fewshot.learners.base import Learner
from fewshot.learners.registry import build_learner, is_ours, learner_class, options_of, telling_options


def file_stem(learner_id: str, train_seed: int) -> str:
    """The name of the files of a row with one train seed."""
    return f"{learner_id.replace(':', '.')}-{train_seed}"


def checkpoint_path(folder: Path, learner_id: str, train_seed: int) -> Path:
    """Where the weights of a row that trains lie in its suite's folder."""
    return folder / "checkpoints" / f"{file_stem(learner_id, train_seed)}.safetensors"


@dataclass(frozen=True)
class Job:
    """One learner with one train seed: what a process does, from training to its last record."""

    suite: Suite
    learner: LearnerSettings
    train_seed: int
    folder: Path
    root: Path | None
    device: str
    threads: int
    known: frozenset[str] = frozenset()
    """Keys of the records that are there already."""

    @property
    def name(self) -> str:
        seeds = len(self.learner.train_seeds)
        return self.learner.id if seeds == 1 else f"{self.learner.id} seed {self.train_seed}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        return file_stem(self.learner.id, self.train_seed)

    @property
    def weights(self) -> Path | None:
        """The checkpoint that this job answers with instead of training."""
        return adopted(self.learner, self.train_seed)

    @property
    def start_from(self) -> Path | None:
        """The checkpoint whose network the training begins with."""
        return Path(self.learner.start_from) if self.learner.start_from else None

    @property
    def checkpoint(self) -> Path:
        return self.weights or checkpoint_path(self.folder, self.learner.id, self.train_seed)

    @property
    def curve(self) -> Path:
        return self.folder / "curves" / f"{self.stem}.csv"

    @property
    def trial_settings(self) -> TrialSettings | None:
        """What is tried before this job trains, if it does."""
        trains = learner_class(self.learner.id).trainable and not self.weights
        return self.learner.train.trials if trains else None

    @property
    def trials_path(self) -> Path:
        """What came of the trials, which all training seeds share."""
        return self.folder / "trials" / f"{self.learner.id.replace(':', '.')}.json"

    def state(self, train_key: str) -> Path:
        """Where an unfinished training waits; two learners never share one."""
        return cache_root() / "runs" / f"{train_key}-{self.stem}.state"


@dataclass(frozen=True)
class PlannedTest:
    """One test of one learner: one record."""

    settings: Test
    pool: ClassPool
    episodes: int
    key: str

    @property
    def label(self) -> str:
        settings, protocol = self.settings, self.settings.build()
        turned = " rotated" if self.pool.rotated else ""
        setting = f"{protocol.shot}-shot" if isinstance(protocol, KShot) else f"stream, {protocol.manner}"
        return f"{settings.way}-way {setting}{turned}"

    def sampler(self, device: str) -> EpisodeSampler:
        protocol = self.settings.build()
        return EpisodeSampler(self.pool, protocol, episode_seed=self.settings.episode_seed, device=device)


def load_split(data: DataSettings, root: Path | None) -> Split:
    """The classes of a suite's data, split as it asks; root: the data directory, if it is given."""
    return split_classes(load_dataset(data.dataset, root, data.image_size), data.split)


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON knows them (tuples become lists, and what has fields a table of them)."""
    known: dict[str, Any] = json.loads(json.dumps(options, default=asdict))
    return known


def adopted(settings: LearnerSettings, train_seed: int) -> Path | None:
    """The recorded checkpoint that a row answers with, if it names one."""
    return Path(settings.weights.replace("{seed}", str(train_seed))) if settings.weights else None


def job_seeds(settings: LearnerSettings) -> tuple[int, ...]:
    """The train seeds of a row's jobs: one job where there is nothing to train."""
    return settings.train_seeds if learner_class(settings.id).trainable else (0,)


def training_key(job: Job, split: Split) -> str:
    """What gives the weights their meaning."""
    kind = learner_class(job.learner.id)
    return record_key(
        {
            "data": split.digest,
            "learner": kind.__qualname__ if is_ours(kind) else f"{kind.__module__}:{kind.__qualname__}",
            "versions": {"learner": kind.version, "sampler": SAMPLER_VERSION, "training": TRAINING_VERSION},
            "options": plain(telling_options(kind, job.learner.options)),
            "train": None if job.weights or not kind.trainable else job.learner.train.model_dump(mode="json"),
            "train_seed": job.train_seed if kind.trainable else None,
        }
        | ({"weights": file_sha256(job.weights)} if job.weights else {})
        | ({"start_from": file_sha256(job.start_from)} if job.start_from else {})
    )


def has_own_code(settings: LearnerSettings) -> bool:
    """Whether the learner, or its backbone, is somebody's own: no version of ours tells that it changed."""
    kind = learner_class(settings.id)
    backbone = options_of(kind, settings.options).get("backbone")
    return not is_ours(kind) or (isinstance(backbone, Backbone) and backbone.own)


def planned_tests(job: Job, split: Split, train_key: str) -> Iterator[PlannedTest]:
    """The tests of a suite that the learner can answer."""
    learner = untrained(job.learner, split)
    for settings in job.suite.test:
        if learner.refusal(settings.build()):
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
            yield PlannedTest(settings, pool, episodes, key)


def fresh_learner(settings: LearnerSettings, train_seed: int, split: Split) -> Learner:
    """The learner with the weights that its seed gives, or a checkpoint that it starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(train_seed)
        way = bounds(settings.train.episodes.way)[1]
        learner = build_learner(settings.id, split.train.image_set.image_shape, way, settings.options)
    if settings.start_from:
        begin_with_network(learner, Path(settings.start_from))
    return learner


def untrained(settings: LearnerSettings, split: Split) -> Learner:
    """The learner to be asked what it answers: with the weights it is to adopt, or with any."""
    weights = adopted(settings, job_seeds(settings)[0])
    if weights:
        return load_learner(weights, options=settings.options)
    return fresh_learner(settings, 0, split)


def chosen_learners(suite: Suite, only: tuple[str, ...]) -> list[LearnerSettings]:
    """The learners to run; LearnerError for a name that the suite has not."""
    there = [settings.id for settings in suite.learner]
    for name in only:
        if name not in there:
            raise LearnerError(f"suite {suite.name} has no learner {name!r}; it has {', '.join(there)}")
    return [settings for settings in suite.learner if not only or settings.id in only]


def check_suite(suite: Suite, chosen: list[LearnerSettings], training: Split, tested: Split) -> None:
    """Raise now what would otherwise come up after hours: what cannot be built, drawn or answered."""
    shapes = [split.train.image_set.image_shape for split in (training, tested)]
    if shapes[0] != shapes[1]:
        raise RecordError(
            f"suite {suite.name} trains on images of (channel, height, width) {shapes[0]} and tests on "
            f"{shapes[1]}: give both one image_size; grey images stand beside photographs under a name "
            'with ":rgb" behind it, as "omniglot:rgb"'
        )
    for settings in chosen:
        learner_class(settings.id)  # where there is no such one, that is all there is to say
        try:
            check_learner_settings(settings, training)
            check_unseen(settings, training, tested)
            learner = untrained(settings, training)
        except LearnerError as error:
            raise LearnerError(f"learner {settings.id!r}: {error}") from error
        check_answers(suite, settings, learner)
    for test in suite.test:
        for rotated in test.rotated:
            EpisodeSampler(
                tested.test.with_rotations() if rotated else tested.test, test.build(), test.episode_seed
            )


def check_answers(suite: Suite, settings: LearnerSettings, learner: Learner) -> None:
    """Raise RecordError unless a row's learner can be asked one of the tests."""
    reasons = [learner.refusal(test.build()) for test in suite.test]
    if all(reasons):
        raise RecordError(f"suite {suite.name} has no test for {settings.id!r}: {reasons[0]}")


def check_learner_settings(settings: LearnerSettings, split: Split) -> None:
    """Raise unless the learner can be built, and answers a training and a validation episode."""
    if settings.weights:
        for seed in job_seeds(settings):
            _check_adopted(settings, seed)
        return
    if settings.start_from:
        _check_start(settings, split)
    if not learner_class(settings.id).trainable:
        fresh_learner(settings, 0, split)
        return
    candidates = settings.train.trials.candidates if settings.train.trials else ()
    for tried in (settings, *map(settings.under, candidates)):
        _check_training(tried, split)


def _check_training(settings: LearnerSettings, split: Split) -> None:
    learner = fresh_learner(settings, 0, split)
    train = settings.train
    check_askable(learner, split, train)
    if train.augment:
        train.augment.build()
    protocols = (train.episodes.build(), validation_protocol(train))
    for pool, protocol in zip(training_pools(split, train), protocols, strict=True):
        batch = EpisodeSampler(pool, protocol, 0).batch(0, 1)
        try:
            with torch.no_grad():
                learner.eval().answer(batch)
        except FewshotError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())
            raise LearnerError(
                f"{settings.id!r} cannot answer an episode of {protocol}: {type(error).__name__}: {reason}; "
                "check its options and the way it is trained for"
            ) from error
    calibration_streams(learner, split)


def check_unseen(settings: LearnerSettings, training: Split, tested: Split) -> None:
    """Raise RecordError where classes of the test are among those that the training draws, or drew."""
    for seed in job_seeds(settings):
        weights = adopted(settings, seed)
        if weights:
            trained_on = json.loads(checkpoint_facts(weights)["training"])["train_dataset"]
            names = [name for _, name, _ in read_draws(weights)]
        else:
            trained_on = training.train.image_set.name
            pools = (training.train, training.val)
            names = [pool.class_name(i) for pool in pools for i in range(len(pool))]
        test = tested.test
        seen = test.parents_among(names) if trained_on == test.image_set.name else []
        if seen:
            raise RecordError(
                f"{settings.id!r} would be tested on classes that its training draws: {len(seen)} of the "
                f"{len(test)} test classes of {trained_on}/{test.split} ({seen[0]}, ...); train and test on "
                "one split"
            )


def _check_start(settings: LearnerSettings, split: Split) -> None:
    """Raise unless a row can start from its checkpoint: it trains, on the split that the checkpoint saw."""
    assert settings.start_from is not None
    path = Path(settings.start_from)
    facts = json.loads(checkpoint_facts(path).get("training", "{}"))
    trained, here = (facts.get("train_dataset"), facts.get("train_split")), split.train.image_set.name
    if not learner_class(settings.id).trainable:
        raise LearnerError("it has nothing to train: leave out start_from")
    if trained == (None, None):
        raise LearnerError(f"{path} was not trained: begin with weights that were")
    if trained != (here, split.name):
        raise LearnerError(
            f"{path} was trained on {'/'.join(str(part) for part in trained)}, this trains on "
            f"{here}/{split.name}: start from weights of the same split"
        )
    read_draws(path)  # raises where it is missing


def _check_adopted(settings: LearnerSettings, train_seed: int) -> None:
    weights = adopted(settings, train_seed)
    assert weights is not None
    loaded = load_learner(weights, options=settings.options)
    if type(loaded) is not learner_class(settings.id):
        raise LearnerError(f"{weights} holds no {settings.id!r} but a {type(loaded).__name__}")
    # Checkpoints say their seed since adopted rows may have several.
    told = json.loads(checkpoint_facts(weights)["training"]).get("train_seed")
    if told not in (None, train_seed):
        raise LearnerError(
            f"{weights} was trained with seed {told}, the row of {settings.id!r} says {train_seed}: give "
            f"train_seeds = [{told}]"
        )
    read_draws(weights)  # raises where it is missing
