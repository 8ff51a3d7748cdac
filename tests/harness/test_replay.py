"""Recorded updates: what makes a shape; and, on a GPU, that a replayed training is the usual one."""

import pytest
import torch

from fewshot.episodes.batch import KShotBatch, Support
from fewshot.harness.config import TrainSettings
from fewshot.harness.replay import USUAL_FIRST, Replayed, tensors
from fewshot.harness.train import _Run
from fewshot.learners.registry import build_learner


def kshot(seed: int) -> KShotBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 9, 1, 12, 12, generator=generator)
    labels = torch.arange(3).repeat(2, 1)
    support = Support(images[:, :3], labels, 3)
    return KShotBatch(support, images[:, 3:], labels.repeat(1, 2), torch.arange(6).reshape(2, 3))


def test_the_tensors_of_a_batch_are_all_of_them_in_the_order_of_its_fields() -> None:
    batch = kshot(0)
    found = tensors(batch)
    expected = [*batch.support[:2], batch.query_images, batch.query_labels, batch.class_ids]
    assert all(one is other for one, other in zip(found, expected, strict=True))


def test_on_a_cpu_nothing_is_recorded() -> None:
    learner = build_learner("maml", (1, 12, 12), 3, {"widths": (4, 4)})
    settings = TrainSettings(steps=4, compiled=True)
    run = _Run(learner, settings, None, torch.device("cpu"))
    assert not run.replays
    assert not isinstance(run.do, Replayed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["maml", "prototypical", "simpleshot"])
def test_a_replayed_training_is_the_usual_one(name: str) -> None:
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        learner = build_learner(name, (1, 12, 12), 3, {"widths": (4, 4)}).cuda()
        run = _Run(learner, TrainSettings(steps=10, compiled=compiled), None, torch.device("cuda"))
        assert run.replays == compiled
        of_run = []
        for step in range(USUAL_FIRST + 5):
            batch = kshot(step)
            support = batch.support._replace(
                images=batch.support.images.cuda(), labels=batch.support.labels.cuda()
            )
            parts = (part.cuda() for part in batch[1:])
            of_run.append(float(run.update(KShotBatch(support, *parts))))
            run.step += 1
        losses.append(of_run)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
