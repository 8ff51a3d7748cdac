"""`episodes_5w1s`, `episodes_20w5s`: episodes per second, as normalised float32 on one core.

The limit is a bare `index_select` of float32 rows with the indices given: it draws nothing, converts nothing
and turns nothing.
"""

from contextlib import ExitStack
from itertools import count

import torch

from benchmarks.speed.measure import Row, Side, interleave
from benchmarks.speed.peers import PeerError, Worker
from benchmarks.speed.setting import ONE_CORE, Setting
from benchmarks.speed.steps import timed
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler

PEERS = ("learn2learn", "torchmeta", "easyfsl")
PROTOCOLS = {"episodes_5w1s": KShot(5, 1, 15), "episodes_20w5s": KShot(20, 5, 5)}
BATCH = 32
PREPARED = 64
"""So many batches of indices are given to the bare gather, again and again."""


def measure(setting: Setting) -> list[Row]:
    return [row for name, protocol in PROTOCOLS.items() for row in _measure(setting, name, protocol)]


def _measure(setting: Setting, name: str, protocol: KShot) -> list[Row]:
    ONE_CORE.prepare()
    sampler = EpisodeSampler(setting.train, protocol, episode_seed=0)
    sides: dict[str, Side] = {"ours": our_side(sampler), "limit": limit_side(sampler)}
    absent: dict[str, str] = {}
    settings = {
        "data": setting.given_to_peers(setting.train),
        "way": protocol.way,
        "shot": protocol.shot,
        "query": protocol.query,
        "batch": BATCH,
    }
    with ExitStack() as workers:
        for peer in PEERS:
            try:
                worker = Worker(setting.peers.interpreter(peer), f"{peer}_episodes", settings)
                sides[peer] = workers.enter_context(worker)
            except PeerError as error:
                absent[peer] = f"{peer}: {error}"
        seconds = interleave(sides, setting.rounds)
    rates = {side: BATCH / taken for side, taken in seconds.items()}
    return [
        Row(
            name, str(ONE_CORE), "episodes/s", rates["ours"],
            peer, rates.get(peer), rates["limit"], absent.get(peer, ""),
        )
        for peer in PEERS
    ]  # fmt: skip


def our_side(sampler: EpisodeSampler) -> Side:
    """Batch after batch, none twice, as the training loop takes them."""
    numbers = count()
    return timed(lambda: sampler.batch(next(numbers) * BATCH, BATCH))


def limit_side(sampler: EpisodeSampler) -> Side:
    rows = sampler.pool.image_set.images.flatten(1).to(torch.float32)
    indices = [sampler.indices(i * BATCH, BATCH).images.flatten() for i in range(PREPARED)]
    numbers = count()
    return timed(lambda: rows.index_select(0, indices[next(numbers) % PREPARED]))
