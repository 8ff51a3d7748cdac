"""The only training loop: every learner, every protocol.

A run is a pure function of (data, settings, learner, train seed): episode i of training is a pure function of
i, the learning rate and a curriculum's stage are functions of the step, and torch's random state is set from
the step, so that a run that was killed and goes on ends with the same numbers as one that was not (design
decision 6). Weights are selected on validation classes; test classes are never seen here.
"""

import hashlib
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewshot.data.split import ClassPool, Split
from fewshot.episodes.batch import EpisodeBatch, StreamBatch
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.source import class_draws
from fewshot.errors import EpisodeError, LearnerError, check_kind
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import Evaluation, evaluate
from fewshot.harness.memory import check_memory
from fewshot.harness.replay import Replayed, replays
from fewshot.learners.base import Learner, check_is_learner
from fewshot.learners.image_network import ImageNetwork, image_network

TRAINING_VERSION = 1
"""Raised by hand when figures may move by this loop, its schedule, calibration or augmentation."""

CALIBRATION_EPISODES = 100
CALIBRATION_WAY, CALIBRATION_SHOWN = 5, 10  # the field's stream: five classes, ten images of each
SAVE_EVERY_SECONDS = 30.0
LOG_EVERY_STEPS = 10
_VALIDATION_SEED = 1_000_003
_WATCHED_SEED = 1_000_037
_CALIBRATION_SEED = 1_000_033


@dataclass(frozen=True)
class Progress:
    """Where a training run stands; loss in nats, accuracy a fraction, None until the first look."""

    step: int
    steps: int
    loss: float
    val_accuracy: float | None


class CurveRow(NamedTuple):
    """Where a learning curve stands: loss in nats, accuracies fractions, None where not looked at.

    val_accuracy: over validation classes, what weights are selected by; val_second: of that, at the second
    presentation of a class, in streams; train_accuracy: over training classes, where they are watched. A
    column that came later has a default: older runs go on without it.
    """

    step: int
    episodes: int
    seconds: float
    loss: float | None
    val_accuracy: float | None
    val_second: float | None = None
    train_accuracy: float | None = None


@dataclass
class TrainLog:
    """What a training run did.

    curve: a row every few steps and at each look at the validation classes.
    draws: side -> (class,) int64, how often each class of the pool was drawn.
    best_step: the step whose weights were kept; best_accuracy, best_ci95: of theirs on validation classes,
        with the half width of its 95 % interval over episodes; seconds: wall-clock time, validation included.
    devices: what it ran on, "cpu" or a GPU's name; several, in order, where it went on elsewhere.
    """

    curve: list[CurveRow] = field(default_factory=list)
    draws: dict[str, Tensor] = field(default_factory=dict)
    best_step: int = 0
    best_accuracy: float = -1.0
    seconds: float = 0.0
    best_ci95: float | None = None
    devices: list[str] = field(default_factory=list)


def train(
    learner: Learner,
    split: Split,
    settings: TrainSettings | None = None,
    *,
    train_seed: int = 0,
    state_path: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop_when: Callable[[Evaluation], bool] | None = None,
) -> TrainLog:
    """Train a learner in place; leave it calibrated, with the weights that were best on validation classes.

    state_path: a file to which the run is saved every half minute and from which it goes on if it is there;
    it is the caller's to delete. stop_when: asked after each look at the validation classes, whether that is
    enough. Raises EpisodeError where a side cannot supply the episodes, LearnerError where the learner cannot
    be asked them, where the run would not fit in memory and where the loss is no longer finite.

    On a GPU nothing in a step waits for the device: numbers are looked at every LOG_EVERY_STEPS steps only.
    """
    _check_given(learner, split)
    settings = TrainSettings() if settings is None else settings
    check_kind("settings", settings, TrainSettings, "give them as fewshot.TrainSettings(steps=1000)")
    if not learner.trainable:
        raise LearnerError(f"{type(learner).__name__} has nothing to train: use fewshot.calibrate")
    check_askable(learner, split, settings)
    device = next((p.device for p in learner.parameters()), torch.device("cpu"))
    train_pool, val_pool = training_pools(split, settings)
    augment = settings.augment.build() if settings.augment else None
    largest = EpisodeSampler(
        train_pool,
        training_protocol(settings, settings.steps - 1),
        episode_seed=train_seed,
        augment=augment,
        device=device,
    )
    looks = _looks(train_pool, val_pool, settings, device)
    calibration_streams(learner, split)  # now, not when all is done
    check_memory(learner, settings, largest, *looks.values())
    run = _Run(learner, settings, state_path, device)
    log = run.log
    here = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    for pool in (train_pool, val_pool):
        log.draws.setdefault(pool.side, torch.zeros(len(pool), dtype=torch.int64))
    looked_draws = {side: count_draws(source, settings.validate_episodes) for side, source in looks.items()}

    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, _compiled(learner, settings, device):
        began = time.perf_counter() - log.seconds
        for batch in _training_batches(largest, settings, run.step):
            torch.manual_seed(_step_seed(train_seed, run.step))
            if run.step and run.step % (settings.steps // settings.generations) == 0:
                run.begin_generation()
            loss = run.update(batch)
            if log.devices[-1:] != [here]:
                log.devices.append(here)
            run.count_draws(batch)
            run.step += 1
            validate = run.step % settings.validate_every == 0 or run.step == settings.steps
            look = run.step % LOG_EVERY_STEPS == 0
            if not (validate or look):
                continue
            shown = run.look_at(loss)
            log.seconds = time.perf_counter() - began
            accuracies: list[float | None] = [None]
            if validate:
                found = {
                    side: evaluate(learner, source, settings.validate_episodes)
                    for side, source in looks.items()
                }
                evaluation, watched = found["val"], found.get("train")
                accuracies = [evaluation.accuracy, evaluation.accuracy_by_instance.get(2)]
                accuracies.append(watched.accuracy if watched else None)
                for side, drawn in looked_draws.items():
                    log.draws[side] += drawn
                log.seconds = time.perf_counter() - began
                if evaluation.accuracy > log.best_accuracy:
                    log.best_accuracy, log.best_step = evaluation.accuracy, run.step
                    log.best_ci95 = evaluation.ci95
                    run.best = _copy(learner.state_dict())
            episodes = run.step * settings.batch
            log.curve.append(CurveRow(run.step, episodes, log.seconds, shown, *accuracies))
            run.save_if(due=validate)
            if on_progress:
                seen = log.best_accuracy if log.best_step else None
                on_progress(Progress(run.step, settings.steps, shown, seen))
            if validate and stop_when is not None and stop_when(evaluation):
                break
    learner.load_state_dict(run.best)
    calibrate(learner, split, log)
    return log


def calibrate(learner: Learner, split: Split, log: TrainLog | None = None) -> None:
    """Let a learner set what training does not, on streams over upright validation classes (never test).

    The streams are the same for every learner, so that none has an advantage. log: counts the classes drawn.
    """
    _check_given(learner, split)
    pool = split.val
    device = next((t.device for t in learner.state_dict().values()), torch.device("cpu"))
    streams = calibration_streams(learner, split)
    sampler = EpisodeSampler(pool, streams, episode_seed=_CALIBRATION_SEED, device=device)
    batch = sampler.batch(0, CALIBRATION_EPISODES)
    assert isinstance(batch, StreamBatch)
    learner.eval()
    learner.calibrate(batch)
    if log is not None:
        drawn = class_draws(batch, len(pool)).cpu()
        counts = log.draws.setdefault(pool.side, torch.zeros_like(drawn))
        counts[: len(pool)] += drawn  # upright classes come first in a pool with turned ones


def _check_given(learner: Learner, split: Split) -> None:
    check_is_learner(learner)
    check_kind("split", split, Split, "give one, as fewshot.load_dataset(name).split(name)")
    learner.check_images(split.val.image_set.image_shape)


def calibration_streams(learner: Learner, split: Split) -> Stream:
    """What a learner is calibrated on; EpisodeError where there are too few upright validation classes."""
    pool = split.val
    if len(pool) < 2:
        raise EpisodeError(
            f"the split {split.name} of {pool.image_set.name} has {len(pool)} upright class for validation, "
            "where there is nothing to tell apart: choose a split with two or more"
        )
    way = learner.way if learner.fixed_way else min(CALIBRATION_WAY, len(pool))
    shown = min(CALIBRATION_SHOWN, int(pool.images_per_class.min()))
    if way > len(pool):
        raise EpisodeError(
            f"{type(learner).__name__} is built for {way} classes, and the split {split.name} of "
            f"{pool.image_set.name} has {len(pool)} upright ones for validation: lower way to {len(pool)}, "
            "or choose a split with more"
        )
    return Stream(way, way * shown, "exact", labels=learner.labels)


def check_askable(learner: Learner, split: Split, settings: TrainSettings) -> None:
    """Raise LearnerError unless the episodes of training and of validation can be put to the learner, and
    EpisodeError for windows of images that are larger than these.
    """
    classes = len(training_pools(split, settings)[0])
    if learner.classes is not None and classes > learner.classes:
        raise LearnerError(
            f"{type(learner).__name__} tells {learner.classes} training classes apart, and there are "
            f"{classes}{' with the turned ones' if settings.rotations else ''}: set its option classes to "
            f"{classes}"
        )
    if settings.curriculum and learner.fixed_way:
        raise LearnerError(
            f"{type(learner).__name__} answers only {learner.way}-way episodes and cannot grow with a "
            'curriculum: leave it out, or train one with the option labels = "string"'
        )
    if settings.generations > 1:
        image_network(learner)  # raises where it has none, of which a generation could be
    if settings.augment and (crop := settings.augment.crop):
        if learner.smallest_window is None:
            raise LearnerError(
                f"{type(learner).__name__} reads whole images and cannot be trained on windows of them: "
                "leave out augment's crop, or choose convolutions with averaged = true or a ResNet"
            )
        if crop < learner.smallest_window:
            raise LearnerError(
                f"{type(learner).__name__} can be trained on windows of {learner.smallest_window} pixels and "
                f"more; got crop {crop}: raise it"
            )
        settings.augment.build().check_fits(split.train.image_set.image_shape)
    for protocol in (settings.episodes.build(), validation_protocol(settings)):
        if reason := learner.refusal(protocol):
            raise LearnerError(reason)


def training_pools(split: Split, settings: TrainSettings) -> tuple[ClassPool, ClassPool]:
    """The classes that training draws from, and those that it is validated on."""
    if settings.rotations:
        return split.train.with_rotations(), split.val.with_rotations()
    return split.train, split.val


def training_protocol(settings: TrainSettings, step: int) -> Protocol:
    """The protocol of a step's episodes; where shapes vary, in blocks of one batch, which has one shape."""
    protocol = settings.episodes.build()
    if isinstance(protocol, KShot):
        return replace(protocol, block=settings.batch)
    if settings.curriculum is None:
        return protocol
    way = min(settings.curriculum.first_way + step // settings.curriculum.every, protocol.way)
    return replace(protocol, way=way, length=protocol.length // protocol.way * way)


def validation_protocol(settings: TrainSettings) -> Protocol:
    """The protocol that weights are selected by."""
    return (settings.validate_on or settings.episodes).build()


def draw_rows(log: TrainLog, split: Split, settings: TrainSettings) -> list[tuple[str, str, int]]:
    """The audit log: (side, class name, draws) of every class drawn."""
    return [
        (pool.side, pool.class_name(i), draws)
        for pool in training_pools(split, settings)
        for i, draws in enumerate(log.draws.get(pool.side, torch.zeros(0)).tolist())
        if draws
    ]


def draws_digest(rows: list[tuple[str, str, int]]) -> str:
    """SHA-256 over the audit log."""
    return hashlib.sha256(
        "\n".join(f"{side} {name} {draws}" for side, name, draws in rows).encode()
    ).hexdigest()


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The learning rate of a step: a function of the step alone, so that nothing has to be resumed."""
    if settings.schedule == "constant":
        return settings.learning_rate
    floor = 0.01
    generation = settings.steps // settings.generations
    began = min(step // generation, settings.generations - 1) * generation
    fall = 0.5 * (1 + math.cos(math.pi * (step - began) / generation))
    return settings.learning_rate * (floor + (1 - floor) * fall)


@contextmanager
def _compiled(learner: Learner, settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Have the networks of a learner compiled meanwhile, where that is asked for and can be."""
    wanted = settings.compiled and device.type == "cuda"
    with ExitStack() as stack:
        for module in learner.modules() if wanted else ():
            if isinstance(module, ImageNetwork):
                stack.enter_context(module.compiled())
        yield


class _Run:
    """The state of a run between two steps, and its file."""

    def __init__(
        self, learner: Learner, settings: TrainSettings, path: Path | None, device: torch.device
    ) -> None:
        self.learner = learner
        self.settings = settings
        self.path = path
        self.step = 0
        self.log = TrainLog()
        self.first = self.best = _copy(learner.state_dict())
        self.optimizer = make_optimizer(learner, settings)
        self.replays = replays(learner, settings, device)
        self.saved_at = time.perf_counter()
        # What is only looked at now and then stays on the device until then.
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.drawn: list[Tensor] = []
        if path and path.exists():
            self._load(path)
        self._prepare_updates()

    def _prepare_updates(self) -> None:
        """For a fresh or a loaded optimiser: where updates are replayed, its learning rate is a tensor.

        A state that was saved by such a run goes on without, on a CPU, and the other way round.
        """
        self.take: Callable[[EpisodeBatch], Tensor] = Replayed(self._update) if self.replays else self._update
        for group in self.optimizer.param_groups:
            group["capturable"] = self.replays
            if self.replays:
                group["lr"] = torch.zeros((), device=self.finite.device)

    def begin_generation(self) -> None:
        """Keep the network of images; all else of the learner, and the optimiser, are as at first."""
        network = image_network(self.learner)
        kept = _copy(network.state_dict())
        self.learner.load_state_dict(self.first)
        network.load_state_dict(kept)
        self.optimizer = make_optimizer(self.learner, self.settings)
        self._prepare_updates()

    def update(self, batch: EpisodeBatch) -> Tensor:
        """One optimiser step; returns the loss."""
        rate = learning_rate(self.settings, self.step)
        for group in self.optimizer.param_groups:
            if self.replays:
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self.learner.train()
        return self.take(batch)

    def _update(self, batch: EpisodeBatch) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.learner.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip_norm)
        self.finite &= torch.isfinite(norm)
        self.optimizer.step()
        return loss.detach()

    def count_draws(self, batch: EpisodeBatch) -> None:
        """Take down which training classes took part."""
        self.drawn.append(batch.class_ids)

    def look_at(self, loss: Tensor) -> float:
        """The loss as a number, and the draws into the log; raises LearnerError where training diverged."""
        classes = self.log.draws["train"]
        classes += torch.bincount(
            torch.cat([ids.flatten() for ids in self.drawn]).cpu(), minlength=len(classes)
        )
        self.drawn.clear()
        shown = float(loss)
        if not self.finite:
            raise LearnerError(
                f"training of {type(self.learner).__name__} diverged by step {self.step} (loss {shown:g}): "
                "lower learning_rate or clip_norm"
            )
        return shown

    def save_if(self, due: bool) -> None:
        """Save the run where there is a file for it, and it is due or half a minute has passed."""
        if self.path is None or not (due or time.perf_counter() - self.saved_at > SAVE_EVERY_SECONDS):
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.part")
        state = {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            # Plain rows: a file of weights and numbers is read without trusting it.
            "log": asdict(self.log) | {"curve": [tuple(row) for row in self.log.curve]},
        }
        if self.settings.generations > 1:
            state["first"] = self.first
        torch.save(state, temporary)
        temporary.replace(self.path)
        self.saved_at = time.perf_counter()

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, weights_only=True, map_location=self.finite.device)
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, KeyError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LearnerError(f"cannot go on from {path} ({reason}): delete it to train afresh") from None
        draws = {side: drawn.cpu() for side, drawn in state["log"]["draws"].items()}
        curve = [CurveRow(*row) for row in state["log"]["curve"]]
        self.log = TrainLog(**state["log"] | {"draws": draws, "curve": curve})
        self.step, self.best, self.first = state["step"], state["best"], state.get("first", self.first)


def make_optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """What takes the steps of a run."""
    parameters = list(network.parameters())
    shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, fused=True, **shared)
        case "sgd":
            return torch.optim.SGD(parameters, momentum=0.9, nesterov=True, fused=True, **shared)
        case "rmsprop":  # Santoro et al. 2016, as far as their settings are known
            return torch.optim.RMSprop(parameters, alpha=0.95, momentum=0.9, **shared)


def _training_batches(
    largest: EpisodeSampler, settings: TrainSettings, first_step: int
) -> Iterator[EpisodeBatch]:
    """The batches of all steps from one on; largest: where those of a curriculum's last stage come from."""
    steps = range(first_step, settings.steps)
    for protocol, stage in groupby(steps, lambda step: training_protocol(settings, step)):
        source = largest.under(protocol)
        yield from source.ahead((step * settings.batch, settings.batch) for step in stage)


def _looks(
    train_pool: ClassPool, val_pool: ClassPool, settings: TrainSettings, device: torch.device
) -> dict[str, EpisodeSampler]:
    """What is looked at now and then, by side: validation classes; training classes if they are watched."""
    protocol = validation_protocol(settings)
    looks = {"val": EpisodeSampler(val_pool, protocol, _VALIDATION_SEED, device=device)}
    if settings.watch_training:
        looks["train"] = EpisodeSampler(train_pool, protocol, _WATCHED_SEED, device=device)
    return looks


def count_draws(source: EpisodeSampler, episodes: int) -> Tensor:
    """(class,) int64: in how many of the source's first episodes each class of its pool takes part."""
    drawn = (source.indices(*span) for span in source.spans(0, episodes, episodes))
    return torch.stack([class_draws(part, len(source.pool)) for part in drawn]).sum(0).cpu()


def _step_seed(train_seed: int, step: int) -> int:
    text = f"{train_seed} {step}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}
