"""The straightforward network that the benchmark times beside ours computes what `mann_paper` computes."""

from typing import Literal

import pytest
import torch

from benchmarks.speed.lrua_step import plain_weights
from benchmarks.speed.plain_lrua import PlainLrua, plain_lrua_step
from fewshot.episodes.batch import StreamBatch
from fewshot.learners.mann_paper import MannPaper

WAY, PIXELS = 5, 36


@pytest.mark.parametrize("cosine", ["library", "product"])
def test_its_loss_and_its_step_are_ours(cosine: Literal["library", "product"]) -> None:
    torch.manual_seed(0)
    learner, model = MannPaper((1, 6, 6), WAY), PlainLrua(PIXELS, WAY, cosine=cosine)
    model.load_state_dict(plain_weights(learner))
    labels = torch.stack([torch.arange(WAY).repeat(10)[torch.randperm(50)] for _ in range(8)])
    images = torch.rand(8, 50, PIXELS)
    nothing = torch.zeros_like(labels)
    batch = StreamBatch(images.unflatten(2, (1, 6, 6)), labels, nothing, nothing[:, :WAY], WAY)
    ours = torch.optim.SGD(learner.parameters(), lr=0.1)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # the second loss is after a step: the gradients agree as well
        loss = learner.loss(batch)
        expected = plain_lrua_step(model, theirs, images, labels)
        torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=0)
        ours.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        ours.step()
