"""The straightforward network that the benchmark times beside ours computes what `mann_paper` computes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot.episodes.batch import StreamBatch
from fewshot.learners.mann_paper import MannPaper
from fewshot.memory.cell import MemoryCell

SOURCE = Path(__file__).parents[2] / "benchmarks" / "speed" / "plain_lrua.py"
HIDDEN, PIXELS = 200, 36
GATES = [1, 0, 3, 2]
"""Of ours (keep, write, show, candidate) in torch's order (write, keep, candidate, show); its own inverse."""


def plain_lrua() -> Any:
    specification = importlib.util.spec_from_file_location("plain_lrua", SOURCE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def reordered(gates: Tensor) -> Tensor:
    return gates.view(4, HIDDEN, -1)[GATES].reshape(gates.shape)


def give_weights(model: Any, learner: MannPaper) -> None:
    cell = learner.cell
    assert isinstance(cell, MemoryCell)
    controller: Any = cell.controller
    recurrent = controller.recurrent_gates.weight
    with torch.no_grad():
        inputs = torch.cat([controller.input_gates.weight, recurrent[:, HIDDEN:]], dim=1)
        model.controller.weight_ih.copy_(reordered(inputs))
        model.controller.weight_hh.copy_(reordered(recurrent[:, :HIDDEN]))
        model.controller.bias_ih.copy_(reordered(controller.input_gates.bias))
        model.controller.bias_hh.zero_()
        words = model.key.out_features
        for name in ("weight", "bias"):
            interface = getattr(cell.interface, name)
            getattr(model.key, name).copy_(interface[:words])
            getattr(model.write_gate, name).copy_(interface[words:])
            getattr(model.output, name).copy_(getattr(learner.output, name))


@pytest.mark.parametrize("cosine", ["library", "product"])
def test_its_loss_and_its_step_are_ours(cosine: str) -> None:
    torch.manual_seed(0)
    module, way = plain_lrua(), 5
    learner, model = MannPaper((1, 6, 6), way), module.PlainLrua(PIXELS, way, cosine=cosine)
    give_weights(model, learner)
    labels = torch.stack([torch.arange(way).repeat(10)[torch.randperm(50)] for _ in range(8)])
    images = torch.rand(8, 50, PIXELS)
    nothing = torch.zeros_like(labels)
    batch = StreamBatch(images.unflatten(2, (1, 6, 6)), labels, nothing, nothing[:, :way], way)
    ours = torch.optim.SGD(learner.parameters(), lr=0.1)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the second loss is after a step: the gradients agree as well
        loss = learner.loss(batch)
        expected = module.plain_lrua_step(model, theirs, images, labels)
        torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=0)
        ours.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        ours.step()
