"""`evaluate_10k`: seconds for 10,000 prototypical test episodes, 5-way 1-shot 15-query, on one core.

The peer is easyfsl's `evaluate` with its `PrototypicalNetworks` and the same weights. Its time grows with the
number of episodes, so it is timed on a few hundred and scaled; both accuracies are of the same episodes. The
limit is the arithmetic of sending each test image through the network once, at the rate of a large matrix
product measured in the same rounds.
"""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.measure import Rounds, Row, interleave
from benchmarks.speed.peers import PeerError, Worker
from benchmarks.speed.prototypical_step import block_weights
from benchmarks.speed.setting import ONE_CORE, Setting, pool_rows
from benchmarks.speed.steps import matrix_product, operations
from fewshot.data.split import ClassPool
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.checkpoint import load_learner
from fewshot.harness.evaluate import evaluate
from fewshot.learners.prototypical import Prototypical

WAY, SHOT, QUERY = 5, 1, 15
EPISODES = 10_000
PEER = "easyfsl"


def measure(setting: Setting) -> list[Row]:
    ONE_CORE.prepare()
    torch.manual_seed(0)
    learner = load_learner(setting.checkpoint("prototypical"), "prototypical")
    assert isinstance(learner, Prototypical)
    sampler = EpisodeSampler(setting.test, KShot(WAY, SHOT, QUERY), episode_seed=0)
    asked = 50 if setting.quick else 300

    def ours(count: int) -> float:
        """One piece of work is all the episodes: fewer would leave out what is done once."""
        began = time.perf_counter()
        for _ in range(count):
            evaluate(learner, sampler, EPISODES)
        return time.perf_counter() - began

    product, product_flops = matrix_product(ONE_CORE.device)
    sides = {"ours": ours, "limit": product}
    with torch.no_grad():
        one_image = torch.zeros(1, *learner.image_shape)
        flops = len(pool_rows(setting.test)) * operations(lambda: learner.backbone(one_image))
    rounds = Rounds(1 if setting.quick else 3, setting.rounds.seconds)
    try:
        weights = setting.folder / "evaluate.pt"
        torch.save(block_weights(learner), weights)
        rows = setting.folder / "evaluate-rows.npy"
        np.save(rows, class_by_class(sampler, setting.test, asked, WAY))
        with Worker(
            setting.peers.interpreter(PEER),
            "easyfsl_evaluate",
            {
                "data": setting.given_to_peers(setting.test),
                "weights": str(weights),
                "rows": str(rows),
                "way": WAY,
                "shot": SHOT,
                "query": QUERY,
            },
        ) as worker:
            accuracies = evaluate(learner, sampler, asked).accuracy, float(worker.facts["accuracy"])
            seconds = interleave(sides | {"peer": lambda count: worker(count * asked)}, rounds)
        note = (
            f"{PEER}'s seconds are scaled from rounds of {asked} episodes; accuracy on the same {asked}: "
            f"ours {accuracies[0]:.2%}, {PEER} {accuracies[1]:.2%}"
        )
    except PeerError as error:
        seconds, note = interleave(sides, rounds), f"{PEER}: {error}"
    return [
        Row(
            "evaluate_10k",
            str(ONE_CORE),
            "s",
            ours=seconds["ours"],
            peer=PEER,
            peer_value=EPISODES / asked * seconds["peer"] if "peer" in seconds else None,
            limit=flops * seconds["limit"] / product_flops,
            note=note,
        )
    ]


def class_by_class(sampler: EpisodeSampler, pool: ClassPool, episodes: int, way: int) -> NDArray[np.int64]:
    """The first episodes as rows among the pool's images: (episode, way, shot + query), support first."""
    indices = sampler.indices(0, episodes)
    rows = pool_rows(pool)
    in_pool = torch.zeros(len(pool.image_set.images), dtype=torch.int64)
    in_pool[rows] = torch.arange(len(rows))
    parts = []
    for part in (slice(0, indices.support), slice(indices.support, None)):
        by_label = indices.labels[:, part].argsort(dim=1, stable=True)
        images = in_pool[indices.images[:, part].gather(1, by_label)]
        parts.append(images.view(episodes, way, -1))
    return torch.cat(parts, dim=2).numpy()
