"""An update of a learner recorded once on a GPU and replayed after that: a CUDA graph.

A learner that adapts its weights does hundreds of small operations in an update, and the device waits for
Python to ask for each. Recorded, they are asked for at once. What is replayed is what was done while
recording, on the same memory: so a recording is of one shape of batches, reads its batch from where it lay
then, and everything that changes from one update to the next (weights, statistics, the learning rate) is a
tensor changed in place.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, with_each
from fewshot.episodes.protocol import KShot
from fewshot.errors import LearnerError
from fewshot.harness.config import TrainSettings
from fewshot.learners.base import Learner
from fewshot.learners.image_network import ImageNetwork

USUAL_FIRST = 3
"""So many updates of a shape are done as usual, in which libraries choose how to go about it and the
optimiser makes what it remembers."""

Shape = tuple[tuple[torch.Size, torch.dtype], ...]


def replays(learner: Learner, settings: TrainSettings, device: torch.device) -> bool:
    """Whether the updates of a training are recorded and replayed."""
    networks = (module for module in learner.modules() if isinstance(module, ImageNetwork))
    steady = learner.steady and all(network.steady for network in networks)
    kshot = isinstance(settings.episodes.build(), KShot)
    return settings.compiled and device.type == "cuda" and steady and kshot


class Recording(NamedTuple):
    """batch: where the next one is to be laid; loss: where that of the last one lies."""

    graph: torch.cuda.CUDAGraph
    batch: EpisodeBatch
    loss: Tensor


class Replayed:
    """An update that gives the same as `update`, of a learner that is steady.

    Each shape of batches has a recording of its own; all use the same memory.
    """

    def __init__(self, update: Callable[[EpisodeBatch], Tensor]) -> None:
        self.update = update
        self.recordings: dict[Shape, Recording] = {}
        self.done: Counter[Shape] = Counter()
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, batch: EpisodeBatch) -> Tensor:
        """Update by a batch; the loss."""
        shape = tuple((part.shape, part.dtype) for part in tensors(batch))
        if shape not in self.recordings:
            self.done[shape] += 1
            if self.done[shape] <= USUAL_FIRST:
                return self._as_usual(batch)
            self.recordings[shape] = self._record(batch)
        recording = self.recordings[shape]
        for there, given in zip(tensors(recording.batch), tensors(batch), strict=True):
            there.copy_(given)
        recording.graph.replay()
        return recording.loss.clone()

    def _as_usual(self, batch: EpisodeBatch) -> Tensor:
        """On the stream that is recorded from later, as gradients are summed up on the one they began on."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            loss = self.update(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return loss

    def _record(self, batch: EpisodeBatch) -> Recording:
        """Raises LearnerError for an update that cannot be recorded."""
        kept = with_each(batch, torch.clone)
        graph = torch.cuda.CUDAGraph()
        try:
            # Relaxed: asking how much memory is free, as learners do, is no part of the recording.
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="relaxed"):
                loss = self.update(kept)
        except RuntimeError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LearnerError(
                f"an update cannot be recorded ({reason}): leave compiled out, or let the learner say "
                "steady = False"
            ) from error
        return Recording(graph, kept, loss)


def tensors(batch: EpisodeBatch) -> list[Tensor]:
    """All tensors of a batch, in the order of its fields."""
    found: list[Tensor] = []

    def take(part: Tensor) -> Tensor:
        found.append(part)
        return part

    with_each(batch, take)
    return found
