"""What all measures share: the images, the checkpoint on them, the peers, and how long to measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.measure import Rounds
from benchmarks.speed.peers import CHECKOUT, PeerEnvironment
from fewshot.data.catalogue import load_dataset
from fewshot.data.image_set import ImageSet
from fewshot.data.split import ClassPool
from fewshot.errors import DataError
from fewshot.harness.processes import prepare_process

SIDE = 28
CHECKPOINTS = {
    "omniglot": {"mann": "results/omniglot_first", "prototypical": "results/omniglot_kshot"},
    "glyphs": {"mann": "results/quickstart", "prototypical": "results/quickstart"},
}
"""Where learners trained on either data set are kept."""


@dataclass(frozen=True)
class Place:
    """Where a measure runs: "cpu" with so many threads, or "cuda"."""

    device: str
    threads: int = 1

    def __str__(self) -> str:
        if self.device == "cuda":
            return f"cuda, {torch.cuda.get_device_name()}"
        return f"cpu, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def prepare(self) -> None:
        """Set this process up as fewshot sets up the processes that train and measure."""
        prepare_process(self.threads)


ONE_CORE = Place("cpu")


@dataclass(frozen=True)
class Setting:
    """quick: shorter rounds, no long measures. folder: for what the peers are given, gone at the end."""

    quick: bool
    peers: PeerEnvironment
    folder: Path
    images: ImageSet

    @property
    def rounds(self) -> Rounds:
        return Rounds(3, 0.15) if self.quick else Rounds(7, 0.5)

    @property
    def places(self) -> Sequence[Place]:
        """Where training steps are measured: one core, two, and the GPU, as far as they are there."""
        cores = [Place("cpu", threads) for threads in (1, 2) if threads <= available_cores()]
        return [*cores, Place("cuda")] if torch.cuda.is_available() else cores

    def checkpoint(self, learner: str) -> Path:
        return CHECKOUT / CHECKPOINTS[self.images.name][learner] / "checkpoints" / f"{learner}-0.safetensors"

    @cached_property
    def train(self) -> ClassPool:
        return self.images.split(self.split).train

    @cached_property
    def test(self) -> ClassPool:
        return self.images.split(self.split).test

    @property
    def split(self) -> str:
        return "vinyals" if self.images.name == "omniglot" else "default"

    def given_to_peers(self, pool: ClassPool) -> dict[str, Any]:
        """The images of a pool as files: the keywords of `peer_worker.Images`."""
        rows = pool_rows(pool)
        labels = torch.arange(len(pool)).repeat_interleave(pool.images_per_class)
        files = {
            "pixels": self._save(f"{pool.side}-pixels", self.images.images[rows].numpy()),
            "labels": self._save(f"{pool.side}-labels", labels.numpy()),
        }
        return files | {"mean": self.images.mean, "std": self.images.std}

    def _save(self, name: str, array: Any) -> str:
        path = self.folder / f"{name}.npy"
        if not path.exists():
            np.save(path, array)
        return str(path)


def available_cores() -> int:
    return torch.multiprocessing.cpu_count()


def pool_rows(pool: ClassPool) -> torch.Tensor:
    """The rows of the image set that hold a pool's images, class by class."""
    starts, counts = pool.first_image.tolist(), pool.images_per_class.tolist()
    return torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    )


def images_at_hand(size: int = SIDE) -> ImageSet:
    """Omniglot, or where it is absent the embedded glyphs."""
    try:
        return load_dataset("omniglot", image_size=size)
    except DataError:
        return load_dataset("glyphs", image_size=size)
