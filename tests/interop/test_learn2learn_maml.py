"""learn2learn's MAML as a learner: it is our MAML, and keeps the promises of one. `make interop`."""

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.speed.peer_worker import conv4
from benchmarks.speed.prototypical_step import block_weights
from fewshot.data.split import Split
from fewshot.episodes.batch import KShotBatch, Support
from fewshot.episodes.protocol import KShot, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import LearnerError
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import evaluate
from fewshot.harness.train import train
from fewshot.interop.learn2learn_maml import Learn2LearnMaml
from fewshot.learners.backbones import Downsample
from fewshot.learners.check import check_learner
from fewshot.learners.fomaml import Fomaml
from fewshot.learners.gradient import GradientLearner
from fewshot.learners.maml import Maml

WAY, RATE = 3, 0.4


def pair(
    learn2learn: Any, ours: type[GradientLearner], downsample: Downsample, side: int, steps: int = 2
) -> tuple[GradientLearner, Learn2LearnMaml]:
    """Ours and learn2learn's around a network of torch's own modules, with the same weights."""
    torch.manual_seed(0)
    own = ours(
        (1, side, side),
        WAY,
        widths=(4,) * 4,
        downsample=downsample,
        statistics="apart",
        inner_learning_rate=RATE,
        inner_steps=steps,
    )
    nn.init.normal_(own.head.weight, std=0.3)  # from zero, as it starts, the losses would tell little
    head = nn.Linear(own.head.in_features, WAY)
    head.load_state_dict(own.head.state_dict())
    network = nn.Sequential(conv4(block_weights(own), downsample), head)
    maml = learn2learn.algorithms.MAML(network, lr=RATE, first_order=not ours.second_order)
    return own, Learn2LearnMaml(own.image_shape, WAY, maml=maml, inner_steps=steps)


@pytest.mark.parametrize(
    ("ours", "downsample", "side"), [(Maml, "stride", 12), (Maml, "pool", 16), (Fomaml, "stride", 12)]
)
def test_losses_and_gradients_are_those_of_ours(
    ours: type[GradientLearner], downsample: Downsample, side: int, learn2learn: Any
) -> None:
    own, theirs = pair(learn2learn, ours, downsample, side)
    labels = torch.stack([torch.randperm(12) % WAY for _ in range(3)])
    images = torch.randn(3, 12, 1, side, side) + labels.view(3, 12, 1, 1, 1)
    support = Support(images[:, :6], labels[:, :6], WAY)
    batch = KShotBatch(support, images[:, 6:], labels[:, 6:], torch.arange(WAY).expand(3, -1))
    losses = own.loss(batch), theirs.loss(batch)
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=0)
    expected, found = (
        torch.autograd.grad(loss, list(learner.parameters()))
        for loss, learner in zip(losses, (own, theirs), strict=True)
    )
    for gradient, same in zip(expected, found, strict=True):
        torch.testing.assert_close(same, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected)
    with torch.no_grad():
        expected_answer, answer = (learner.eval().answer(batch) for learner in (own, theirs))
        torch.testing.assert_close(answer, expected_answer, atol=1e-4, rtol=1e-4)


def plain(learn2learn: Any, *layers: nn.Module) -> Learn2LearnMaml:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), *layers, nn.ReLU(), nn.Flatten(), nn.Linear(100, WAY)
    )
    return Learn2LearnMaml((1, 12, 12), WAY, maml=learn2learn.algorithms.MAML(network, lr=RATE))


def test_it_keeps_the_promises_of_a_learner(learn2learn: Any) -> None:
    check_learner(plain(learn2learn, nn.BatchNorm2d(4), nn.Dropout(0.5)))


def test_without_batch_norm_it_is_inductive_and_keeps_that_promise(learn2learn: Any) -> None:
    learner = plain(learn2learn)
    assert not learner.transductive
    check_learner(learner)


def test_it_is_trained_and_measured_under_both_protocols(learn2learn: Any, split: Split) -> None:
    learner = plain(learn2learn, nn.BatchNorm2d(4))
    before = [parameter.clone() for parameter in learner.parameters()]
    episodes = {"protocol": "kshot", "way": WAY, "shot": 1, "query": 2}
    settings = TrainSettings.model_validate(
        {"episodes": episodes, "batch": 2, "steps": 10, "validate_every": 10, "validate_episodes": 10}
    )
    log = train(learner, split, settings)
    assert log.best_step == 10
    assert any(not torch.equal(old, new) for old, new in zip(before, learner.parameters(), strict=True))
    for protocol in (KShot(WAY, 2, 2), Stream(WAY, 9)):
        evaluation = evaluate(learner, EpisodeSampler(split.test, protocol, episode_seed=0), 30)
        assert evaluation.accuracy > 1 / WAY


def test_another_way_is_refused(learn2learn: Any) -> None:
    with pytest.raises(LearnerError, match="built for 3-way episodes"):
        plain(learn2learn).start(1, WAY + 1)
    with pytest.raises(LearnerError, match="inner_steps must be at least 1; got 0"):
        Learn2LearnMaml((1, 12, 12), WAY, maml=plain(learn2learn).maml, inner_steps=0)
