"""The gradient family against a twin in NumPy, its outer gradients against differences, and that it learns.

The twin's network is one strided block on a 2x2 image: of its kernel only the lower right 2x2 touches the
image, so that a block is a linear map of four pixels, batch norm and ReLU. It takes every gradient by central
differences, and shares nothing with the learners but the weights that they start from.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners.anil import Anil
from fewshot.learners.check import check_learner
from fewshot.learners.gradient import GradientLearner
from fewshot.learners.maml import Maml
from fewshot.learners.metasgd import MetaSgd
from fewshot.learners.registry import build_learner
from fewshot.learners.reptile import Reptile

Array = NDArray[np.float64]
Theta = list[Array]
"""kernel (4, width), scale, shift (width,), head (way, width), bias (way,)."""

WAY, WIDTH = 3, 4
PLUS: dict[str, Any] = {"step_rates": True, "norms": "step", "multi_step_loss": 4, "inner_steps": 2}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "maml": ("maml", {"inner_steps": 2}),
    "fomaml": ("fomaml", {"inner_steps": 2}),
    "anil": ("anil", {"inner_steps": 2}),
    "metasgd": ("metasgd", {"inner_steps": 2, "inner_steps_test": 3}),
    "reptile": ("reptile", {"inner_learning_rate": 0.1, "inner_batch": 100, "inner_steps_test": 7}),
    "maml with a rate for each step": ("maml", {"step_rates": True, "inner_steps": 2}),
    "maml with norms for each step": ("maml", {"norms": "step", "inner_steps": 2}),
    "maml with running statistics": ("maml", {"norms": "running", "inner_steps": 2}),
    "maml with a loss for each step": ("maml", {"multi_step_loss": 4, "inner_steps": 3}),
    "maml++": ("maml", PLUS),
}
whole_family = pytest.mark.parametrize("member", FAMILY)


def build(member: str, **options: Any) -> GradientLearner:
    """In double precision, with weights away from the zeros and ones of a fresh head and batch norm."""
    name, own = FAMILY[member]
    torch.manual_seed(0)
    learner = build_learner(name, (1, 2, 2), WAY, {"widths": (WIDTH,)} | own | options).double()
    assert isinstance(learner, GradientLearner)
    with torch.no_grad():
        for key, parameter in learner.named_parameters():
            if "rates" in key:
                parameter.uniform_(0.05, 0.3)
            else:
                nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.5)
        for key, buffer in learner.named_buffers():
            if "running" in key:
                buffer.uniform_(0.5, 1.5)
    return learner


def kshot(batch: int = 2, shot: int = 2, query: int = 2) -> KShotBatch:
    torch.manual_seed(1)
    labels = torch.stack([torch.randperm(WAY * (shot + query)) % WAY for _ in range(batch)])
    images = torch.randn(batch, labels.shape[1], 1, 2, 2).double() + labels.view(batch, -1, 1, 1, 1)
    split = WAY * shot
    support = Support(images[:, :split], labels[:, :split], WAY)
    return KShotBatch(support, images[:, split:], labels[:, split:], torch.arange(WAY).expand(batch, -1))


def stream(batch: int = 2, length: int = 7) -> StreamBatch:
    torch.manual_seed(2)
    labels = torch.stack([torch.randperm(length) % WAY for _ in range(batch)])
    images = torch.randn(batch, length, 1, 2, 2).double() + labels.view(batch, -1, 1, 1, 1)
    class_ids = torch.arange(WAY).expand(batch, -1)
    return StreamBatch(images, labels, presentation(labels, WAY), class_ids, WAY)


# --- The twin -----------------------------------------------------------------------------------------------


def array(tensor: Any) -> Array:
    found: Array = tensor.detach().double().numpy().copy()
    return found


def flat_kernel(kernel: Tensor) -> Array:
    """(out, 1, 3, 3) -> (4, out): what touches a 2x2 image with stride 2 and one pixel of padding."""
    return array(kernel[:, 0, 1:, 1:].flatten(1).T)


class Twin:
    """One learner's way to adapt and to answer, in the words of the papers."""

    def __init__(self, learner: GradientLearner) -> None:
        self.learner = learner
        kernel, *affine = learner.backbone.parameters()
        scale, shift = map(array, affine) if affine else (np.ones(WIDTH), np.zeros(WIDTH))
        self.start = [flat_kernel(kernel), scale, shift, *map(array, learner.head.parameters())]
        norms = isinstance(learner, Maml) and bool(learner.step_norms)
        self.adapting = [0, 3, 4] if norms else [3, 4] if isinstance(learner, Anil) else [*range(5)]

    def logits(self, theta: Theta, images: Array, step: int) -> Array:
        """(image, 4) -> (image, way)."""
        kernel, scale, shift, head, bias = theta
        maps = images @ kernel
        mean, variance = maps.mean(0), maps.var(0)
        if isinstance(self.learner, Maml) and self.learner.step_norms:
            taken = self.learner.step_norms[min(step, self.learner.inner_steps - 1)]
            norm: Any = next(taken.children())
            scale, shift = array(norm.weight), array(norm.bias)
            if norm.running_mean is not None and not self.learner.training:
                mean, variance = array(norm.running_mean), array(norm.running_var)
        features = np.maximum((maps - mean) / np.sqrt(variance + 1e-5) * scale + shift, 0)
        return features @ head.T + bias

    def loss(self, theta: Theta, images: Array, labels: Array, step: int) -> float:
        return cross_entropy(self.logits(theta, images, step), labels)

    def rate(self, step: int, weight: int, gradients: list[Array]) -> Any:
        """gradients: those of this weight so far, the present one last."""
        learner = self.learner
        if isinstance(learner, MetaSgd):
            rate = learner.learned_rates[weight]
            return flat_kernel(rate) if weight == 0 else array(rate)
        if isinstance(learner, Maml) and learner.step_rates is not None:
            row = array(learner.step_rates)[min(step, learner.inner_steps - 1)]
            return row[self.adapting.index(weight)]
        if isinstance(learner, Reptile):
            moment = np.zeros_like(gradients[0])
            for gradient in gradients:
                moment = 0.999 * moment + 0.001 * gradient**2
            return learner.inner_learning_rate / (np.sqrt(moment / (1 - 0.999 ** (step + 1))) + 1e-8)
        return learner.inner_learning_rate

    def trajectory(
        self, images: Array, labels: Array, chosen: list[NDArray[np.int64]] | None = None
    ) -> Iterator[Theta]:
        """The weights after each inner step; chosen: the images of each step's mini-batch."""
        theta, seen = list(self.start), []
        for step in range(self.learner.steps):
            some = slice(None) if chosen is None else chosen[step]
            here = partial(self.loss, images=images[some], labels=labels[some], step=step)
            seen.append({weight: difference(here, theta, weight) for weight in self.adapting})
            theta = list(theta)
            for weight in self.adapting:
                gradients = [gradient[weight] for gradient in seen]
                theta[weight] = theta[weight] - self.rate(step, weight, gradients) * gradients[-1]
            yield theta

    def answers(self, images: Array, labels: Array, asked: Array) -> Array:
        *_, theta = self.trajectory(images, labels)
        return self.logits(theta, np.concatenate([images, asked]), self.learner.steps - 1)[len(images) :]


def cross_entropy(logits: Array, labels: Array) -> float:
    """The mean, in nats."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        total += np.log(np.exp(row - row[label]).sum())
    return float(total / len(labels))


def difference(function: Callable[[Theta], float], theta: Theta, weight: int, width: float = 1e-5) -> Array:
    """The gradient by one weight, by central differences."""
    gradient = np.zeros_like(theta[weight])
    for place in np.ndindex(gradient.shape):
        ends = []
        for sign in (1, -1):
            moved = [part.copy() for part in theta]
            moved[weight][place] += sign * width
            ends.append(function(moved))
        gradient[place] = (ends[0] - ends[1]) / (2 * width)
    return gradient


def pixels(images: Tensor) -> Array:
    return array(images.flatten(-3))


@whole_family
@pytest.mark.parametrize("training", [False, True])
def test_answers_are_those_of_the_twin(member: str, training: bool) -> None:
    learner, batch = build(member).train(training), kshot()
    twin = Twin(learner)
    with torch.no_grad():
        answers = learner.answer(batch)
    for episode in range(len(answers)):
        support = pixels(batch.support.images[episode]), batch.support.labels[episode].numpy()
        plain = twin.answers(*support, pixels(batch.query_images[episode]))
        np.testing.assert_allclose(array(answers[episode]), plain, rtol=1e-5, atol=1e-6)


@whole_family
def test_a_stream_is_answered_as_the_twin_does_from_the_images_before(member: str) -> None:
    learner, batch = build(member).eval(), stream()
    twin = Twin(learner)
    with torch.no_grad():
        answers = learner.answer(batch)
    images, labels = pixels(batch.images), batch.labels.numpy()
    for episode, step in (learner.asked(batch) & (torch.arange(labels.shape[1]) > 0)).nonzero().tolist():
        asked = images[episode, step : step + 1]
        plain = twin.answers(images[episode, :step], labels[episode, :step], asked)[0]
        np.testing.assert_allclose(array(answers[episode, step]), plain, rtol=1e-4, atol=1e-5)


def loss_and_gradients(learner: GradientLearner, batch: EpisodeBatch) -> tuple[float, dict[str, Tensor]]:
    """In training, by a copy: the learner itself stays as it is."""
    learner = copy.deepcopy(learner).train()
    names, weights = zip(*learner.named_parameters(), strict=True)
    loss = learner.loss(batch)
    return float(loss.detach()), dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


@pytest.mark.parametrize("batch", [kshot(), stream()], ids=["kshot", "stream"])
@pytest.mark.parametrize("member", [member for member in FAMILY if member not in ("fomaml", "reptile")])
def test_the_outer_gradient_is_that_of_differences(member: str, batch: EpisodeBatch) -> None:
    """Of the whole loss, inner steps included, along a random direction of each weight."""
    learner = build(member)
    _, gradients = loss_and_gradients(learner, batch)
    torch.manual_seed(4)
    for name, parameter in learner.named_parameters():
        direction = torch.randn_like(parameter)
        ends = []
        for sign in (1, -1):
            moved = copy.deepcopy(learner).train()
            with torch.no_grad():
                moved.get_parameter(name).add_(direction, alpha=sign * 1e-6)
            ends.append(float(moved.loss(batch).detach()))
        expected = (ends[0] - ends[1]) / 2e-6
        assert float((gradients[name] * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_the_first_order_gradient_is_that_at_the_adapted_weights() -> None:
    learner, batch = build("fomaml").train(), kshot()
    twin = Twin(learner)
    expected = [np.zeros_like(weight) for weight in twin.start]
    for episode in range(len(batch.class_ids)):
        support = pixels(batch.support.images[episode]), batch.support.labels[episode].numpy()
        *_, theta = twin.trajectory(*support)
        together = np.concatenate([support[0], pixels(batch.query_images[episode])])
        labels = batch.query_labels[episode].numpy()

        def outer(theta: Theta, together: Array = together, labels: Array = labels) -> float:
            return cross_entropy(twin.logits(theta, together, 1)[-len(labels) :], labels)

        for weight, total in enumerate(expected):
            total += difference(outer, theta, weight) / len(batch.class_ids)
    _, gradients = loss_and_gradients(learner, batch)
    kernel, *others = gradients.values()
    np.testing.assert_allclose(flat_kernel(kernel), expected[0], rtol=1e-5, atol=1e-7)
    for ours, plain in zip(others, expected[1:], strict=True):
        np.testing.assert_allclose(array(ours), plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch", [kshot(), stream()], ids=["kshot", "stream"])
@pytest.mark.parametrize("inner_batch", [4, 100])
def test_reptiles_gradient_is_the_way_back_from_the_adapted_weights(
    batch: EpisodeBatch, inner_batch: int
) -> None:
    """Over mini-batches, each pass of which shows every image once, or over all images at once."""
    learner = build("reptile", inner_batch=inner_batch).train()
    twin = Twin(learner)
    if isinstance(batch, KShotBatch):
        images = torch.cat([batch.support.images, batch.query_images], 1)
        labels = torch.cat([batch.support.labels, batch.query_labels], 1)
    else:
        images, labels = batch.images, batch.labels
    torch.manual_seed(3)
    order = torch.rand(labels.shape).argsort(1)
    expected, reached = [np.zeros_like(weight) for weight in twin.start], 0.0
    for episode, (pictures, truth) in enumerate(zip(pixels(images), labels.numpy(), strict=True)):
        around = np.tile(order[episode].numpy(), 3)
        chosen = [around[step * inner_batch : (step + 1) * inner_batch] for step in range(learner.steps)]
        *_, theta = twin.trajectory(pictures, truth, chosen if inner_batch < len(truth) else None)
        for total, first, last in zip(expected, twin.start, theta, strict=True):
            total += (first - last) / len(labels)
        reached += twin.loss(theta, pictures, truth, 0) / len(labels)
    torch.manual_seed(3)
    loss, gradients = loss_and_gradients(learner, batch)
    assert loss == pytest.approx(reached, rel=1e-6)
    kernel, *others = gradients.values()
    np.testing.assert_allclose(flat_kernel(kernel), expected[0], rtol=1e-4, atol=1e-6)
    for ours, plain in zip(others, expected[1:], strict=True):
        np.testing.assert_allclose(array(ours), plain, rtol=1e-4, atol=1e-6)


# --- What each member does otherwise ------------------------------------------------------------------------


@whole_family
def test_promises_are_kept(member: str) -> None:
    torch.manual_seed(0)
    name, options = FAMILY[member]
    check_learner(build_learner(name, (1, 8, 8), WAY, {"widths": (4, 4)} | options))


@whole_family
def test_kernels_give_the_gradient_of_exact_arithmetic(member: str) -> None:
    """With widths that fill the vectors of a processor, as those of the other tests do not."""
    name, options = FAMILY[member]
    torch.manual_seed(0)
    rounded = build_learner(name, (1, 12, 12), WAY, {"widths": (16, 32)} | options)
    assert isinstance(rounded, GradientLearner)
    nn.init.normal_(rounded.head.weight, std=0.3)
    exact = copy.deepcopy(rounded).double()
    single = kshot_of(12)
    support = single.support._replace(images=single.support.images.double())
    double = single._replace(support=support, query_images=single.query_images.double())
    (fast, gradients), (plain, others) = (
        loss_and_gradients(learner, batch) for learner, batch in ((rounded, single), (exact, double))
    )
    assert fast == pytest.approx(plain, rel=1e-5, abs=1e-6)
    # Adam makes a step of full width of a gradient near zero, whose sign may be rounding's.
    tolerance = 3e-2 if name == "reptile" else 1e-3
    for key, gradient in gradients.items():
        assert (gradient - others[key]).norm() <= tolerance * others[key].norm(), key


def kshot_of(side: int, batch: int = 4) -> KShotBatch:
    torch.manual_seed(1)
    labels = torch.stack([torch.randperm(4 * WAY) % WAY for _ in range(batch)])
    images = torch.randn(batch, 4 * WAY, 1, side, side) + labels.view(batch, -1, 1, 1, 1)
    support = Support(images[:, : 2 * WAY], labels[:, : 2 * WAY], WAY)
    class_ids = torch.arange(WAY).expand(batch, -1)
    return KShotBatch(support, images[:, 2 * WAY :], labels[:, 2 * WAY :], class_ids)


def test_only_the_head_of_anil_adapts() -> None:
    learner, batch = build("anil").train(), kshot()
    adapted = learner.adapt(batch.support).weights
    initial = [*learner.backbone.parameters(), *learner.head.parameters()]
    moved = [
        not torch.equal(ours[0].flatten().sort()[0], own.flatten().sort()[0])
        for ours, own in zip(adapted, initial, strict=True)
    ]
    assert moved == [False, False, False, True, True]


def test_the_loss_after_earlier_steps_fades_out() -> None:
    learner = build("maml with a loss for each step").train()
    assert isinstance(learner, Maml)
    seen = []
    for _ in range(6):
        seen.append(learner.importances())
        learner.loss(kshot())
    np.testing.assert_allclose(seen[0], [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(seen[2], [1 / 6, 1 / 6, 2 / 3])
    np.testing.assert_allclose(seen[4:], [[0, 0, 1], [0, 0, 1]])
    assert torch.equal(learner.updates, torch.tensor(6))
    with torch.no_grad():
        learner.loss(kshot())
    assert learner.updates == 6, "only updates count"


def test_the_loss_of_every_step_weighs_as_its_importance() -> None:
    """After k steps it is that of a learner which takes k."""
    options = {"step_rates": False, "norms": "adapted"}
    learner, batch = build("maml++", **options), kshot()
    alone = [loss_and_gradients(build("maml", inner_steps=steps), batch)[0] for steps in (1, 2)]
    assert loss_and_gradients(learner, batch)[0] == pytest.approx(sum(alone) / 2)
    assert isinstance(learner, Maml)
    learner.updates += 3
    assert loss_and_gradients(learner, batch)[0] == pytest.approx(alone[0] / 8 + alone[1] * 7 / 8)


def test_running_statistics_follow_the_maps_of_their_step() -> None:
    learner, batch = build("maml with running statistics"), kshot()
    assert isinstance(learner, Maml)
    assert not learner.transductive
    before = copy.deepcopy(learner.state_dict())
    learner.train().loss(batch)
    kernel = flat_kernel(next(learner.backbone.parameters()))
    maps = [pixels(images) @ kernel for images in batch.support.images]
    mean, variance = (np.mean([made(each, 0) for each in maps], 0) for made in (np.mean, np.var))
    first = "step_norms.0.0.running_"
    count = len(maps[0])
    expected = {"mean": mean, "var": variance * count / (count - 1)}
    for name, seen in expected.items():
        followed = 0.9 * array(before[first + name]) + 0.1 * seen
        np.testing.assert_allclose(array(learner.state_dict()[first + name]), followed, rtol=1e-9)
    second = "step_norms.1.0.running_mean"
    assert not torch.equal(learner.state_dict()[second], before[second])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("maml", {"multi_step_loss": -1}),
        ("maml", {"norms": "none"}),
        ("reptile", {"inner_batch": 0}),
        ("reptile", {"inner_steps": 0}),
        ("anil", {"inner_steps": 0}),
        ("metasgd", {"inner_learning_rate": 0.0}),
    ],
)
def test_wrong_options_are_refused_in_one_line(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(LearnerError, match=next(iter(options))) as refused:
        build_learner(name, (1, 8, 8), WAY, options)
    assert "\n" not in str(refused.value)


LEARN: dict[str, dict[str, Any]] = {
    "maml": {},
    "fomaml": {},
    "anil": {},
    "metasgd": {},
    "reptile": {"inner_learning_rate": 0.01, "inner_batch": 6, "inner_steps_test": 10},
    "maml++": PLUS | {"norms": "running", "inner_steps_test": 2},
}


@pytest.mark.parametrize("member", LEARN)
def test_it_learns_to_learn(member: str) -> None:
    """Which of three corners is lit; which corner has which label changes with the episode."""
    torch.manual_seed(0)
    learner = build_learner(FAMILY[member][0], (1, 12, 12), WAY, {"widths": (8, 8)} | LEARN[member]).train()
    optimizer = torch.optim.Adam(learner.parameters(), 3e-3)

    def episodes(batch: int) -> KShotBatch:
        labels = torch.arange(WAY).repeat(2).expand(batch, -1)
        corner = torch.rand(batch, WAY).argsort(1).gather(1, labels)
        images = 0.5 * torch.randn(batch, 2 * WAY, 1, 12, 12)
        for index, (row, column) in enumerate(((0, 0), (0, 6), (6, 0))):
            images[..., row : row + 6, column : column + 6] += (corner == index).view(batch, -1, 1, 1, 1)
        support = Support(images[:, :WAY], labels[:, :WAY], WAY)
        return KShotBatch(support, images[:, WAY:], labels[:, WAY:], labels[:, :WAY])

    for _ in range(60):
        optimizer.zero_grad()
        learner.loss(episodes(8)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    batch = episodes(100)
    with torch.no_grad():
        answers = learner.eval().answer(batch).argmax(-1)
    assert (answers == batch.query_labels).float().mean() > 0.9
