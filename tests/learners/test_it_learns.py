"""Each K-shot learner learns: classes never trained on are told apart far better after a few steps."""

from typing import Any

import pytest
import torch

from fewshot.learners.registry import build_learner
from tests.learners.made_up import SHAPE, accuracy, kshot, patterns, train

CLASSES, WAY = 16, 5
TRAINED: dict[str, tuple[dict[str, Any], int]] = {
    "baseline": ({"classes": CLASSES}, 30),
    "baseline_pp": ({"classes": CLASSES}, 30),
    "logistic": ({}, 30),
    "matching": ({}, 30),
    "matching:full_context": ({"full_context": True}, 30),
    "meta_baseline": ({"classes": CLASSES, "classification_steps": 15}, 30),
    "prototypical:cosine": ({"distance": "cosine"}, 30),
    "relation": ({"relation_width": 8}, 50),
    "ridge": ({}, 30),
    "siamese": ({"embedding_size": 32}, 30),
    "simpleshot": ({"classes": CLASSES}, 30),
}
"""By name: options, and steps of training."""


@pytest.mark.parametrize("name", TRAINED)
def test_classes_never_trained_on_are_told_apart(name: str) -> None:
    options, steps = TRAINED[name]
    torch.manual_seed(0)
    learner = build_learner(name, SHAPE, WAY, {"widths": (8, 8)} | options)
    unseen = kshot(patterns(50, seed=1), batch=50, way=WAY, shot=1, noise=1.5)
    before = accuracy(learner, unseen)
    train(learner, patterns(CLASSES), steps, way=8)
    assert accuracy(learner, unseen) > before + 0.15
