"""Episodes drawn by the kernel in `draw.c`: a microsecond each, where plain torch's many small operations
take twenty. The numbers are the same; `fewshot.episodes.sampler` says what they mean."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.kernels.native import call, empty, library


class PoolTables(NamedTuple):
    """What the drawing needs to know of a pool; contiguous int64 tensors on the CPU.

    first_image, images_per_class, turns: (class,). by_group: (class,), classes side by side with their
    group's others; group_start, group_size: (group,), where each group begins among them and how many it has.
    """

    first_image: Tensor
    images_per_class: Tensor
    turns: Tensor
    by_group: Tensor
    group_start: Tensor
    group_size: Tensor


class EpisodeShape(NamedTuple):
    """way classes and `shown` images, of which the first `support` are the support set (0 in a stream).

    draws: the most images that a class may need; independent: whether each step of a stream draws its class
    by itself.
    """

    way: int
    shown: int
    support: int
    draws: int
    independent: bool = False


class Drawn(NamedTuple):
    """class_ids: (episode, way); images, turns, labels: (episode, shown); int64, as in `EpisodeIndices`."""

    class_ids: Tensor
    images: Tensor
    turns: Tensor
    labels: Tensor


def draw_episodes(
    start: int,
    count: int,
    shape: EpisodeShape,
    tables: PoolTables,
    choices: Tensor | None,
    keys: tuple[int, int, int],
) -> Drawn | None:
    """Episodes start..start+count-1, or None where there is no kernel. The pool must suffice for them.

    choices: int64, the groups of which one is drawn for an episode's classes, equally often; None where they
    come from the whole pool. keys: int64, of the hashes that draw classes, images and order.
    """
    if library("draw") is None:
        return None
    widths = (shape.way, shape.shown, shape.shown, shape.shown)
    drawn = Drawn(*(empty(count, width, dtype=torch.int64) for width in widths))
    groups = (None,) * 4 if choices is None else (*tables[3:], choices)
    sizes = (len(tables.turns), 0 if choices is None else len(choices), *shape)
    call("draw", "draw_episodes", start, count, *tables[:3], *groups, *sizes, *keys, *drawn)
    return drawn
