"""Learners trained by classification over all training classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewshot.episodes.batch import EpisodeBatch, with_each
from fewshot.errors import LearnerError
from fewshot.harness.checkpoint import _read, load_learner, save_learner
from fewshot.harness.config import TrainSettings
from fewshot.harness.train import train as train_by_settings
from fewshot.learners.baseline_pp import BaselinePp
from fewshot.learners.class_training import CosineClassifier, all_class_ids, classification_loss
from fewshot.learners.meta_baseline import MetaBaseline
from fewshot.learners.metric import all_images
from fewshot.learners.registry import build_learner
from fewshot.learners.simpleshot import MOMENTUM, SimpleShot
from tests.harness.test_golden_traces import split
from tests.learners.made_up import SHAPE, kshot, patterns, stream

WAY, CLASSES = 4, 9
SMALL = {"widths": (4, 4), "classes": CLASSES}
CLASS_TRAINED = ["baseline", "baseline_pp", "meta_baseline", "simpleshot"]


@pytest.mark.parametrize("batch", [kshot(patterns(CLASSES), noise=0), stream(patterns(CLASSES), noise=0)])
def test_every_image_is_of_the_class_that_its_id_says(batch: EpisodeBatch) -> None:
    """Without noise an image is its class's pattern."""
    assert torch.equal(all_images(batch), patterns(CLASSES)[all_class_ids(batch)])


def test_the_links_of_a_chain_have_classes_of_their_own() -> None:
    apart = stream(patterns(CLASSES), batch=4, noise=0)
    joined = with_each(apart, lambda part: part.reshape(2, -1, *part.shape[2:]))._replace(chain=2)
    assert torch.equal(all_images(joined), patterns(CLASSES)[all_class_ids(joined)])


def test_the_loss_is_the_cross_entropy_over_all_classes() -> None:
    batch = kshot(patterns(CLASSES))
    torch.manual_seed(0)
    classifier = CosineClassifier(5, CLASSES, sharpness=3.0).double()
    features = torch.randn(*all_class_ids(batch).shape, 5, dtype=torch.double)
    losses = []
    for feature, label in zip(features.flatten(0, 1), all_class_ids(batch).flatten(), strict=True):
        angles = [
            float(row @ feature) / float(row.norm() * feature.norm()) for row in classifier.weight.detach()
        ]
        losses.append(np.log(np.exp(3.0 * np.array(angles)).sum()) - 3.0 * angles[label])
    loss = classification_loss(classifier, features, batch)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_classifier_of_cosines_begins_with_vectors_of_the_length_asked_for() -> None:
    lengths = [CosineClassifier(400, 50, first_length=asked).weight.norm(dim=1) for asked in (None, 1.0, 3.0)]
    for found, expected in zip(lengths, (20.0, 1.0, 3.0), strict=True):
        assert found.mean().item() == pytest.approx(expected, rel=0.02)
    learner = build_learner("baseline_pp", SHAPE, WAY, SMALL | {"first_length": 2.0})
    classifier = learner.get_submodule("classifier")
    assert isinstance(classifier, CosineClassifier)
    assert classifier.weight.norm(dim=1).mean().item() == pytest.approx(2.0, rel=0.1)
    for wrong in (0.0, -1.0, "1", True):
        with pytest.raises(LearnerError, match=f"first_length must be above 0; got {wrong!r}"):
            BaselinePp(SHAPE, WAY, widths=(4, 4), first_length=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CLASS_TRAINED)
def test_a_checkpoint_leaves_the_classifier_out(name: str, tmp_path: Path) -> None:
    learner = build_learner(name, SHAPE, WAY, SMALL)
    path = tmp_path / "learner.safetensors"
    save_learner(learner, path, name, SMALL)
    kept = _read(path)[1]
    assert any(key.startswith("backbone") for key in kept)
    assert not any(key.startswith("classifier") for key in kept)
    loaded, batch = load_learner(path, name), kshot(patterns(CLASSES))
    assert loaded.state_dict().keys() == learner.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(loaded.answer(batch), learner.eval().answer(batch), rtol=0.1, atol=0.5)


@pytest.mark.parametrize("name", CLASS_TRAINED)
def test_more_training_classes_than_there_is_room_for_are_refused(name: str) -> None:
    """Ten are trained on, and each turned three times."""
    learner = build_learner(name, SHAPE, WAY, SMALL)
    settings = TrainSettings.model_validate({"steps": 1, "validate_episodes": 2})
    with pytest.raises(LearnerError) as caught:
        train_by_settings(learner, split(), settings)
    assert str(caught.value) == (
        f"{type(learner).__name__} tells 9 training classes apart, and there are 40 with the turned ones: "
        "set its option classes to 40"
    )


@torch.no_grad()
def test_simpleshot_centres_normalises_and_takes_the_nearest_mean() -> None:
    torch.manual_seed(0)
    learner, batch = SimpleShot(SHAPE, WAY, **SMALL).double(), kshot(patterns(CLASSES).double())  # type: ignore[arg-type]
    learner.train().loss(batch)
    seen = learner.backbone(all_images(batch)).flatten(0, 1).mean(0)
    torch.testing.assert_close(learner.mean_feature, MOMENTUM * seen)
    answers = learner.eval().answer(batch)
    for episode, query, label in np.ndindex(*answers.shape):
        own = batch.support.images[episode][batch.support.labels[episode] == label]
        shown = [learner.backbone(image.unsqueeze(0))[0] - learner.mean_feature for image in own]
        mean = torch.stack([feature / feature.norm() for feature in shown]).mean(0)
        asked = learner.backbone(batch.query_images[episode, query : query + 1])[0] - learner.mean_feature
        expected = -float((asked / asked.norm() - mean).square().sum())
        assert float(answers[episode, query, label]) == pytest.approx(expected, rel=1e-6)


def test_meta_baseline_classifies_first_and_answers_episodes_then() -> None:
    torch.manual_seed(0)
    learner, batch = MetaBaseline(SHAPE, WAY, **SMALL, classification_steps=2), kshot(patterns(CLASSES))  # type: ignore[arg-type]
    features = learner.embed(all_images(batch))
    shown, asked = features.tensor_split([batch.support.images.shape[1]], dim=1)
    scores = []
    for episode in range(len(shown)):
        means = torch.stack(
            [shown[episode, batch.support.labels[episode] == label].mean(0) for label in range(WAY)]
        )
        scores.append(10.0 * F.normalize(asked[episode], dim=-1) @ F.normalize(means, dim=-1).T)
    episodic = F.cross_entropy(torch.cat(scores), batch.query_labels.flatten())
    classification = classification_loss(learner.classifier, features, batch)
    learner.eval().loss(batch)  # is not a step
    learner.train()
    for expected in (classification, classification, episodic, episodic):
        torch.testing.assert_close(learner.loss(batch), expected)
    again = MetaBaseline(SHAPE, WAY, **SMALL, classification_steps=2)  # type: ignore[arg-type]
    again.load_state_dict(learner.state_dict())
    torch.testing.assert_close(again.loss(batch), episodic)


def test_no_step_may_be_less_than_none() -> None:
    with pytest.raises(LearnerError, match="classification_steps must be at least 0; got -1"):
        MetaBaseline(SHAPE, WAY, classification_steps=-1)
