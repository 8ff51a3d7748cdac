"""Peak memory of training runs: predicted before the run starts, and measured at its end.

python -m benchmarks.speed.training_memory LEARNER:BATCH ...    prints both, in bytes, a line for each run

Each run is a process of its own, on one thread: three steps and a look at the validation classes, on noise in
place of drawings, which costs the same.
"""

import hashlib
import multiprocessing
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.speed.peers import CHECKOUT
from fewshot.data.image_set import ImageSet
from fewshot.data.splits import split_by_fraction
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.config import TrainSettings
from fewshot.harness.memory import predict_training_memory
from fewshot.harness.processes import prepare_process
from fewshot.harness.train import train, training_pools, validation_protocol
from fewshot.learners.registry import build_learner

SIDE, CLASSES, DRAWERS, WAY = 28, 400, 20, 5
PROTOCOLS: dict[str, dict[str, Any]] = {
    "prototypical": {"protocol": "kshot", "way": 20, "shot": 1, "query": 5},
    "maml": {"protocol": "kshot", "way": WAY, "shot": 1, "query": 5},
    "mann": {"protocol": "stream", "way": WAY, "length": 50},
}
BATCHES = {"prototypical": (1, 4, 16), "maml": (4, 16, 64), "mann": (4, 16, 64)}


class Peak(NamedTuple):
    """Bytes resident in the process at its peak."""

    predicted: int
    measured: int


def measure(runs: Sequence[tuple[str, int]]) -> list[Peak]:
    """The peaks of training runs of (learner, batch)."""
    named = [f"{learner}:{batch}" for learner, batch in runs]
    # A process that has torch and little else, from which each run is forked.
    command = [sys.executable, "-m", "benchmarks.speed.training_memory", *named]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return [Peak(*map(int, line.split())) for line in done.stdout.splitlines()]


def run(name: str, batch: int) -> Peak:
    """The peak of one training run, of this process."""
    prepare_process(1)
    torch.manual_seed(0)
    split = split_by_fraction(_noise(), 0.6, 0.2, 0.2, split_seed=0)
    settings = TrainSettings.model_validate({"episodes": PROTOCOLS[name], "batch": batch, "steps": 3})
    learner = build_learner(name, split.train.image_set.image_shape, WAY)
    training, looked_at = training_pools(split, settings)
    predicted = predict_training_memory(
        learner,
        settings,
        EpisodeSampler(training, settings.episodes.build(), 0),
        EpisodeSampler(looked_at, validation_protocol(settings), 0),
    )
    assert predicted is not None
    train(learner, split, settings)
    return Peak(predicted, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _noise() -> ImageSet:
    return ImageSet(
        name="noise",
        images=torch.randint(0, 256, (CLASSES * DRAWERS, 1, SIDE, SIDE), dtype=torch.uint8),
        class_names=tuple(f"all/{number:03}" for number in range(CLASSES)),
        class_start=torch.arange(CLASSES + 1) * DRAWERS,
        image_names=tuple(map(str, range(CLASSES * DRAWERS))),
        source="a generator",
        licence="none",
        mean=(0.0,),
        std=(1.0,),
        digest=hashlib.sha256(b"noise").hexdigest(),
    )


if __name__ == "__main__":
    asked = [(learner, int(batch)) for learner, _, batch in (name.partition(":") for name in sys.argv[1:])]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for peak in pool.starmap(run, asked, chunksize=1):
            print(*peak)
