"""Prototypes against their definition, and the new score that streams are calibrated with."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot.episodes.batch import KShotBatch, StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners.check import check_learner
from fewshot.learners.metric import best_new_score, counts_before, squared_distances
from fewshot.learners.prototypical import COSINE_SHARPNESS, Prototypical
from fewshot.learners.registry import build_learner, telling_options

WAY = 4
IMAGE_SHAPE = (1, 10, 10)


def build(distance: Literal["squared_euclidean", "cosine"] = "squared_euclidean") -> Prototypical:
    torch.manual_seed(0)
    return Prototypical(IMAGE_SHAPE, WAY, widths=(4, 6), distance=distance).double()


def refined(refinements: int) -> Prototypical:
    torch.manual_seed(0)
    return Prototypical(IMAGE_SHAPE, WAY, widths=(4, 6), refinements=refinements).double().eval()


def kshot(batch: int = 3, shot: int = 2, query: int = 2) -> KShotBatch:
    torch.manual_seed(1)
    labels = torch.stack([torch.randperm(WAY * (shot + query)) % WAY for _ in range(batch)])
    labels[:, : WAY * shot] = torch.arange(WAY * shot) % WAY
    images = torch.randn(batch, labels.shape[1], *IMAGE_SHAPE).double()
    split = WAY * shot
    support = Support(images[:, :split], labels[:, :split], WAY)
    return KShotBatch(support, images[:, split:], labels[:, split:], torch.arange(WAY).expand(batch, -1))


def stream(batch: int, length: int, seed: int = 2) -> StreamBatch:
    """Images that are all but the same within a class."""
    torch.manual_seed(seed)
    labels = torch.stack([torch.randperm(length) % WAY for _ in range(batch)])
    patterns = torch.randn(batch, WAY, *IMAGE_SHAPE)
    images = patterns[torch.arange(batch).unsqueeze(1), labels]
    images = (images + 0.1 * torch.randn(images.shape)).double()
    class_ids = torch.arange(WAY).expand(batch, -1)
    return StreamBatch(images, labels, presentation(labels, WAY), class_ids, WAY)


def accuracy(logits: Tensor, labels: Tensor, where: Tensor) -> float:
    return float((logits.argmax(-1) == labels)[where].double().mean())


@pytest.mark.parametrize("distance", ["squared_euclidean", "cosine"])
def test_logits_are_by_distance_to_the_class_mean(distance: Literal["squared_euclidean", "cosine"]) -> None:
    learner, batch = build(distance).eval(), kshot()
    with torch.no_grad():
        answers = learner.answer(batch)
        for episode in range(len(answers)):
            shown = learner.backbone(batch.support.images[episode])
            for query, image in enumerate(batch.query_images[episode]):
                feature = learner.backbone(image.unsqueeze(0))[0]
                for label in range(WAY):
                    mean = shown[batch.support.labels[episode] == label].mean(0)
                    expected = -(feature - mean).square().sum()
                    if distance == "cosine":
                        expected = COSINE_SHARPNESS * (feature @ mean) / (feature.norm() * mean.norm())
                    torch.testing.assert_close(answers[episode, query, label], expected)


def test_a_metric_scale_multiplies_squared_distances_and_chooses_the_same_class() -> None:
    learner, batch = build().eval(), kshot()
    with torch.no_grad():
        answers = learner.answer(batch)
        learner.metric_scale = 0.04
        torch.testing.assert_close(learner.answer(batch), 0.04 * answers)
    scaled, plain = (Prototypical(IMAGE_SHAPE, WAY, metric_scale=scale, widths=(4,)) for scale in (0.04, 1.0))
    torch.testing.assert_close(scaled.new_score, 0.04 * plain.new_score)
    with pytest.raises(LearnerError, match=r"metric_scale must be above 0; got -1"):
        Prototypical(IMAGE_SHAPE, WAY, metric_scale=-1.0)
    with pytest.raises(
        LearnerError, match="metric_scale is of squared distances, and cosines were asked for"
    ):
        Prototypical(IMAGE_SHAPE, WAY, distance="cosine", metric_scale=0.1, widths=(4,))


def test_results_by_the_distance_of_old_keep_their_keys() -> None:
    assert telling_options(Prototypical) == {"widths": (64, 64, 64, 64)}
    assert telling_options(Prototypical, {"distance": "cosine"})["distance"] == "cosine"


def test_loss_shares_one_batch_norm_between_support_and_query() -> None:
    learner, batch = build().train(), kshot()
    loss = learner.loss(batch)
    everything = torch.cat([batch.support.images, batch.query_images], 1).flatten(0, 1)
    learner.backbone(everything)  # what the running statistics have seen twice is the same
    first = [buffer.clone() for name, buffer in learner.named_buffers() if name.endswith("running_mean")]
    torch.manual_seed(0)
    fresh = build().train()
    fresh.backbone(everything)
    fresh.backbone(everything)
    second = [buffer for name, buffer in fresh.named_buffers() if name.endswith("running_mean")]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
    assert loss.isfinite()


def test_squared_distances_are_those_of_cdist() -> None:
    points, others = torch.randn(2, 5, 7).double(), torch.randn(2, 3, 7).double()
    torch.testing.assert_close(squared_distances(points, others), torch.cdist(points, others).square())


def test_counts_are_of_the_steps_before() -> None:
    counts = counts_before(torch.tensor([[1, 0, 1, 1]]), 2)
    assert counts.tolist() == [[[0, 0], [0, 1], [1, 1], [1, 2]]]


def brute_force_score(scores: Tensor, batch: StreamBatch) -> float:
    """The most right answers, in expectation, that any new score can give."""
    counts = counts_before(batch.labels, batch.way)

    def right(new_score: float) -> float:
        total = 0.0
        for episode, step in (counts >= 0).all(-1).nonzero().tolist():
            seen = counts[episode, step] > 0
            unseen = int((~seen).sum())
            label = int(batch.labels[episode, step])
            best = scores[episode, step].masked_fill(~seen, -torch.inf)
            if unseen and (not seen.any() or float(best.max()) < new_score):
                total += (not seen[label]) / unseen
            else:
                total += int(best.argmax()) == label
        return total

    thresholds = scores.flatten().sort().values
    middles = (thresholds[1:] + thresholds[:-1]) / 2
    candidates = [float(thresholds[0]) - 1, *middles.tolist(), float(thresholds[-1]) + 1]
    ours = right(float(best_new_score(scores, batch)))
    assert ours == pytest.approx(max(map(right, candidates)))
    return ours


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_answers_better_than_the_calibrated_one(seed: int) -> None:
    batch = stream(batch=3, length=12, seed=seed)
    torch.manual_seed(seed)
    scores = torch.randn(3, 12, WAY).double()
    scores[..., 0] += 0.5
    assert brute_force_score(scores, batch) > 0


def test_calibration_recognises_new_classes() -> None:
    learner = build().eval()
    learner.calibrate(stream(batch=50, length=20))
    batch = stream(batch=50, length=20, seed=3)
    with torch.no_grad():
        answers = learner.stream(batch)
    assert accuracy(answers, batch.labels, batch.presentation > 1) > 0.95
    unseen = (counts_before(batch.labels, WAY) == 0).sum(-1)
    last = (batch.presentation == 1) & (unseen == 1)
    assert accuracy(answers, batch.labels, last) > 0.95  # only one label is left for a new class


def test_labels_not_seen_share_the_new_score() -> None:
    learner = build().eval()
    state = learner.observe(learner.start(1, WAY), torch.randn(1, *IMAGE_SHAPE).double(), torch.tensor([2]))
    logits = learner.predict(state, torch.randn(1, 3, *IMAGE_SHAPE).double())
    new_score = learner.new_score.item()
    assert (logits[..., [0, 1, 3]] == new_score).all()
    assert (logits[..., 2] != new_score).all()


def test_calibration_without_a_doubtful_image_is_harmless() -> None:
    learner = build().eval()
    batch = stream(batch=1, length=WAY)
    learner.calibrate(
        batch._replace(
            images=batch.images[:, :1], labels=batch.labels[:, :1], presentation=batch.presentation[:, :1]
        )
    )
    assert learner.new_score.isfinite()


@pytest.mark.parametrize("refinements", [1, 3])
def test_queries_move_the_means_by_the_shares_they_are_given(refinements: int) -> None:
    """Ren et al. 2018, equation 3, query by query."""
    learner, batch = refined(refinements), kshot()
    with torch.no_grad():
        answers = learner.answer(batch).numpy()
        shown = learner.backbone(batch.support.images).numpy()
        asked = learner.backbone(batch.query_images).numpy()
    for episode, labels in enumerate(batch.support.labels.numpy()):
        means = np.stack([shown[episode][labels == label].mean(0) for label in range(WAY)])
        for _ in range(refinements):
            sums = np.stack([shown[episode][labels == label].sum(0) for label in range(WAY)])
            counts = np.array([float((labels == label).sum()) for label in range(WAY)])
            for feature in asked[episode]:
                score = -((feature - means) ** 2).sum(1)
                share = np.exp(score - score.max())
                share /= share.sum()
                for label in range(WAY):
                    sums[label] += share[label] * feature
                    counts[label] += share[label]
            means = sums / counts[:, None]
        for query, feature in enumerate(asked[episode]):
            np.testing.assert_allclose(answers[episode, query], -((feature - means) ** 2).sum(1), rtol=1e-6)


def test_a_query_asked_alone_moves_nothing_and_a_stream_is_answered_as_without() -> None:
    plain, moved, batch, images = refined(0), refined(2), kshot(query=3), stream(2, 12)
    assert moved.transductive
    assert not plain.transductive
    with torch.no_grad():
        state = plain.adapt(batch.support)
        alone, together = batch.query_images[:, :1], batch.query_images
        assert torch.equal(plain.predict(state, alone), moved.predict(state, alone))
        assert not torch.allclose(plain.predict(state, together), moved.predict(state, together))
        assert torch.equal(plain.stream(images), moved.stream(images))
        before_any = moved.predict(moved.start(2, WAY), together[:2])
    assert not before_any.isnan().any()


def test_refining_prototypes_keep_their_promises() -> None:
    check_learner(build_learner("prototypical", (1, 28, 28), 5, {"refinements": 2}))
    with pytest.raises(LearnerError, match="refinements must be at least 0; got -1"):
        build_learner("prototypical", (1, 28, 28), 5, {"refinements": -1})
