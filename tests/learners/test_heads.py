"""Heads fitted to the images shown, each against a slow solver of the problem that its paper states."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners.baseline import Baseline
from fewshot.learners.baseline_pp import SHARPNESS, BaselinePp
from fewshot.learners.fitted_head import DAMPENING, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, FittedHead
from fewshot.learners.logistic import Logistic, logistic_coefficients
from fewshot.learners.metric import MetricLearner
from fewshot.learners.ridge import Ridge, ridge_weights
from fewshot.learners.stored import Stored
from tests.learners.made_up import SHAPE

WAY = 3
Floats = NDArray[np.float64]


def shown(images: int, size: int, *, way: int = WAY, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Features and one-hot targets; every class but the last two is there for certain."""
    random = torch.Generator().manual_seed(images * size)
    features = torch.randn(batch, images, size, generator=random, dtype=torch.double)
    labels = torch.arange(images).expand(batch, -1) % way
    return features, F.one_hot(labels, way).double()


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.double)


# --- Ridge --------------------------------------------------------------------------------------------------


def slow_ridge(features: Floats, targets: Floats, regulariser: float) -> Floats:
    """As a least-squares problem: the ridge is so many more rows, of targets 0."""
    size = features.shape[1]
    rows = np.vstack([features, np.sqrt(regulariser) * np.eye(size)])
    return np.asarray(np.linalg.lstsq(rows, np.vstack([targets, np.zeros((size, WAY))]), rcond=None)[0])


@pytest.mark.parametrize("size", [2, 6, 7, 20])
def test_ridge_weights_are_the_least_squares(size: int) -> None:
    """With fewer features than images and with more."""
    features, targets = shown(6, size)
    weights = ridge_weights(features, targets, number(0.7))
    for episode in range(2):
        expected = slow_ridge(features[episode].numpy(), targets[episode].numpy(), 0.7)
        np.testing.assert_allclose(weights[episode].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [2, 7])
def test_gradient_of_ridge_weights(size: int) -> None:
    features, targets = shown(4, size)
    regulariser = number(0.7).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, ridge: ridge_weights(x, targets, ridge), (features.requires_grad_(), regulariser)
    )


def test_ridge_scores_are_scaled_and_shifted_predictions() -> None:
    learner = Ridge(SHAPE, WAY, widths=(4,), regulariser=0.7, scale=3.0).double()
    features, targets = shown(6, 5)
    with torch.no_grad():
        learner.bias.fill_(0.25)
        asked = torch.randn(2, 4, 5, dtype=torch.double)
        scores = learner.scores(Stored(features, targets.argmax(-1), targets.sum(1)), asked)
    for episode in range(2):
        weights = slow_ridge(features[episode].numpy(), targets[episode].numpy(), 0.7)
        expected = 3.0 * asked[episode].numpy() @ weights + 0.25
        # The learned numbers were float32: a score near 0 is off by that much of its parts.
        np.testing.assert_allclose(scores[episode].numpy(), expected, rtol=1e-6, atol=1e-6)


# --- Logistic -----------------------------------------------------------------------------------------------


def newton(features: Floats, target: Floats, regulariser: float, steps: int) -> Floats:
    """Newton's method in the weights of one class, by its gradient and its Hessian."""
    weights = np.zeros(features.shape[1])
    for _ in range(steps):
        estimate = 1 / (1 + np.exp(-features @ weights))
        gradient = features.T @ (estimate - target) + regulariser * weights
        curvature = (features * (estimate * (1 - estimate))[:, None]).T @ features
        weights = weights - np.linalg.solve(curvature + regulariser * np.eye(len(weights)), gradient)
    return weights


def weights_of(features: Tensor, targets: Tensor, regulariser: float, steps: int) -> Tensor:
    """(batch, feature, way)."""
    products = features @ features.mT
    return features.mT @ logistic_coefficients(products, targets, number(regulariser), steps)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("size", [3, 8])
def test_each_step_is_newtons(size: int, steps: int) -> None:
    features, targets = shown(6, size)
    weights = weights_of(features, targets, 0.7, steps)
    for episode, label in np.ndindex(2, WAY):
        expected = newton(features[episode].numpy(), targets[episode, :, label].numpy(), 0.7, steps)
        np.testing.assert_allclose(weights[episode, :, label].numpy(), expected, rtol=1e-8, atol=1e-11)


def test_newtons_steps_lead_to_the_minimum() -> None:
    features, targets = shown(7, 4)
    weights = weights_of(features, targets, 0.5, 15)
    for episode, label in np.ndindex(2, WAY):
        points, signs = features[episode].numpy(), 2 * targets[episode, :, label].numpy() - 1

        def loss(given: Floats, points: Floats = points, signs: Floats = signs) -> float:
            return float(np.logaddexp(0, -signs * (points @ given)).sum() + 0.25 * given @ given)

        found = weights[episode, :, label].numpy()
        best = minimize(loss, np.zeros(4), options={"gtol": 1e-9})
        np.testing.assert_allclose(found, best.x, atol=1e-5)
        assert loss(found) <= best.fun + 1e-12


def test_gradient_of_logistic_coefficients() -> None:
    features, targets = shown(4, 3)
    regulariser = number(0.7).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, ridge: logistic_coefficients(x @ x.mT, targets, ridge, 3),
        (features.requires_grad_(), regulariser),
    )


def test_certain_estimates_do_no_harm() -> None:
    """Where features are long the sigmoid is 0 or 1 in float32, and so is its weight 0."""
    features, targets = (part.float() for part in shown(6, 20))
    coefficients = logistic_coefficients(1e6 * features @ features.mT, targets, torch.tensor(1e-3), 8)
    assert coefficients.isfinite().all()


# --- By gradient descent ------------------------------------------------------------------------------------


def by_descent(scores: Callable[[], Tensor], labels: Tensor, weights: list[Tensor], steps: int) -> None:
    """The same steps by autograd and torch's optimiser, in the weights themselves."""
    optimizer = torch.optim.SGD(
        weights, LEARNING_RATE, momentum=MOMENTUM, dampening=DAMPENING, weight_decay=WEIGHT_DECAY
    )
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(scores(), labels).backward()
        optimizer.step()


def fitted(learner: FittedHead, features: Tensor, targets: Tensor, asked: Tensor) -> Tensor:
    with torch.no_grad():
        return learner.scores(Stored(features, targets.argmax(-1), targets.sum(1)), asked)


@pytest.mark.parametrize("images", [2, 7])
def test_the_linear_head_is_fitted_by_gradient_descent(images: int) -> None:
    """Of two images, a class is not seen; it is among the head's classes all the same."""
    learner = Baseline(SHAPE, WAY, widths=(4,), classes=2, head_steps=25).double()
    features, targets = shown(images, 5)
    asked = torch.randn(2, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    scores = fitted(learner, features, targets, asked)
    for episode in range(2):
        points, labels = features[episode], targets[episode].argmax(-1)
        weights = torch.zeros(WAY, 5, dtype=torch.double, requires_grad=True)
        bias = torch.zeros(WAY, dtype=torch.double, requires_grad=True)
        by_descent(lambda p=points, w=weights, b=bias: p @ w.T + b, labels, [weights, bias], 25)  # type: ignore[misc]
        expected = (asked[episode] @ weights.T + bias).detach()
        expected[:, targets[episode].sum(0) == 0] = -torch.inf
        torch.testing.assert_close(scores[episode], expected)


@pytest.mark.parametrize("images", [2, 7])
def test_the_cosine_head_is_fitted_by_gradient_descent(images: int) -> None:
    """From the mean features of the classes seen, and among them alone."""
    learner = BaselinePp(SHAPE, WAY, widths=(4,), classes=2, head_steps=25).double()
    features, targets = shown(images, 5)
    asked = torch.randn(2, 4, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    scores = fitted(learner, features, targets, asked)
    for episode in range(2):
        points, labels = F.normalize(features[episode], dim=-1), targets[episode].argmax(-1)
        seen = targets[episode].sum(0) > 0
        means = [points[labels == label].mean(0) for label in range(WAY) if seen[label]]
        weights = torch.stack(means).requires_grad_()
        by_descent(
            lambda p=points, w=weights: SHARPNESS * p @ F.normalize(w, dim=-1).T,  # type: ignore[misc]
            labels,
            [weights],
            25,
        )
        directions = F.normalize(weights.detach(), dim=-1)
        expected = torch.full((4, WAY), -torch.inf, dtype=torch.double)
        expected[:, seen] = SHARPNESS * F.normalize(asked[episode], dim=-1) @ directions.T
        torch.testing.assert_close(scores[episode], expected)


# --- All ----------------------------------------------------------------------------------------------------


def test_nothing_shown_is_nothing_known() -> None:
    for learner in (
        Ridge(SHAPE, WAY, widths=(4,)),
        Logistic(SHAPE, WAY, widths=(4,)),
        Baseline(SHAPE, WAY, widths=(4,)),
        BaselinePp(SHAPE, WAY, widths=(4,)),
    ):
        scores = learner.scores(learner.start(2, WAY), torch.randn(2, 3, learner.feature_size))
        assert scores.tolist() == 2 * [3 * [WAY * [-torch.inf]]]


@pytest.mark.parametrize(
    ("learner", "options", "says"),
    [
        (Ridge, {"regulariser": 0.0}, "regulariser must be above 0; got 0.0"),
        (Ridge, {"scale": -1.0}, "scale must be above 0; got -1.0"),
        (Logistic, {"regulariser": -0.5}, "regulariser must be above 0; got -0.5"),
        (Logistic, {"newton_steps": 0}, "newton_steps must be at least 1; got 0"),
        (Baseline, {"head_steps": -1}, "head_steps must be at least 0; got -1"),
        (BaselinePp, {"classes": 0}, "classes must be at least 1; got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    learner: type[MetricLearner], options: dict[str, float], says: str
) -> None:
    with pytest.raises(LearnerError) as caught:
        learner(SHAPE, WAY, **options)
    assert str(caught.value) == says
