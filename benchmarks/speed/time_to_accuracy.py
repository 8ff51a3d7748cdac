"""`time_to_828_mann`, `time_to_95_mann`, `time_to_975_prototypical`: seconds of training to an accuracy.

On real Omniglot. 82.8 % at the second presentation is what Santoro et al. 2016 print after 100,000 episodes.

The clock runs until validation classes read what `stop_at` says, looks at them included; the test classes are
asked once, at the end, and what they say stands in the note. Training and validation classes are turned too;
the figure that a measure is named after is that of the upright test classes.
"""

import time
from dataclasses import dataclass

import torch

from benchmarks.speed.measure import Row
from benchmarks.speed.setting import Place, Setting, available_cores
from fewshot.data.catalogue import load_dataset
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import DataError
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import Evaluation, evaluate
from fewshot.harness.job import Update
from fewshot.harness.progress import show_updates
from fewshot.harness.train import Progress, train
from fewshot.learners.registry import build_learner

TEST_EPISODES = 1000
WAY = 5


@dataclass(frozen=True)
class Goal:
    """Which learner is to reach what: `presentation` of a stream, or None for K-shot."""

    measure: str
    learner: str
    options: dict[str, object]
    split: str
    image_size: int
    presentation: int | None
    stop_at: float
    train: TrainSettings

    def accuracy(self, evaluation: Evaluation) -> float:
        if self.presentation is None:
            return evaluation.accuracy
        return evaluation.accuracy_by_instance[self.presentation]


GOALS = (
    Goal(
        measure="time_to_828_mann",
        learner="mann",
        options={"widths": (64, 64, 64), "embedding_size": 128, "metric_weight": 1.0},
        split="santoro",
        image_size=20,
        presentation=2,
        stop_at=0.84,
        train=TrainSettings.model_validate(
            {
                "episodes": {"protocol": "stream", "way": WAY, "length": 50, "counts": "exact"},
                "batch": 16,
                "steps": 1000,
                "learning_rate": 2e-3,
                "augment": {"angle_degrees": 11.25, "shift": 0.07},
                "validate_every": 25,
                "validate_episodes": 200,
            }
        ),
    ),
    Goal(
        measure="time_to_95_mann",
        learner="mann",
        options={"widths": (64, 64, 64), "embedding_size": 128},
        split="santoro",
        image_size=20,
        presentation=2,
        stop_at=0.955,
        train=TrainSettings.model_validate(
            {
                "episodes": {"protocol": "stream", "way": WAY, "length": 50, "counts": "exact"},
                "batch": 16,
                "steps": 1800,
                "learning_rate": 2e-3,
                "augment": {"angle_degrees": 11.25, "shift": 0.07},
                "validate_every": 100,
                "validate_episodes": 400,
            }
        ),
    ),
    Goal(
        measure="time_to_975_prototypical",
        learner="prototypical",
        options={},
        split="vinyals",
        image_size=28,
        presentation=None,
        # The validation classes of this split are easier than its test classes, by about a point.
        stop_at=0.987,
        train=TrainSettings.model_validate(
            {
                "episodes": {"protocol": "kshot", "way": 60, "shot": 1, "query": 2},
                "batch": 1,
                "steps": 3500,
                "learning_rate": 2e-3,
                "validate_every": 100,
                "validate_episodes": 400,
                "validate_on": {"protocol": "kshot", "way": WAY, "shot": 1, "query": 15},
            }
        ),
    ),
)


def measure(setting: Setting) -> list[Row]:
    place = Place("cuda") if torch.cuda.is_available() else Place("cpu", min(2, available_cores()))
    return [reach(goal, place, quick=setting.quick) for goal in GOALS]


def reach(goal: Goal, place: Place, *, quick: bool = False) -> Row:
    """Train towards a goal; without a figure where validation never reads it, and the note says why."""
    if quick:
        return Row(goal.measure, str(place), "s", note="left out by --quick")
    try:
        split = load_dataset("omniglot", image_size=goal.image_size).split(goal.split)
    except DataError:
        return Row(goal.measure, str(place), "s", note="needs real Omniglot: `fewshot data get omniglot`")
    place.prepare()
    torch.manual_seed(0)
    learner = build_learner(goal.learner, (1, goal.image_size, goal.image_size), WAY, goal.options)
    learner.to(place.device)
    looks: list[tuple[float, float]] = []
    began = time.perf_counter()

    def enough(evaluation: Evaluation) -> bool:
        looks.append((time.perf_counter() - began, goal.accuracy(evaluation)))
        return looks[-1][1] >= goal.stop_at

    with show_updates() as show:

        def report(progress: Progress) -> None:
            read = f"validation {100 * looks[-1][1]:.1f} %" if looks else ""
            show(Update(goal.measure, "training", progress.step, progress.steps, read))

        log = train(learner, split, goal.train, stop_when=enough, on_progress=report)
    seconds, read = looks[-1]
    protocol = (goal.train.validate_on or goal.train.episodes).build()
    tested = []
    for pool in (split.test, split.test.with_rotations()):
        sampler = EpisodeSampler(pool, protocol, episode_seed=0, device=place.device)
        tested.append(100 * goal.accuracy(evaluate(learner, sampler, TEST_EPISODES)))
    reached = read >= goal.stop_at
    note = (
        f"{goal.split} {goal.image_size}x{goal.image_size}, {log.curve[-1][0]:,} steps; validation "
        f"{'reached' if reached else 'got to'} {100 * read:.1f} % in {seconds:.0f} s (stops at "
        f"{100 * goal.stop_at:.1f}); {TEST_EPISODES:,} test episodes: upright classes {tested[0]:.1f} %, "
        f"with turned ones {tested[1]:.1f} %"
    )
    return Row(goal.measure, str(place), "s", ours=seconds if reached else None, note=note)
