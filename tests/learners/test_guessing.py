"""No learner can know what it was not told: chance where labels mean nothing, a ceiling where none was shown.

A learner above either bound sees labels that it should not see, whatever its other tests say. Both bounds are
held fresh and after a little training, on classes that are told apart easily.
"""

import hashlib
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.data.image_set import ImageSet
from fewshot.data.split import Split
from fewshot.data.splits import split_by_fraction
from fewshot.episodes.batch import KShotBatch, StreamBatch
from fewshot.episodes.labels import first_presentation_ceiling
from fewshot.episodes.protocol import KShot, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import evaluate
from fewshot.harness.train import calibrate, train
from fewshot.learners.base import Learner
from fewshot.learners.nearest_neighbour import NearestNeighbour
from fewshot.learners.registry import build_learner, learner_class, learner_names

WAY, CLASSES, PER_CLASS = 5, 60, 12
IMAGE_SHAPE = (1, 12, 12)
KSHOT = KShot(way=WAY, shot=2, query=3)
STREAM = Stream(way=WAY, length=50, counts="exact")
EPISODES = 200
ENCODER = {"widths": [4, 8], "embedding_size": 32}
MEMORY = ENCODER | {"hidden_size": 24}
BY_CLASS = {"widths": [4, 8], "classes": 4 * CLASSES}
OPTIONS: dict[str, dict[str, Any]] = {
    "anil": {"widths": [4, 8]},
    "attention": MEMORY,
    "baseline": BY_CLASS | {"head_steps": 5},
    "baseline_pp": BY_CLASS | {"head_steps": 5},
    "feedforward": MEMORY,
    "fomaml": {"widths": [4, 8]},
    "key_value": ENCODER,
    "logistic": {"widths": [4, 8]},
    "lstm": MEMORY,
    "maml": {"widths": [4, 8]},
    "mann": MEMORY | {"num_slots": 24, "word_size": 12},
    "mann_dnc": MEMORY | {"num_slots": 24, "word_size": 12},
    "mann_ntm": MEMORY | {"num_slots": 24, "word_size": 12},
    "mann_paper": {"hidden_size": 24},
    "mann_sparse": MEMORY | {"num_slots": 24, "word_size": 12},
    "matching": {"widths": [4, 8]},
    "meta_baseline": BY_CLASS | {"classification_steps": 20},
    "metasgd": {"widths": [4, 8]},
    "nearest_feature": ENCODER,
    "prototypical": {"widths": [4, 8]},
    "relation": {"widths": [4, 8], "relation_width": 8},
    "reptile": {"widths": [4, 8], "inner_learning_rate": 0.01, "inner_steps_test": 10},
    "ridge": {"widths": [4, 8]},
    "siamese": {"widths": [4, 8], "embedding_size": 32},
    "simpleshot": BY_CLASS,
}
KSHOT_TRAINING = {
    "episodes": {"protocol": "kshot", "way": WAY, "query": 5},
    "batch": 8,
    "steps": 40,
    "learning_rate": 5e-3,
    "validate_every": 200,
    "validate_episodes": 20,
}
STREAM_TRAINING = KSHOT_TRAINING | {"episodes": {"protocol": "stream", "way": WAY, "length": 15}}
TRAINING = {
    "attention": STREAM_TRAINING,
    "feedforward": STREAM_TRAINING,
    "lstm": STREAM_TRAINING,
    "mann": STREAM_TRAINING | {"batch": 16, "steps": 200},  # enough to use its memory
    "mann_dnc": STREAM_TRAINING,
    "mann_ntm": STREAM_TRAINING,
    "mann_paper": STREAM_TRAINING,
    "mann_sparse": STREAM_TRAINING,
}
LEARN_QUICKLY = (
    "anil",
    "fomaml",
    "key_value",
    "maml",
    "metasgd",
    "nearest_feature",
    "nearest_neighbour",
    "prototypical",
    "reptile",
)
every_learner = pytest.mark.parametrize("name", learner_names())


@cache
def split() -> Split:
    """A coarse pattern for each class, with noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 128, (CLASSES, 1, 1, 4, 4), generator=generator)
    patterns = patterns.repeat_interleave(3, -1).repeat_interleave(3, -2)
    noise = torch.randint(0, 100, (CLASSES, PER_CLASS, *IMAGE_SHAPE), generator=generator)
    image_set = ImageSet(
        name="patterns",
        images=(patterns + noise).flatten(0, 1).to(torch.uint8),
        class_names=tuple(f"all/{number:02}" for number in range(CLASSES)),
        class_start=torch.arange(0, CLASSES * PER_CLASS + 1, PER_CLASS),
        image_names=tuple(str(number) for number in range(CLASSES * PER_CLASS)),
        source="this test",
        licence="none",
        mean=(0.0,),
        std=(1.0,),
        digest=hashlib.sha256(b"patterns").hexdigest(),
    )
    return split_by_fraction(image_set, 0.6, 0.2, 0.2, split_seed=0)


@cache
def learner(name: str, trained: bool) -> Learner:
    """Evaluation changes no learner, so both tests look at the same one."""
    torch.manual_seed(0)
    built = build_learner(name, IMAGE_SHAPE, WAY, OPTIONS.get(name))
    if trained and built.trainable:
        train(built, split(), TrainSettings.model_validate(TRAINING.get(name, KSHOT_TRAINING)))
    elif trained:
        calibrate(built, split())
    return built


class MeaninglessLabels(EpisodeSampler):
    """The same episodes, but which support image has which label is drawn anew, regardless of classes."""

    def batch(self, start: int, count: int) -> KShotBatch:
        batch = super().batch(start, count)
        assert isinstance(batch, KShotBatch)
        generator = torch.Generator().manual_seed(start)
        order = torch.rand(batch.support.labels.shape, generator=generator).argsort(1)
        return batch._replace(support=batch.support._replace(labels=batch.support.labels.gather(1, order)))


class Peeking(NearestNeighbour):
    """Sees the label that it is asked for."""

    def stream(self, batch: StreamBatch) -> Tensor:
        return F.one_hot(batch.labels, batch.way).float()


@pytest.mark.parametrize("trained", [False, True])
@every_learner
def test_where_labels_mean_nothing_every_learner_is_at_chance(name: str, trained: bool) -> None:
    meaningless = MeaninglessLabels(split().test, KSHOT, episode_seed=0)
    evaluation = evaluate(learner(name, trained), meaningless, EPISODES)
    assert evaluation.ci95 is not None
    assert abs(evaluation.accuracy - 1 / WAY) <= 2 * evaluation.ci95 + 1e-9
    if trained and name in LEARN_QUICKLY:  # they do use labels that mean something
        meaning = EpisodeSampler(split().test, KSHOT, episode_seed=0)
        assert evaluate(learner(name, trained), meaning, EPISODES).accuracy > 0.5


@pytest.mark.parametrize("trained", [False, True])
@every_learner
def test_no_learner_names_a_class_before_its_label_was_shown_better_than_by_counting(
    name: str, trained: bool
) -> None:
    sampler = EpisodeSampler(split().test, STREAM, episode_seed=0)
    evaluation = evaluate(learner(name, trained), sampler, EPISODES)
    interval = evaluation.ci95_by_instance[1]
    assert interval is not None
    assert evaluation.accuracy_by_instance[1] <= first_presentation_ceiling(WAY, [WAY]) + 2 * interval
    if trained and name in ("mann", "nearest_neighbour"):  # the second time they know
        assert evaluation.accuracy_by_instance[2] > 0.6


def test_a_learner_that_sees_the_labels_asked_for_is_above_the_ceiling() -> None:
    sampler = EpisodeSampler(split().test, STREAM, episode_seed=0)
    evaluation = evaluate(Peeking(IMAGE_SHAPE, WAY), sampler, 20)
    assert evaluation.accuracy_by_instance[1] > first_presentation_ceiling(WAY, [WAY]) + 0.2


def test_every_learner_that_is_trained_has_small_options_here() -> None:
    assert OPTIONS.keys() == {name for name in learner_names() if learner_class(name).trainable}
