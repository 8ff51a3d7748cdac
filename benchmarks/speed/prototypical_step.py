"""`prototypical_step`: a training step of a prototypical network, Conv4-64, 20-way 1-shot 5-query.

The peer is the plain loop, as one would write it: `peer_worker.plain_prototypical`.
"""

import sys
from pathlib import Path

import torch

from benchmarks.speed.measure import Row
from benchmarks.speed.peers import Worker
from benchmarks.speed.setting import Place, Setting
from benchmarks.speed.steps import compare_step, operations, training_step
from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.learners.base import Learner
from fewshot.learners.prototypical import Prototypical

PROTOCOL = KShot(20, 1, 5)
TOLERANCE = 1e-4


def measure(setting: Setting) -> list[Row]:
    return [_measure(setting, place) for place in setting.places]


def _measure(setting: Setting, place: Place) -> Row:
    place.prepare()
    torch.manual_seed(0)
    learner = Prototypical(setting.images.image_shape, way=20).to(place.device)
    batch = EpisodeSampler(setting.train, PROTOCOL, episode_seed=0, device=place.device).batch(0, 1)
    assert isinstance(batch, KShotBatch)
    path = setting.folder / "prototypical.pt"
    torch.save({"weights": block_weights(learner)} | tensors(batch, episode=0), path)
    return compare_step(
        setting,
        "prototypical_step",
        place,
        training_step(learner, batch),
        operations(lambda: learner.loss(batch).backward()),  # type: ignore[no-untyped-call]
        "plain loop",
        lambda: Worker(
            Path(sys.executable),
            "plain_prototypical",
            {"step": str(path), "threads": place.threads, "device": place.device},
        ),
        TOLERANCE,
    )


def block_weights(learner: Learner) -> dict[str, torch.Tensor]:
    """The weights of a learner's `ConvBackbone`, by their names inside its blocks."""
    prefix = "backbone.blocks."
    return {
        name.removeprefix(prefix): value.cpu().clone()
        for name, value in learner.state_dict().items()
        if name.startswith(prefix)
    }


def tensors(batch: KShotBatch, episode: int | None = None) -> dict[str, torch.Tensor]:
    """A batch, or one episode of it, as a peer reads it."""
    parts = {
        "support_images": batch.support.images,
        "support_labels": batch.support.labels,
        "query_images": batch.query_images,
        "query_labels": batch.query_labels,
    }
    chosen = slice(None) if episode is None else episode
    return {name: part[chosen].cpu().clone() for name, part in parts.items()}
