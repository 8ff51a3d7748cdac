"""Episodes per second, and how far they are from what memory bandwidth allows, in one run on one thread.

The limit is a bare `index_select` of float32 rows with the indices given: it draws nothing, converts nothing
and turns nothing. Synthetic pixels of Omniglot's size, so that nothing has to be downloaded.
"""

import statistics
import time
from collections.abc import Callable

import torch

from fewshot.data.image_set import ImageSet
from fewshot.data.split import ClassPool
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler

CLASSES, DRAWERS, SIDE, BATCH, ROUNDS = 1028, 20, 28, 32, 7


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pool = synthetic_pool()
    print(f"torch {torch.__version__}, 1 thread, batches of {BATCH}, median of {ROUNDS} interleaved rounds")
    print(f"{'episodes':<34}{'ours/s':>10}{'limit/s':>10}{'ours/limit':>12}")
    settings: tuple[tuple[str, ClassPool, Protocol], ...] = (
        ("5-way 1-shot 15-query", pool, KShot(5, 1, 15)),
        ("5-way 1-shot 15-query, rotated", pool.with_rotations(), KShot(5, 1, 15)),
        ("20-way 5-shot 5-query", pool, KShot(20, 5, 5)),
        ("stream of 50, rotated", pool.with_rotations(), Stream()),
    )
    for name, classes, protocol in settings:
        ours, limit = compare(EpisodeSampler(classes, protocol, 0))
        print(f"{name:<34}{ours:>10,.0f}{limit:>10,.0f}{ours / limit:>12.2f}")


def synthetic_pool() -> ClassPool:
    """Noise in place of drawings: the cost is the same."""
    images = torch.randint(0, 256, (CLASSES * DRAWERS, 1, SIDE, SIDE), dtype=torch.uint8)
    image_set = ImageSet(
        name="noise",
        images=images,
        class_names=tuple(f"group{c // 20}/class{c}" for c in range(CLASSES)),
        class_start=torch.arange(CLASSES + 1) * DRAWERS,
        image_names=tuple(map(str, range(len(images)))),
        source="noise",
        licence="none",
        mean=(0.0,),
        std=(1.0,),
        digest="noise",
    )
    return ClassPool(
        image_set, "all", "train", torch.arange(CLASSES), torch.zeros(CLASSES, dtype=torch.int64)
    )


def compare(sampler: EpisodeSampler) -> tuple[float, float]:
    """Episodes per second: ours, and of the bare gather."""
    rows = sampler.pool.image_set.images.flatten(1).float()
    indices = [sampler.indices(i * BATCH, BATCH).images.flatten() for i in range(8)]
    ours, limit = [], []
    for round_ in range(ROUNDS):
        ours.append(per_second(lambda i, first=8 * round_: sampler.batch((first + i) * BATCH, BATCH)))
        limit.append(per_second(lambda i: rows.index_select(0, indices[i])))
    return statistics.median(ours), statistics.median(limit)


def per_second(make: Callable[[int], object]) -> float:
    began = time.perf_counter()
    for i in range(8):
        make(i)
    return 8 * BATCH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
