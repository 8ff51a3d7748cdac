"""`lrua_step`: a training step of the memory network as published, on raw 20x20 pixels.

A memory of 128 words of 40, 4 heads, an LSTM of 200, 16 streams of 50 images. The peer is the network as one
writes it from the paper, `plain_lrua.py`; a second one is the same after a look at the profile.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.measure import Row
from benchmarks.speed.peers import Worker
from benchmarks.speed.setting import Place, Setting, images_at_hand
from benchmarks.speed.steps import compare_step, operations, training_step
from fewshot.episodes.batch import StreamBatch
from fewshot.episodes.protocol import Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.learners.base import Learner
from fewshot.learners.mann_paper import MannPaper
from fewshot.memory.cell import MemoryCell

WAY, LENGTH, BATCH, SIDE = 5, 50, 16, 20
PEERS = {"eager step": "library", "eager step, tuned": "product"}
"""And how each computes its cosines."""
TOLERANCE = 1e-4


def measure(setting: Setting) -> list[Row]:
    return [_measure(setting, place, peer) for place in setting.places for peer in PEERS]


def lrua_step(
    setting: Setting,
    make: Callable[[tuple[int, int, int], int], Learner] = MannPaper,
    length: int = LENGTH,
    batch: int = BATCH,
) -> Callable[[], Tensor]:
    """The training step of a memory network, which `make` makes for an image shape and a way."""
    images = images_at_hand(SIDE)
    torch.manual_seed(0)
    sampler = EpisodeSampler(images.split(setting.split).train, Stream(WAY, length), episode_seed=0)
    return training_step(make(images.image_shape, WAY), sampler.batch(0, batch))


def _measure(setting: Setting, place: Place, peer: str) -> Row:
    place.prepare()
    torch.manual_seed(0)
    images = images_at_hand(SIDE)
    learner = MannPaper(images.image_shape, WAY).to(place.device)
    pool = images.split(setting.split).train
    batch = EpisodeSampler(pool, Stream(WAY, LENGTH), episode_seed=0, device=place.device).batch(0, BATCH)
    assert isinstance(batch, StreamBatch)
    path = setting.folder / "lrua.pt"
    given = {"images": batch.images.flatten(2).cpu(), "labels": batch.labels.cpu()}
    torch.save({"weights": plain_weights(learner)} | given, path)
    return compare_step(
        setting,
        "lrua_step",
        place,
        training_step(learner, batch),
        operations(lambda: learner.loss(batch).backward()),  # type: ignore[no-untyped-call]
        peer,
        lambda: Worker(
            Path(sys.executable),
            "plain_lrua",
            {
                "step": str(path),
                "threads": place.threads,
                "device": place.device,
                "cosine": PEERS[peer],
            },
        ),
        TOLERANCE,
    )


def plain_weights(learner: MannPaper) -> dict[str, Tensor]:
    """Our weights under the names and in the order of `plain_lrua.PlainLrua`."""
    assert isinstance(learner.cell, MemoryCell)
    ours = {name: value.cpu() for name, value in learner.state_dict().items()}
    recurrent = ours["cell.controller.recurrent_gates.weight"]
    hidden = recurrent.shape[0] // 4
    inputs = torch.cat([ours["cell.controller.input_gates.weight"], recurrent[:, hidden:]], dim=1)
    bias = ours["cell.controller.input_gates.bias"]
    words = learner.cell.interface.out_features - learner.cell.memory.read_heads

    return {
        "controller.weight_ih": library_gates(inputs),
        "controller.weight_hh": library_gates(recurrent[:, :hidden]),
        "controller.bias_ih": library_gates(bias),
        "controller.bias_hh": torch.zeros_like(bias),
        "key.weight": ours["cell.interface.weight"][:words].clone(),
        "key.bias": ours["cell.interface.bias"][:words].clone(),
        "write_gate.weight": ours["cell.interface.weight"][words:].clone(),
        "write_gate.bias": ours["cell.interface.bias"][words:].clone(),
        "output.weight": ours["output.weight"],
        "output.bias": ours["output.bias"],
    }


def library_gates(gates: Tensor) -> Tensor:
    """Ours are forget, input, output, candidate; those of torch's LSTM input, forget, candidate, output."""
    forget, write, show, candidate = gates.chunk(4)
    return torch.cat([write, forget, candidate, show])
