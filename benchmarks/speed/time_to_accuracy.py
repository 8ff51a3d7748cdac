"""`time_to_95_mann`, `time_to_975_prototypical`: seconds of training to an accuracy, on real Omniglot, two cores.

The clock runs from the first step until the validation classes say that the accuracy is reached, looks at
them included; then the weights are confirmed once on the test classes. Training is that of the recorded
suite, but for how often it looks.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.speed.measure import Row
from benchmarks.speed.peers import CHECKOUT
from benchmarks.speed.setting import Place, Setting, available_cores
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.config import read_suite
from fewshot.harness.evaluate import Evaluation, evaluate
from fewshot.harness.train import train
from fewshot.learners.registry import build_learner

SUITE = "benchmarks/omniglot_first.toml"
WAY = 5
LOOK_EVERY_STEPS = 100
PATIENCE_SECONDS = 330.0
TEST_EPISODES = 1000


class Goal(NamedTuple):
    """accuracy: what is to reach the target, of an evaluation under the protocol."""

    measure: str
    learner: str
    protocol: Protocol
    accuracy: Callable[[Evaluation], float]
    target: float


GOALS = (
    Goal("time_to_95_mann", "mann", Stream(WAY, 50), lambda found: found.accuracy_by_instance[2], 0.95),
    Goal("time_to_975_prototypical", "prototypical", KShot(WAY, 1, 15), lambda found: found.accuracy, 0.975),
)


def measure(setting: Setting) -> list[Row]:
    place = Place("cpu", min(2, available_cores()))
    reason = None
    if setting.quick:
        reason = "left out by --quick"
    elif setting.images.name != "omniglot":
        reason = "needs real Omniglot: `fewshot data get omniglot`"
    if reason:
        return [Row(goal.measure, str(place), "s", note=reason) for goal in GOALS]
    return [_measure(setting, goal, place) for goal in GOALS]


def _measure(setting: Setting, goal: Goal, place: Place) -> Row:
    place.prepare()
    suite = read_suite(CHECKOUT / SUITE)
    (configured,) = (learner for learner in suite.learner if learner.id == goal.learner)
    settings = configured.train.model_copy(update={"validate_every": LOOK_EVERY_STEPS})
    torch.manual_seed(0)
    learner = build_learner(goal.learner, setting.images.image_shape, WAY, configured.options)
    began, seen = time.monotonic(), 0.0

    def enough(found: Evaluation) -> bool:
        nonlocal seen
        seen = goal.accuracy(found)
        return seen >= goal.target or time.monotonic() - began > PATIENCE_SECONDS

    log = train(learner, setting.images.split(setting.split), settings, stop_when=enough)
    sampler = EpisodeSampler(setting.test, goal.protocol, episode_seed=0)
    tested = goal.accuracy(evaluate(learner, sampler, TEST_EPISODES))
    last_step = log.curve[-1][0]
    note = f"validation {seen:.2%} after {last_step:,} steps, test {tested:.2%} ({TEST_EPISODES:,} episodes)"
    if seen < goal.target:
        return Row(goal.measure, str(place), "s", note=f"not reached in {log.seconds:.0f} s: {note}")
    return Row(goal.measure, str(place), "s", log.seconds, note=note)
