"""What a training step costs on one core against way, shot, length, slots and batch; and against cores."""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.speed.lrua_step import BATCH, LENGTH, WAY, lrua_step
from benchmarks.speed.maml_step import maml
from benchmarks.speed.measure import Rounds, Side, interleave
from benchmarks.speed.setting import Place, Setting, available_cores
from benchmarks.speed.steps import timed, training_step
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.learners.mann import Mann
from fewshot.learners.prototypical import Prototypical

Axis = Literal["way", "shot", "length", "slots", "batch", "cores"]
Step = Callable[[], Tensor]

QUERY = 5
TASKS = 4
"""Of a MAML step whose way or shot varies."""

HELD = {
    "way": f"1-shot, {QUERY} queries a class; prototypical: 1 episode, MAML: {TASKS} tasks",
    "shot": f"5-way, {QUERY} queries a class; prototypical: 1 episode, MAML: {TASKS} tasks",
    "length": f"{WAY}-way streams, batch of {BATCH}, raw 20×20 pixels",
    "slots": f"{WAY}-way streams of {LENGTH}, batch of {BATCH}, raw 20×20 pixels; words of 40, 4 heads",
    "batch": f"5-way 1-shot, {QUERY} queries a class; LRUA: streams of {LENGTH}",
    "cores": f"5-way 1-shot, {QUERY} queries a class, batch of 16; LRUA: streams of {LENGTH}",
}


@dataclass(frozen=True)
class Cost:
    """method: as in the plot's legend; milliseconds: of one training step where the axis has this value."""

    axis: Axis
    value: int
    method: str
    milliseconds: float


def measure(setting: Setting) -> list[Cost]:
    """The median of interleaved rounds: all values of an axis and a method take turns."""
    rounds = Rounds(1, 0.05) if setting.quick else Rounds(3, 0.2)
    costs = []
    for axis, method, values, make in _curves(setting):
        if setting.quick and axis != "cores":
            values = values[::2]
        sides = {str(value): _on_cores(make(value), value if axis == "cores" else 1) for value in values}
        seconds = interleave(sides, rounds)
        costs += [Cost(axis, int(value), method, 1e3 * taken) for value, taken in seconds.items()]
    return costs


def _on_cores(step: Step, threads: int) -> Side:
    work = timed(step)

    def side(count: int) -> float:
        Place("cpu", threads).prepare()
        return work(count)

    return side


def _curves(setting: Setting) -> Iterator[tuple[Axis, str, tuple[int, ...], Callable[[int], Step]]]:
    prototypical, gradient = partial(_prototypical_step, setting), partial(_maml_step, setting)
    memory = partial(lrua_step, setting)
    ways, shots, batches = (5, 10, 20, 40), (1, 2, 5, 10), (1, 2, 4, 8, 16, 32)
    sizes = (64, 128, 256, 512, 1024, 2048, 4096)
    cores = tuple(2**i for i in range(available_cores().bit_length()))
    yield "way", "prototypical", ways, lambda way: prototypical(way, 1, 1)
    yield "way", "maml", ways, lambda way: gradient(way, 1, TASKS)
    yield "shot", "prototypical", shots, lambda shot: prototypical(5, shot, 1)
    yield "shot", "maml", shots, lambda shot: gradient(5, shot, TASKS)
    yield "length", "mann_paper", (10, 25, 50, 75, 100), lambda length: memory(length=length)
    yield "slots", "mann", sizes, lambda slots: memory(partial(Mann, widths=(), num_slots=slots))
    yield "batch", "prototypical", batches, lambda batch: prototypical(5, 1, batch)
    yield "batch", "maml", batches, lambda batch: gradient(5, 1, batch)
    yield "batch", "mann_paper", batches, lambda batch: memory(batch=batch)
    yield "cores", "prototypical", cores, lambda _: prototypical(5, 1, 16)
    yield "cores", "maml", cores, lambda _: gradient(5, 1, 16)
    yield "cores", "mann_paper", cores, lambda _: memory()


def _prototypical_step(setting: Setting, way: int, shot: int, batch: int) -> Step:
    torch.manual_seed(0)
    sampler = EpisodeSampler(setting.train, KShot(way, shot, QUERY), episode_seed=0)
    return training_step(Prototypical(setting.images.image_shape, way), sampler.batch(0, batch))


def _maml_step(setting: Setting, way: int, shot: int, tasks: int) -> Step:
    sampler = EpisodeSampler(setting.train, KShot(way, shot, QUERY), episode_seed=0)
    return training_step(maml(setting, way), sampler.batch(0, tasks))


def to_csv(costs: list[Cost]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("axis", "value", "method", "milliseconds"))
    writer.writerows((cost.axis, cost.value, cost.method, f"{cost.milliseconds:.4g}") for cost in costs)
    return stream.getvalue()
