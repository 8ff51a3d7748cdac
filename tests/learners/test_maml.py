"""MAML against a plain loop over episodes, and what it says of itself."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners import gradient
from fewshot.learners.backbones import ConvBackbone, Downsample
from fewshot.learners.check import check_learner
from fewshot.learners.fomaml import Fomaml
from fewshot.learners.gradient import GradientLearner
from fewshot.learners.maml import Maml
from fewshot.learners.registry import telling_options
from fewshot.learners.task_network import features, features_side_by_side, same_weights

WAY = 3
IMAGE_SHAPE = (1, 12, 12)
SMALL: dict[str, Any] = {"widths": (4, 6)}


def build(learner: type[GradientLearner], **options: Any) -> GradientLearner:
    torch.manual_seed(0)
    built = learner(IMAGE_SHAPE, WAY, **{**SMALL, **options}).double()
    for parameter in built.parameters():  # away from the zeros and ones of a fresh head and batch norm
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return built


def kshot(batch: int = 4, shot: int = 2, query: int = 2) -> KShotBatch:
    torch.manual_seed(1)
    labels = torch.stack([torch.randperm(WAY * (shot + query)) % WAY for _ in range(batch)])
    images = torch.randn(batch, labels.shape[1], *IMAGE_SHAPE).double() + labels.view(batch, -1, 1, 1, 1)
    split = WAY * shot
    support = Support(images[:, :split], labels[:, :split], WAY)
    class_ids = torch.arange(WAY).expand(batch, -1)
    return KShotBatch(support, images[:, split:], labels[:, split:], class_ids)


def stream(batch: int = 3, length: int = 12) -> StreamBatch:
    torch.manual_seed(2)
    labels = torch.stack([torch.randperm(length) % WAY for _ in range(batch)])
    images = torch.randn(batch, length, *IMAGE_SHAPE).double() + labels.view(batch, -1, 1, 1, 1)
    class_ids = torch.arange(WAY).expand(batch, -1)
    return StreamBatch(images, labels, presentation(labels, WAY), class_ids, WAY)


def plain_answer(learner: GradientLearner, images: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """One episode by ordinary modules, in the words of the paper: (query, way) logits."""
    network = nn.Sequential(learner.backbone, learner.head)
    initial = dict(network.named_parameters())
    weights = initial
    for _ in range(learner.inner_steps if learner.training else learner.inner_steps_test):
        loss = F.cross_entropy(functional_call(network, weights, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=learner.second_order)
        weights = {
            name: weight - learner.inner_learning_rate * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
    if learner.statistics == "apart":
        alone: Tensor = functional_call(network, weights, (asked,))
        return alone
    if learner.statistics == "together":
        together: Tensor = functional_call(network, weights, (torch.cat([images, asked]),))
        return together[len(images) :]
    single = [functional_call(network, weights, (torch.cat([images, one[None]]),))[-1] for one in asked]
    return torch.stack(single)


def plain_loss(learner: GradientLearner, batch: KShotBatch) -> Tensor:
    losses = [
        F.cross_entropy(plain_answer(learner, images, labels, asked), truth)
        for images, labels, asked, truth in zip(
            batch.support.images, batch.support.labels, batch.query_images, batch.query_labels, strict=True
        )
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("learner_class", [Maml, Fomaml])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inner_steps": 3},
        {"downsample": "pool"},
        {"statistics": "single", "inner_steps": 2},
        {"statistics": "apart", "downsample": "pool"},
    ],
)
def test_loss_and_meta_gradient_are_those_of_a_plain_loop(
    learner_class: type[GradientLearner], options: dict[str, Any]
) -> None:
    learner, batch = build(learner_class, **options).train(), kshot()
    weights = list(learner.parameters())
    loss, plain = learner.loss(batch), plain_loss(learner, batch)
    torch.testing.assert_close(loss, plain, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(loss, weights)
    for ours, theirs in zip(gradients, torch.autograd.grad(plain, weights), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def loss_and_gradients(learner: GradientLearner, batch: EpisodeBatch) -> list[Tensor]:
    loss = learner.loss(batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(learner.parameters()))]


@pytest.mark.parametrize("learner_class", [Maml, Fomaml])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_kernels_give_the_meta_gradient_of_exact_arithmetic(
    learner_class: type[GradientLearner], downsample: str
) -> None:
    """With widths that fill the vectors of a processor, as those of the other tests do not."""
    exact = build(learner_class, widths=(16, 32), downsample=downsample, inner_steps=2).train()
    rounded, batch = copy.deepcopy(exact).float(), kshot()
    support = batch.support._replace(images=batch.support.images.float())
    single = batch._replace(support=support, query_images=batch.query_images.float())
    fast, plain = loss_and_gradients(rounded, single), loss_and_gradients(exact, batch)
    for ours, theirs in zip(fast, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("batch", [kshot(), stream(4)], ids=["kshot", "stream"])
def test_a_batch_in_parts_gives_the_same(batch: EpisodeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build(Maml, inner_steps=2).train()
    whole, answers = loss_and_gradients(learner, batch), learner.answer(batch).detach()
    seen: list[int] = []
    adapt = gradient.same_weights
    monkeypatch.setattr(gradient, "same_weights", lambda *given: seen.append(given[-1]) or adapt(*given))
    kshot = isinstance(batch, KShotBatch)
    each = learner.bytes_per_episode(6, 6) if kshot else 12 * learner.bytes_per_episode(12, 1)
    for budget, largest in ((3 * each, 3), (1, 1)):
        monkeypatch.setattr(gradient, "BYTES_TOGETHER", budget)
        seen.clear()
        for ours, theirs in zip(loss_and_gradients(learner, batch), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(learner.answer(batch).detach(), answers, rtol=1e-9, atol=1e-12)
        assert max(seen) == largest


def test_the_loss_alone_is_that_of_training() -> None:
    learner, batch = build(Maml).train(), kshot()
    with torch.no_grad():
        alone = learner.loss(batch)
    torch.testing.assert_close(alone, learner.loss(batch).detach())


def test_first_order_leaves_something_out() -> None:
    batch = kshot()
    second, first = (
        torch.autograd.grad(learner.loss(batch), next(learner.backbone.parameters()))[0]
        for learner in (build(Maml).train(), build(Fomaml).train())
    )
    assert (second - first).norm() > 0.01 * second.norm()


@pytest.mark.parametrize("statistics", ["together", "apart", "single"])
def test_evaluation_takes_its_own_number_of_steps_without_a_graph(statistics: str) -> None:
    learner = build(Maml, inner_steps=1, inner_steps_test=4, statistics=statistics).eval()
    batch = kshot()
    with torch.no_grad():
        answers = learner.answer(batch)
    assert not answers.requires_grad
    for episode in range(len(answers)):
        images, labels = batch.support.images[episode], batch.support.labels[episode]
        plain = plain_answer(learner, images, labels, batch.query_images[episode])
        torch.testing.assert_close(answers[episode], plain.detach(), rtol=1e-7, atol=1e-9)
    assert all(parameter.grad is None for parameter in learner.parameters())


def test_a_stream_is_answered_at_its_presentations_from_the_images_before() -> None:
    learner, batch = build(Maml).eval(), stream()
    with torch.no_grad():
        answers = learner.stream(batch)
    asked = torch.isin(batch.presentation, torch.tensor([1, 2, 3]))
    for episode, step in asked.nonzero().tolist():
        images, labels = batch.images[episode], batch.labels[episode]
        if step == 0:
            assert not answers[episode, step].any()
            continue
        plain = plain_answer(learner, images[:step], labels[:step], images[step : step + 1])[0]
        torch.testing.assert_close(answers[episode, step], plain.detach(), rtol=1e-7, atol=1e-9)
    assert not answers[~asked].any()


def test_statistics_decide_whether_it_is_transductive() -> None:
    batch = kshot()
    others = batch._replace(
        query_images=torch.cat([batch.query_images[:, :1], batch.query_images[:, 1:] + 1], 1)
    )
    for statistics, transductive in (("together", True), ("apart", True), ("single", False)):
        learner = build(Maml, statistics=statistics).eval()
        assert learner.transductive is transductive
        with torch.no_grad():
            first, second = (learner.answer(each)[:, 0] for each in (batch, others))
        assert torch.allclose(first, second) is not transductive


def test_one_pixel_of_one_image_is_normalised_all_the_same() -> None:
    learner = Maml((1, 4, 4), WAY, widths=(4, 4)).eval()
    state = learner.observe(learner.start(1, WAY), torch.randn(1, 1, 4, 4), torch.tensor([0]))
    assert learner.predict(state, torch.randn(1, 2, 1, 4, 4)).isfinite().all()


@pytest.mark.parametrize(
    "options", [{"downsample": "pool"}, {"statistics": "apart"}, {"statistics": "single"}]
)
def test_promises_are_kept_whatever_the_options(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check_learner(Maml(IMAGE_SHAPE, WAY, **SMALL, **options))


def test_another_way_is_refused() -> None:
    with pytest.raises(LearnerError, match="built for 3-way episodes and cannot answer 4-way"):
        build(Maml).start(1, 4)


@pytest.mark.parametrize(
    "options",
    [{"inner_learning_rate": 0.0}, {"inner_steps": 0}, {"inner_steps_test": 0}, {"widths": ()}],
)
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(LearnerError):
        Maml(IMAGE_SHAPE, WAY, **{**SMALL, **options})


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("downsample", ["stride", "pool"])
def test_episodes_side_by_side_have_the_features_and_gradients_of_the_others(
    downsample: Downsample, averaged: bool
) -> None:
    """What a GPU computes by, up to gradients of gradients; and the backbone's own features."""
    torch.manual_seed(0)
    backbone = ConvBackbone(
        (3, 13, 12), (4, 6), downsample=downsample, batch_norm="batch", averaged=averaged
    ).double()
    head = nn.Linear(backbone.output_size, 3).double()
    body = [
        (weight + 0.1 * torch.randn_like(weight)).detach().requires_grad_()
        for weight in same_weights(backbone, head, 5)[:-2]
    ]
    images = torch.randn(5, 1, 7, 3, 13, 12, dtype=torch.double)
    found = []
    for of in (features, features_side_by_side):
        answers = of(body, images, backbone.layout)
        once = torch.autograd.grad(answers.sin().sum(), body, create_graph=True)
        twice = torch.autograd.grad(torch.stack([part.square().sum() for part in once]).sum(), body)
        found.append([answers, *once, *twice])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)
    shared = features(same_weights(backbone, head, 5)[:-2], images, backbone.layout)
    torch.testing.assert_close(shared, torch.stack([backbone(episode) for episode in images]))


def test_an_option_that_came_later_is_no_part_of_the_key_at_its_default() -> None:
    assert "averaged" not in telling_options(Maml)
    assert telling_options(Maml, {"averaged": True})["averaged"] is True
