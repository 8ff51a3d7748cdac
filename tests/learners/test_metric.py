"""What learners by distance share, held to what it says."""

import math

import pytest
import torch

from fewshot.episodes.batch import StreamBatch, with_each
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners.lstm import Lstm
from fewshot.learners.mann import Mann
from fewshot.learners.metric import SHARPNESS, across_episodes_loss

SHAPE = (1, 12, 12)


def batch_of(labels: torch.Tensor, way: int) -> StreamBatch:
    images = torch.randn(*labels.shape, *SHAPE, generator=torch.Generator().manual_seed(0))
    return StreamBatch(images, labels, presentation(labels, way), labels[:, :way], way)


def slow_loss(features: torch.Tensor, labels: torch.Tensor) -> float:
    """Image by image, with the classes of all streams in a list."""
    firsts: dict[tuple[int, int], torch.Tensor] = {}
    asked = []
    for stream in range(len(labels)):
        for step, label in enumerate(labels[stream].tolist()):
            if (stream, label) in firsts:
                asked.append(((stream, label), features[stream, step]))
            else:
                firsts[stream, label] = features[stream, step]
    losses = []
    for true, point in asked:
        scores = {
            key: math.exp(-SHARPNESS * float((point - first).square().mean()))
            for key, first in firsts.items()
        }
        losses.append(-math.log(scores[true] / sum(scores.values())))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("labels", [[[0, 1, 0, 1, 1], [1, 0, 0, 1, 0]], [[0, 0, 0, 0, 0], [2, 1, 2, 0, 2]]])
def test_every_image_is_asked_among_the_classes_of_all_streams(labels: list[list[int]]) -> None:
    shown = torch.tensor(labels)
    features = torch.randn(2, 5, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    batch = batch_of(shown, 3)
    assert float(across_episodes_loss(features, batch)) == pytest.approx(slow_loss(features, shown))
    assert torch.autograd.gradcheck(lambda x: across_episodes_loss(x, batch), features.requires_grad_())


def test_the_links_of_a_chain_are_streams_of_their_own() -> None:
    apart = batch_of(torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 1], [1, 0, 2, 1, 0], [0, 0, 1, 2, 1]]), 3)
    joined = with_each(apart, lambda part: part.reshape(2, -1, *part.shape[2:]))._replace(chain=2)
    features = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        across_episodes_loss(features.reshape(2, 10, 6), joined), across_episodes_loss(features, apart)
    )


@pytest.mark.parametrize("learner", [Mann, Lstm])
def test_the_encoders_own_loss_is_added_by_its_weight(learner: type[Mann | Lstm]) -> None:
    labels = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 0, 1, 0]])
    batch, losses = batch_of(labels, 3), []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        made = learner(SHAPE, 3, widths=(4, 8), embedding_size=6, hidden_size=10, metric_weight=weight).eval()
        losses.append(made.loss(batch).item())
        with torch.no_grad():
            own = float(across_episodes_loss(made.embed(batch.images), batch))
    assert losses[1] == pytest.approx(losses[0] + 0.5 * own)
    assert losses[2] == pytest.approx(losses[0] + own)


def test_pixels_have_nothing_to_learn() -> None:
    with pytest.raises(LearnerError, match=r"metric_weight must be at least 0, and 0 where pixels"):
        Mann(SHAPE, 3, widths=(), metric_weight=0.5)
    with pytest.raises(LearnerError, match="metric_weight"):
        Lstm(SHAPE, 3, metric_weight=-1.0)


def test_where_no_class_comes_twice_nothing_is_learned() -> None:
    features = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = across_episodes_loss(features, batch_of(torch.tensor([[0, 1, 2], [2, 0, 1]]), 3))
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert features.grad.eq(0).all()
