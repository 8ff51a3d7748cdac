"""Recorded updates: which and of what; and, on a GPU, that a replayed training is the usual one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewshot.episodes.batch import KShotBatch, Support
from fewshot.harness.config import TrainSettings
from fewshot.harness.replay import USUAL_FIRST, Replayed, replays, tensors
from fewshot.harness.train import _Run
from fewshot.learners.base import Learner
from fewshot.learners.registry import build_learner

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero")
"""Operations for whose result Python waits."""
STEADY: list[tuple[str, dict[str, Any]]] = [
    ("maml", {}),
    ("maml", {"norms": "running", "step_rates": True, "inner_steps": 2}),
    ("fomaml", {}),
    ("anil", {}),
    ("metasgd", {}),
    ("reptile", {"inner_batch": 2}),
    ("prototypical", {}),
    ("matching", {}),
    ("simpleshot", {"classes": 6}),
    ("baseline", {"classes": 6}),
    ("baseline_pp", {"classes": 6}),
    ("meta_baseline", {"classes": 6, "classification_steps": 5}),
]


def kshot(seed: int, device: str = "cpu") -> KShotBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 9, 1, 12, 12, generator=generator).to(device)
    labels = torch.arange(3, device=device).repeat(2, 1)
    class_ids = torch.arange(6, device=device).reshape(2, 3)
    return KShotBatch(Support(images[:, :3], labels, 3), images[:, 3:], labels.repeat(1, 2), class_ids)


def small(name: str, options: dict[str, Any]) -> Learner:
    torch.manual_seed(0)
    return build_learner(name, (1, 12, 12), 3, {"widths": (4, 4)} | options)


def test_the_tensors_of_a_batch_are_all_of_them_in_the_order_of_its_fields() -> None:
    batch = kshot(0)
    found = tensors(batch)
    expected = [*batch.support[:2], batch.query_images, batch.query_labels, batch.class_ids]
    assert all(one is other for one, other in zip(found, expected, strict=True))


class NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what Python waits for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert not func.name().startswith(WAITS), func.name()
        return func(*args, **kwargs or {})


def one_hot(labels: Tensor, way: int) -> Tensor:
    """torch's looks at the labels, but not on a GPU."""
    return (labels.unsqueeze(-1) == torch.arange(way)).long()


@pytest.mark.parametrize(("name", "options"), STEADY)
def test_a_steady_learner_waits_for_no_number(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, batch = small(name, options).train(), kshot(0)
    assert learner.steady
    monkeypatch.setattr(F, "one_hot", one_hot)
    with NoWaiting():
        learner.loss(batch).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("name", "options"),
    [("maml", {"multi_step_loss": 3}), ("matching", {"full_context": True}), ("ridge", {}), ("relation", {})],
)
def test_other_learners_are_not_steady(name: str, options: dict[str, Any]) -> None:
    assert not small(name, options).steady


def own_backbone(image_shape: tuple[int, int, int]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[1] * image_shape[2], 4))


@pytest.mark.parametrize(
    ("options", "changes", "device", "replayed"),
    [
        ({}, {}, "cuda", True),
        ({}, {}, "cpu", False),
        ({}, {"compiled": False}, "cuda", False),
        ({}, {"episodes": {"protocol": "stream", "way": 3, "length": 9}}, "cuda", False),
        ({"backbone": {"name": f"{__name__}:own_backbone"}}, {}, "cuda", False),
    ],
)
def test_what_is_replayed(
    options: dict[str, Any], changes: dict[str, Any], device: str, replayed: bool
) -> None:
    settings = TrainSettings(**{"steps": 4, "compiled": True} | changes)
    assert replays(small("prototypical", options), settings, torch.device(device)) == replayed


on_a_gpu: Callable[..., Any] = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_a_gpu
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("name", "options"), STEADY)
def test_a_replayed_training_is_the_usual_one(name: str, options: dict[str, Any], optimizer: str) -> None:
    found = []
    for compiled in (False, True):
        learner = small(name, options).cuda()
        settings = TrainSettings(steps=12, compiled=compiled, optimizer=optimizer, learning_rate=0.01)
        run = _Run(learner, settings, None, torch.device("cuda"))
        for step in range(USUAL_FIRST + 8):
            torch.manual_seed(step)
            run.update(kshot(step, "cuda"))
            run.step += 1
        if compiled:
            assert isinstance(run.take, Replayed)
            assert len(run.take.recordings) == 1
        found.append(learner.state_dict())
    for weight, (key, usual) in zip(found[1].values(), found[0].items(), strict=True):
        torch.testing.assert_close(weight, usual, rtol=0.02, atol=2e-3, msg=key)
