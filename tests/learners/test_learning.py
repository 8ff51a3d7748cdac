"""Learners of streams learn: what is fresh in every episode and hidden beneath what tells nothing."""

from typing import Any

import pytest
import torch

from fewshot.episodes.batch import StreamBatch
from fewshot.episodes.source import presentation
from fewshot.learners.base import Learner
from fewshot.learners.registry import build_learner

SHAPE, WAY, LENGTH = (1, 12, 12), 3, 12
ENCODER: dict[str, Any] = {"widths": (4, 8), "embedding_size": 16}
MEMORY: dict[str, Any] = ENCODER | {"hidden_size": 10, "num_slots": 16, "word_size": 12}
SMALL: dict[str, dict[str, Any]] = {
    "mann": MEMORY,
    "mann_dnc": MEMORY,
    "mann_ntm": MEMORY,
    "mann_sparse": MEMORY | {"slots_per_head": 4},
    "attention": ENCODER | {"hidden_size": 16},
    "key_value": ENCODER | {"num_slots": 16},
    "nearest_feature": ENCODER,
    "prototypical": {"widths": (4, 8)},
}


def build(name: str) -> Learner:
    torch.manual_seed(0)
    return build_learner(name, SHAPE, WAY, SMALL[name])


def streams(batch: int, generator: torch.Generator) -> StreamBatch:
    """On the left of an image is the noise of its class, on the right louder noise of its own.

    Classes are fresh in every episode, so only what was stored inside it can name them, and before an encoder
    has learned to look to the left, two images of a class are hardly more alike than others.
    """
    labels = torch.rand(batch, LENGTH, generator=generator).argsort(1) % WAY
    patterns = torch.randn(batch, WAY, 1, 12, 6, generator=generator)
    left = patterns[torch.arange(batch).unsqueeze(1), labels]
    left = left + 0.1 * torch.randn(left.shape, generator=generator)
    right = 2 * torch.randn(left.shape, generator=generator)
    images = torch.cat([left, right], dim=-1)
    return StreamBatch(images, labels, presentation(labels, WAY), labels[:, :WAY], WAY)


def train(learner: Learner, labels_are_right: bool = True) -> None:
    learner.train()
    optimiser = torch.optim.Adam(learner.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = streams(16, generator)
        if not labels_are_right:
            batch = batch._replace(labels=batch.labels[:, torch.randperm(LENGTH, generator=generator)])
        optimiser.zero_grad()
        learner.loss(batch).backward()
        optimiser.step()


def accuracy(learner: Learner) -> tuple[float, float]:
    """Where the class was shown before, and where it was not: there 61 % by guessing among what is left."""
    learner.eval()
    batch, others = (streams(64, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    learner.calibrate(others)
    with torch.no_grad():
        right = (learner.stream(batch).argmax(-1) == batch.labels).double()
    known = batch.presentation >= 2
    return float(right[known].mean()), float(right[~known].mean())


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_to_name_what_it_has_seen_once(name: str) -> None:
    learner = build(name)
    assert accuracy(learner)[0] < 0.6
    train(learner)
    known, new = accuracy(learner)
    assert known > 0.9
    assert new < 0.75


@pytest.mark.parametrize("name", ["attention", "nearest_feature"])
def test_labels_of_other_images_teach_nothing(name: str) -> None:
    learner = build(name)
    train(learner, labels_are_right=False)
    assert accuracy(learner)[0] < 0.6
