"""`nearest_feature`, `key_value`, `attention`, `feedforward`: what each is made of, and what it refuses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.episodes.batch import KShotBatch, StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.errors import LearnerError
from fewshot.learners.base import Learner
from fewshot.learners.key_value import KeyValue
from fewshot.learners.metric import MetricLearner, across_episodes_loss, best_of_class, soft_best_of_class
from fewshot.learners.nearest_feature import NearestFeature
from fewshot.learners.registry import build_learner
from fewshot.memory.attribution import amounts, read_amounts
from fewshot.memory.key_value import margin_loss

SHAPE, WAY = (1, 12, 12), 3
ENCODER: dict[str, Any] = {"widths": (4, 8), "embedding_size": 6}
SMALL: dict[str, dict[str, Any]] = {
    "nearest_feature": ENCODER,
    "nearest_feature:hard": ENCODER | {"soft": False},
    "nearest_feature:pixels": {"widths": ()},
    "key_value": ENCODER | {"num_slots": 4},
    "attention": ENCODER | {"hidden_size": 8, "read_heads": 2},
    "attention:apart": ENCODER | {"hidden_size": 8, "read_heads": 2, "tie": False},
    "attention:pixels": {"widths": (), "hidden_size": 8, "num_layers": 1},
    "feedforward": ENCODER | {"hidden_size": 10},
    "feedforward:pixels": {"widths": (), "hidden_size": 10},
}
every_learner = pytest.mark.parametrize("name", SMALL)
by_distance = pytest.mark.parametrize("name", ["nearest_feature", "nearest_feature:hard", "key_value"])


def build(name: str, **more: Any) -> Learner:
    torch.manual_seed(0)
    return build_learner(name, SHAPE, WAY, SMALL[name] | more).eval()


def build_by_distance(name: str) -> MetricLearner:
    learner = build(name)
    assert isinstance(learner, MetricLearner)
    return learner


def stream(batch: int = 2, length: int = 9, noise: float = 1.0, seed: int = 0) -> StreamBatch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(batch, length, generator=generator).argsort(1) % WAY
    patterns = torch.randn(batch, WAY, *SHAPE, generator=generator)
    images = patterns[torch.arange(batch).unsqueeze(1), labels]
    images = images + noise * torch.randn(images.shape, generator=generator)
    return StreamBatch(images, labels, presentation(labels, WAY), torch.arange(WAY).expand(batch, -1), WAY)


def kshot(batch: int = 2, query: int = 4) -> KShotBatch:
    shown, asked = stream(batch, 6, seed=1), stream(batch, query, seed=2)
    return KShotBatch(Support(shown.images, shown.labels, WAY), asked.images, asked.labels, shown.class_ids)


# --- All four -----------------------------------------------------------------------------------------------


@every_learner
def test_a_stream_at_once_is_the_stream_step_by_step(name: str) -> None:
    learner, batch = build(name), stream(length=15)
    with torch.no_grad():
        torch.testing.assert_close(learner.stream(batch), Learner.stream(learner, batch), atol=1e-5, rtol=0)


@every_learner
def test_gradients_of_a_stream_at_once_are_those_step_by_step(name: str) -> None:
    """In evaluation mode, as batch norm of a whole stream is not that of its images."""
    learner, batch = build(name).double(), stream(length=8)
    batch = batch._replace(images=batch.images.double())
    parameters = list(learner.parameters())
    fast, slow = (
        torch.autograd.grad(logits.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        for logits in (learner.stream(batch), Learner.stream(learner, batch))
    )
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other)


@every_learner
def test_every_parameter_is_trained_by_a_stream(name: str) -> None:
    learner = build(name).train()
    learner.loss(stream(batch=4, length=15)).backward()
    for key, parameter in learner.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@every_learner
def test_kshot_trains_too(name: str) -> None:
    learner = build(name).train()
    learner.loss(kshot(batch=4)).backward()
    gradients = [parameter.grad for parameter in learner.parameters()]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nearest_feature", {"sharpness": 0.0}, "sharpness must be above 0; got 0.0"),
        ("nearest_feature", {"embedding_size": 0}, "embedding_size must be at least 1; got 0"),
        ("nearest_feature", {"metric_weight": -1.0}, r"metric_weight must be at least 0, .* got -1.0"),
        ("key_value", {"metric_weight": -1.0}, r"metric_weight must be at least 0, .* got -1.0"),
        ("key_value", {"embedding_size": 0}, "embedding_size must be at least 1; got 0"),
        ("key_value", {"num_slots": 0}, "num_slots must be at least 1; got 0"),
        ("key_value", {"margin": -0.1}, "margin must be at least 0; got -0.1"),
        ("key_value", {"widths": ()}, r"widths must name a convolution block .* bare pixels .*"),
        ("attention", {"num_layers": 0}, "num_layers must be at least 1; got 0"),
        ("attention", {"read_heads": 0}, "read_heads must be at least 1; got 0"),
        ("attention", {"read_heads": 3}, r"hidden_size must be a multiple of read_heads, .* got 8 and 3"),
        ("feedforward", {"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
    ],
)
def test_options_that_make_no_network_are_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerError, match=f"^{says}$"):
        build(name, **options)


@pytest.mark.parametrize("name", ["attention", "feedforward"])
def test_another_way_is_refused(name: str) -> None:
    with pytest.raises(LearnerError, match=r"built for 3-way episodes .* train one with way 5"):
        build(name).start(2, 5)


# --- By distance --------------------------------------------------------------------------------------------


@by_distance
def test_labels_not_seen_share_the_new_score(name: str) -> None:
    learner = build_by_distance(name)
    first = stream(batch=1).images[:, 0]
    state = learner.observe(learner.start(1, WAY), first, torch.tensor([2]))
    logits = learner.predict(state, stream(batch=1).images)
    assert (logits[..., :2] == learner.new_score).all()
    assert (logits[..., 2] != learner.new_score).all()


@by_distance
def test_calibration_recognises_new_classes(name: str) -> None:
    learner = build_by_distance(name)
    learner.calibrate(stream(batch=60, length=15, noise=0.1))
    batch = stream(batch=60, length=15, noise=0.1, seed=1)
    with torch.no_grad():
        right = (learner.stream(batch).argmax(-1) == batch.labels).double()
    assert right[batch.presentation > 1].mean() > 0.9
    seen = F.one_hot(batch.labels, WAY).cumsum(1) - F.one_hot(batch.labels, WAY)
    only_one_left = (batch.presentation == 1) & ((seen == 0).sum(-1) == 1)
    assert right[only_one_left].mean() > 0.8


@by_distance
def test_the_encoders_own_loss_is_added_by_its_weight(name: str) -> None:
    batch = stream(batch=3, length=12)
    losses = [build(name, metric_weight=weight).loss(batch).item() for weight in (0.0, 0.5)]
    own = across_episodes_loss(build(name).embed(batch.images), batch)
    assert losses[1] == pytest.approx(losses[0] + 0.5 * own.item())


@by_distance
def test_support_and_queries_share_one_batch_norm_in_training(name: str) -> None:
    learner, batch = build_by_distance(name).train(), kshot()
    learner.loss(batch)
    seen = {key: value.clone() for key, value in learner.named_buffers() if key.endswith("running_mean")}
    assert seen
    again = build_by_distance(name).train()
    again.embed(torch.cat([batch.support.images, batch.query_images], dim=1))
    for key, value in again.named_buffers():
        if key in seen:
            torch.testing.assert_close(value, seen[key])


# --- Nearest feature ----------------------------------------------------------------------------------------


def slow_score(similarities: list[float], soft: bool) -> float:
    if not similarities:
        return -math.inf
    return math.log(sum(map(math.exp, similarities))) if soft else max(similarities)


@pytest.mark.parametrize("soft", [True, False])
def test_scores_are_those_of_the_slow_twin(soft: bool) -> None:
    random = np.random.default_rng(0)
    similarity, labels = random.normal(scale=5, size=(3, 4, 7)), random.integers(WAY, size=(3, 7))
    labels[0] = 1  # so that two classes have no image
    scores = (soft_best_of_class if soft else best_of_class)(
        torch.tensor(similarity), torch.tensor(labels), WAY
    )
    for episode, image, label in np.ndindex(3, 4, WAY):
        own = [float(similarity[episode, image, i]) for i in range(7) if labels[episode, i] == label]
        assert float(scores[episode, image, label]) == pytest.approx(slow_score(own, soft), rel=1e-12)


@pytest.mark.parametrize("soft", [True, False])
def test_logits_are_sharpened_cosines_of_what_was_stored(soft: bool) -> None:
    torch.manual_seed(0)
    learner = NearestFeature(SHAPE, WAY, **ENCODER, soft=soft, sharpness=7.0).double().eval()
    batch = kshot()
    batch = batch._replace(
        support=batch.support._replace(images=batch.support.images.double()),
        query_images=batch.query_images.double(),
    )
    with torch.no_grad():
        logits = learner.answer(batch)
        stored, asked = (learner.embed(part).numpy() for part in (batch.support.images, batch.query_images))
    labels = batch.support.labels.numpy()
    for episode, query, label in np.ndindex(*logits.shape):
        own = []
        for image in np.flatnonzero(labels[episode] == label):
            one, other = asked[episode, query], stored[episode, image]
            own.append(7.0 * float(one @ other) / math.hypot(*one) / math.hypot(*other))
        assert float(logits[episode, query, label]) == pytest.approx(slow_score(own, soft), rel=1e-6)


@pytest.mark.parametrize("name", ["nearest_feature", "nearest_feature:hard"])
def test_what_is_read_from_a_class_is_the_probability_that_it_is_answered(name: str) -> None:
    learner, batch = build_by_distance(name), stream(length=12)
    with torch.no_grad():
        logits, watch = learner.watch_features(batch._replace(images=learner.embed(batch.images)))
    read = torch.stack([visit.read for visit in watch.visits], dim=1)
    of_class = read @ F.one_hot(batch.labels, WAY).float()
    seen = (F.one_hot(batch.labels, WAY).cumsum(1) - F.one_hot(batch.labels, WAY)) > 0
    torch.testing.assert_close(of_class, logits.softmax(-1) * seen)
    assert (read > 0).sum(-1).max() == (11 if name == "nearest_feature" else WAY)


def test_an_image_takes_its_slot_when_its_label_is_shown() -> None:
    learner, batch = build_by_distance("nearest_feature"), stream(length=5)
    with torch.no_grad():
        _, watch = learner.watch_features(batch._replace(images=learner.embed(batch.images)))
    written = [visit.written[0].nonzero().flatten().tolist() for visit in watch.visits]
    assert written == [[], *([step] for step in range(4))]


def test_soft_scores_stay_finite_however_sharp_and_pass_the_softmax_as_gradient() -> None:
    similarity = torch.tensor([[[3e4, -3e4, 2e4, 2e4]]], dtype=torch.double, requires_grad=True)
    labels = torch.tensor([[0, 0, 2, 2]])
    scores = soft_best_of_class(similarity, labels, 3)
    assert scores.tolist() == [[[3e4, -math.inf, 2e4 + math.log(2)]]]
    scores[0, 0, [0, 2]].sum().backward()
    assert similarity.grad is not None
    assert similarity.grad.tolist() == [[[1.0, 0.0, 0.5, 0.5]]]


def test_gradient_of_soft_scores() -> None:
    labels = torch.tensor([[0, 2, 0, 1, 2], [2, 2, 2, 0, 0]])

    def seen_scores(similarity: Tensor) -> Tensor:
        scores = soft_best_of_class(similarity, labels, WAY)
        return scores.masked_fill(scores == -math.inf, 0)

    similarity = torch.randn(2, 3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(seen_scores, similarity)


def test_the_new_score_is_learned_from_streams() -> None:
    learner = build_by_distance("nearest_feature").train()
    learner.loss(stream(batch=8, length=15)).backward()
    assert learner.new_score.grad is not None
    assert learner.new_score.grad != 0
    learner.new_score.grad = None
    learner.loss(kshot(batch=8)).backward()  # every class is seen: nothing to learn it from
    assert learner.new_score.grad == 0


# --- Key-value ----------------------------------------------------------------------------------------------


def test_a_stream_longer_than_the_memory_keeps_what_came_last() -> None:
    learner = KeyValue(SHAPE, WAY, **ENCODER, num_slots=2).eval()
    batch = stream(batch=3, length=60)
    with torch.no_grad():
        assert learner.stream(batch).isfinite().all()
        state = learner.start(3, WAY)
        for image, label in zip(batch.images.unbind(1), batch.labels.unbind(1), strict=True):
            state = learner.observe(state, image, label)
            assert (state.values.argmax(-1) == label.unsqueeze(1)).any(1).all()  # the last is always there
        assert state.keys.shape == (3, 2, 6)
        scores = learner.scores(state, learner.embed(batch.images[:, :4]))
    stored = (state.values > 0).any(1)
    assert stored.sum(1).max() <= 2  # so one label at least was forgotten, and is new again
    assert torch.equal(scores > -math.inf, stored.unsqueeze(1).expand_as(scores))


@pytest.mark.parametrize("num_slots", [2, 5, 40])
def test_a_key_is_the_sum_of_queries_that_the_microscope_says_it_is(num_slots: int) -> None:
    learner = KeyValue(SHAPE, WAY, **ENCODER, num_slots=num_slots).double().eval()
    batch = stream(length=15)
    state = learner.start(2, WAY)
    with torch.no_grad():
        features = learner.embed(batch.images.double())
        queries = F.normalize(features, dim=-1)
        _, watch = learner.watch_features(batch._replace(images=features))
        found = read_amounts(watch.visits)[..., 1:] @ queries[:, :-1]  # what step j + 1 wrote is query j
        for step, held in enumerate(amounts(watch.visits)):
            keys = held[..., 1:] @ queries[:, :-1]
            torch.testing.assert_close(keys, state.keys[:, watch.slots])
            nearest = (queries[:, step : step + 1] @ state.keys.mT).argmax(-1)
            read = watch.visits[step].read
            where = read.sum(-1) > 0
            assert torch.equal(watch.slots[read.argmax(-1)][where], nearest[:, 0][where])
            expected = state.keys[torch.arange(2), nearest[:, 0]] * where.unsqueeze(-1)
            torch.testing.assert_close(found[:, step], expected)
            state = learner.observe_features(state, features[:, step], batch.labels[:, step])
    assert len(watch.slots) <= num_slots == watch.num_slots
    unused = sorted(set(range(num_slots)) - set(watch.slots.tolist()))
    assert not state.keys[:, unused].any()


@pytest.mark.parametrize(("new_score", "reads"), [(2.0, 0), (-2.0, 1)])  # no cosine is as great, nor as small
def test_nothing_is_read_where_the_answer_is_a_new_label(new_score: float, reads: int) -> None:
    learner, batch = build_by_distance("key_value"), stream(length=12)
    learner.new_score.fill_(new_score)
    with torch.no_grad():
        logits, watch = learner.watch_features(batch._replace(images=learner.embed(batch.images)))
    read = torch.stack([visit.read.sum(-1) for visit in watch.visits], dim=1)
    new = (logits == new_score).any(-1)
    assert read[~new].eq(1).all()
    assert read[:, 1:][new[:, 1:]].eq(reads).all()
    assert not read[:, 0].any(), "there is nothing yet"


def test_what_it_is_trained_by_is_the_margin_of_cosines() -> None:
    learner, batch = build_by_distance("key_value"), stream(length=12)
    scores = learner.stream_scores(batch._replace(images=learner.embed(batch.images)))
    assert scores[scores > -math.inf].abs().max() <= 1 + 1e-6
    torch.testing.assert_close(learner.loss(batch), margin_loss(scores, batch.labels, 0.1))


def test_stored_keys_take_no_gradient() -> None:
    learner, batch = build_by_distance("key_value"), kshot()
    features = learner.embed(batch.support.images).detach().requires_grad_()
    state = learner.adapt_features(batch.support._replace(images=features))
    assert not any(part.requires_grad for part in state)
    asked = learner.embed(batch.query_images).detach().requires_grad_()
    learner.loss_of_scores(learner.scores(state, asked), batch.query_labels).backward()
    assert features.grad is None
    assert asked.grad is not None


# --- Feedforward --------------------------------------------------------------------------------------------


def test_without_a_memory_only_the_last_label_counts() -> None:
    learner, batch = build("feedforward"), stream()
    other = batch.labels.clone()
    other[:, 3] = (other[:, 3] + 1) % WAY
    with torch.no_grad():
        difference = (learner.stream(batch) - learner.stream(batch._replace(labels=other))).abs().amax((0, 2))
    assert (difference > 0).tolist() == [step == 4 for step in range(9)]
