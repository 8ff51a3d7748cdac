"""Matching networks against loops written from the paper."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.learners.matching import FullContext, Matching
from tests.learners.made_up import SHAPE, kshot, patterns

WAY = 4
Floats = NDArray[np.float64]


def build(*, full_context: bool = False) -> Matching:
    torch.manual_seed(0)
    return Matching(SHAPE, WAY, widths=(4, 2), full_context=full_context, sharpness=3.0).double().eval()


def softmax(scores: Floats) -> Floats:
    shares = np.exp(scores - scores.max())
    return np.asarray(shares / shares.sum())


@torch.no_grad()
def test_answers_are_attention_over_the_labels() -> None:
    learner, batch = build(), kshot(patterns(9).double(), way=WAY)
    answers = learner.answer(batch).softmax(-1)
    for episode, query in np.ndindex(2, batch.query_labels.shape[1]):
        asked = learner.embed(batch.query_images[episode, query : query + 1])[0].numpy()
        similar = []
        for image in batch.support.images[episode]:
            stored = learner.embed(image.unsqueeze(0))[0].numpy()
            similar.append(3.0 * (asked @ stored) / (np.linalg.norm(asked) * np.linalg.norm(stored)))
        expected = np.zeros(WAY)
        for share, label in zip(softmax(np.array(similar)), batch.support.labels[episode], strict=True):
            expected[label] += share
        np.testing.assert_allclose(answers[episode, query].numpy(), expected, rtol=1e-6)


def lstm_step(given: Floats, hidden: Floats, cell: Floats, weights: list[Floats]) -> tuple[Floats, Floats]:
    """One step of an LSTM; weights: of what is given and of the hidden state, and the bias of each."""
    of_given, of_hidden, *biases = weights
    gates = of_given @ given + of_hidden @ hidden + sum(biases)
    write, keep, new, show = np.split(gates, 4)
    write, keep, show = (1 / (1 + np.exp(-gate)) for gate in (write, keep, show))
    cell = keep * cell + write * np.tanh(new)
    return show * np.tanh(cell), cell


def slow_context(context: FullContext, stored: Floats, asked: Floats) -> tuple[Floats, Floats]:
    """Appendix A of the paper, of one episode and one query."""
    of = {name: weight.detach().numpy() for name, weight in context.named_parameters()}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    size = stored.shape[1]
    in_context = stored.copy()
    for suffix, order in (("", range(len(stored))), ("_reverse", reversed(range(len(stored))))):
        hidden, cell = np.zeros(size), np.zeros(size)
        for image in order:
            weights = [of[f"support.{name}_l0{suffix}"] for name in names]
            hidden, cell = lstm_step(stored[image], hidden, cell, weights)
            in_context[image] += hidden
    hidden, cell = np.zeros(size), np.zeros(size)
    for _ in range(context.reading_steps):
        reading = softmax(in_context @ hidden) @ in_context
        given = np.concatenate([asked, reading])
        hidden, cell = lstm_step(given, hidden, cell, [of[f"query.{name}"] for name in names])
        hidden = hidden + asked
    return in_context, hidden


def test_features_in_full_context_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    context = FullContext(5, 3).double()
    stored, asked = torch.randn(2, 6, 5).double(), torch.randn(2, 4, 5).double()
    with torch.no_grad():
        shown, named = context(stored, asked)
    for episode, query in np.ndindex(2, 4):
        expected = slow_context(context, stored[episode].numpy(), asked[episode, query].numpy())
        np.testing.assert_allclose(shown[episode].numpy(), expected[0], rtol=1e-9)
        np.testing.assert_allclose(named[episode, query].numpy(), expected[1], rtol=1e-9)


def test_gradient_through_full_context() -> None:
    torch.manual_seed(0)
    context = FullContext(3, 2).double()
    inputs: tuple[Tensor, Tensor] = (torch.randn(2, 3, 3).double(), torch.randn(2, 2, 3).double())
    assert torch.autograd.gradcheck(context, tuple(part.requires_grad_() for part in inputs))


def test_the_context_is_the_whole_support() -> None:
    """With it, another image in the support changes what an image is to the rest; without it, nothing."""
    batch = kshot(patterns(9).double(), way=WAY)
    images = batch.support.images.clone()
    images[:, 0] = -images[:, 0]
    for full_context in (True, False):
        learner = build(full_context=full_context)
        with torch.no_grad():
            scores, others = (
                learner.scores(
                    learner.adapt(batch.support._replace(images=given)), learner.embed(batch.query_images)
                )
                for given in (batch.support.images, images)
            )
        for episode in range(2):
            apart = torch.arange(WAY) != batch.support.labels[episode, 0]
            same = torch.allclose(scores[episode, :, apart], others[episode, :, apart])
            assert same is not full_context


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sharpness": 0.0}, "sharpness must be above 0; got 0.0"),
        ({"full_context": True, "reading_steps": 0}, "reading_steps must be at least 1; got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(LearnerError) as caught:
        Matching(SHAPE, WAY, widths=(4,), **options)  # type: ignore[arg-type]
    assert str(caught.value) == says
