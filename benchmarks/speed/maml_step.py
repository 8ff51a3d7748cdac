"""`maml_step`: a second-order MAML step, 5-way 1-shot, 16 tasks, 1 inner step, 5 queries a class, Conv4-64.

The peer is learn2learn's MAML. It sends support and queries through the network one after the other, so batch
norm sees each by itself; ours is told to do the same (`statistics="apart"`), or the two would not compute the
same loss.
"""

import torch
from torch import nn

from benchmarks.speed.measure import Row
from benchmarks.speed.peers import Worker
from benchmarks.speed.prototypical_step import block_weights, tensors
from benchmarks.speed.setting import Place, Setting
from benchmarks.speed.steps import compare_step, operations, training_step
from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.learners.maml import Maml

PROTOCOL = KShot(5, 1, 5)
TASKS = 16
INNER_LEARNING_RATE = 0.4
TOLERANCE = 1e-5


def measure(setting: Setting) -> list[Row]:
    return [_measure(setting, place) for place in setting.places]


def maml(setting: Setting, way: int = 5) -> Maml:
    torch.manual_seed(0)
    return Maml(
        setting.images.image_shape,
        way,
        downsample="pool",
        inner_learning_rate=INNER_LEARNING_RATE,
        inner_steps=1,
        statistics="apart",
    )


def _measure(setting: Setting, place: Place) -> Row:
    place.prepare()
    learner = maml(setting)
    nn.init.normal_(learner.head.weight, std=0.1)  # from zero, as it starts, the losses would tell little
    learner.to(place.device)
    sampler = EpisodeSampler(setting.train, PROTOCOL, episode_seed=0, device=place.device)
    batch, one_task = sampler.batch(0, TASKS), sampler.batch(0, 1)
    assert isinstance(batch, KShotBatch)
    path = setting.folder / "maml.pt"
    head = {f"head.{name}": value.cpu().clone() for name, value in learner.head.state_dict().items()}
    torch.save({"weights": block_weights(learner)} | head | tensors(batch), path)
    return compare_step(
        setting,
        "maml_step",
        place,
        training_step(learner, batch),
        TASKS * operations(lambda: learner.loss(one_task).backward()),  # type: ignore[no-untyped-call]
        "learn2learn",
        lambda: Worker(
            setting.peers.interpreter("learn2learn"),
            "learn2learn_maml",
            {
                "step": str(path),
                "inner_learning_rate": INNER_LEARNING_RATE,
                "threads": place.threads,
                "device": place.device,
            },
        ),
        TOLERANCE,
    )
