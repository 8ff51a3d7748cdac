"""The rows without learning: nearest neighbour against loops, the count guesser against its known ceiling."""

import pytest
import torch

from fewshot.episodes.batch import StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.learners.count_guesser import CountGuesser
from fewshot.learners.nearest_neighbour import NearestNeighbour

IMAGE_SHAPE = (1, 3, 4)


def streams(batch: int, way: int, per_class: int, noise: float = 1.0) -> StreamBatch:
    """Shuffled streams in which every class comes up equally often."""
    torch.manual_seed(0)
    length = way * per_class
    labels = torch.rand(batch, length).argsort(1) % way
    patterns = torch.randn(batch, way, *IMAGE_SHAPE)
    images = patterns[torch.arange(batch).unsqueeze(1), labels]
    images = images + noise * torch.randn(images.shape)
    class_ids = torch.arange(way).expand(batch, -1)
    return StreamBatch(images, labels, presentation(labels, way), class_ids, way)


def test_the_nearest_image_names_the_query() -> None:
    torch.manual_seed(0)
    learner = NearestNeighbour(IMAGE_SHAPE, 3)
    labels = torch.tensor([[0, 2, 1, 1, 0, 2], [2, 2, 1, 0, 1, 0]])
    support = Support(torch.randn(2, 6, *IMAGE_SHAPE), labels, 3)
    queries = torch.randn(2, 5, *IMAGE_SHAPE)
    logits = learner.predict(learner.adapt(support), queries)
    for episode in range(2):
        for query in range(5):
            squares = [
                float((queries[episode, query] - image).square().sum()) for image in support.images[episode]
            ]
            for label in range(3):
                nearest = min(
                    square for square, own in zip(squares, labels[episode], strict=True) if own == label
                )
                assert float(logits[episode, query, label]) == pytest.approx(-nearest, rel=1e-4)


def test_nearest_neighbour_never_looks_ahead_in_a_stream() -> None:
    learner, batch = NearestNeighbour(IMAGE_SHAPE, 3), streams(batch=2, way=3, per_class=4)
    before = learner.stream(batch)
    later = batch.images.clone()
    later[:, 6:] = torch.randn(later[:, 6:].shape)
    torch.testing.assert_close(before[:, :6], learner.stream(batch._replace(images=later))[:, :6])


def test_calibrated_nearest_neighbour_recognises_new_classes() -> None:
    learner = NearestNeighbour(IMAGE_SHAPE, 4)
    batch = streams(batch=200, way=4, per_class=5, noise=0.1)
    uncalibrated = learner.stream(batch).argmax(-1) == batch.labels
    learner.calibrate(batch)
    calibrated = learner.stream(batch).argmax(-1) == batch.labels
    assert learner.new_score < 0
    assert calibrated[batch.presentation > 1].float().mean() > 0.95
    assert calibrated.float().mean() > uncalibrated.float().mean() + 0.1


def test_counting_reaches_the_known_ceiling() -> None:
    """5 classes x 10 images: 45.7 % on the first presentation, without an image (simulated: mann_notes)."""
    batch = streams(batch=4000, way=5, per_class=10)
    right = (CountGuesser(IMAGE_SHAPE, 5).stream(batch).argmax(-1) == batch.labels).double()
    by_presentation = {k: float(right[batch.presentation == k].mean()) for k in (1, 2, 5, 10)}
    expected = {1: 0.457, 2: 0.31, 5: 0.28, 10: 0.32}
    assert by_presentation == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("per_class", [3, 10, 12])
def test_a_label_that_is_used_up_is_never_guessed(per_class: int) -> None:
    batch = streams(batch=200, way=5, per_class=per_class)
    guess = CountGuesser(IMAGE_SHAPE, 5).stream(batch).argmax(-1)
    shown = torch.nn.functional.one_hot(batch.labels, 5).cumsum(1)
    before = shown[:, :-1].gather(2, guess[:, 1:].unsqueeze(2))
    assert int(before.max()) == per_class - 1


def test_the_guesser_knows_nothing_in_kshot() -> None:
    learner = CountGuesser(IMAGE_SHAPE, 5)
    labels = torch.arange(5).repeat(12).unsqueeze(0)
    state = learner.adapt(Support(torch.randn(1, 60, *IMAGE_SHAPE), labels, 5))
    logits = learner.predict(state, torch.randn(1, 4, *IMAGE_SHAPE))
    assert logits.isfinite().all()
    assert (logits == logits[..., :1]).all()


def test_the_guesser_never_looks_at_an_image() -> None:
    batch = streams(batch=3, way=4, per_class=3)
    learner = CountGuesser(IMAGE_SHAPE, 4)
    assert torch.equal(learner.stream(batch), learner.stream(batch._replace(images=batch.images + torch.nan)))
