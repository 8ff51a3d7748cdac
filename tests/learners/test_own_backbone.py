"""A network of one's own before every learner that takes a backbone: by name, trained, frozen, kept."""

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import AbsentError, LearnerError
from fewshot.harness.checkpoint import load_learner, save_learner
from fewshot.harness.config import TrainSettings
from fewshot.harness.evaluate import evaluate
from fewshot.harness.plan import plain
from fewshot.harness.train import train
from fewshot.learners import backbones
from fewshot.learners.backbones import Backbone, register_backbone
from fewshot.learners.check import check_learner
from fewshot.learners.registry import build_learner, learner_class, learner_names, options_of
from tests.harness.test_golden_traces import split
from tests.learners.made_up import SHAPE, accuracy, kshot, patterns

WAY = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "attention": {"embedding_size": 6, "hidden_size": 8},
    "baseline": {"classes": 9, "head_steps": 5},
    "baseline_pp": {"classes": 9, "head_steps": 5},
    "feedforward": {"embedding_size": 6, "hidden_size": 8},
    "key_value": {"embedding_size": 6, "num_slots": 8},
    "logistic": {},
    "lstm": {"embedding_size": 6, "hidden_size": 8},
    "mann": {"embedding_size": 6, "hidden_size": 8, "num_slots": 8, "word_size": 5, "read_heads": 2},
    "matching": {},
    "meta_baseline": {"classes": 9},
    "nearest_feature": {"embedding_size": 6},
    "prototypical": {},
    "relation": {"relation_width": 4},
    "ridge": {},
    "siamese": {"embedding_size": 6},
    "simpleshot": {"classes": 9},
}


def tiny(image_shape: tuple[int, int, int]) -> nn.Module:
    """Gives maps of 4 channels, a quarter as high and as wide as an image."""
    return nn.Sequential(nn.Conv2d(image_shape[0], 4, 4, stride=4), nn.BatchNorm2d(4), nn.ReLU())


def flat(image_shape: tuple[int, int, int]) -> nn.Module:
    """Gives 5 features; how many numbers they are made of, it finds out itself."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Tanh())


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "_OWN", dataclasses.replace(backbones._OWN, things={}))
    register_backbone("tiny", tiny)
    register_backbone("flat", flat)


def chosen(name: str, backbone: str = "tiny", **more: Any) -> dict[str, Any]:
    return OPTIONS[name] | {"backbone": {"name": backbone} | more}


def test_every_learner_that_takes_a_backbone_is_here() -> None:
    taking = {name for name in learner_names() if "backbone" in options_of(learner_class(name))}
    assert taking - set(OPTIONS) == {"mann_dnc", "mann_ntm", "mann_sparse"}, "they have the encoder of mann"
    assert set(OPTIONS) <= taking


@pytest.mark.parametrize("name", OPTIONS)
def test_a_learner_behind_it_keeps_its_promises_and_its_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = build_learner(name, SHAPE, WAY, chosen(name))
    check_learner(learner)
    assert learner.backbone_name == "own tiny"
    path, batch = tmp_path / "learner.safetensors", kshot(patterns(6), way=WAY)
    save_learner(learner, path, name, plain(options_of(learner_class(name), chosen(name))))
    loaded = load_learner(path)
    save_learner(loaded, path, name, chosen(name))
    with torch.no_grad():  # what was rounded once is not rounded again
        assert torch.equal(load_learner(path).answer(batch), loaded.answer(batch))


@pytest.mark.parametrize("name", ["mann", "ridge"])
def test_it_is_trained_and_evaluated(name: str) -> None:
    torch.manual_seed(0)
    learner = build_learner(name, SHAPE, WAY, chosen(name))
    before = [weight.clone() for weight in own_weights(learner)]
    settings = {"batch": 2, "steps": 2, "validate_every": 2, "validate_episodes": 2}
    episodes = {"protocol": "kshot", "way": WAY, "query": 2}
    train(learner, split(), TrainSettings.model_validate(settings | {"episodes": episodes}))
    assert not any(map(torch.equal, before, own_weights(learner)))
    asked = EpisodeSampler(split().test, KShot(way=WAY, query=2), episode_seed=0)
    (batch,) = asked.batches(0, 4, 4)
    assert isinstance(batch, KShotBatch)
    assert evaluate(learner, asked, 4).accuracy == pytest.approx(accuracy(learner, batch))


def own_weights(learner: nn.Module) -> list[Tensor]:
    return [value for name, value in learner.state_dict().items() if ".network." in name]


def test_frozen_it_stays_what_it_is() -> None:
    torch.manual_seed(0)
    learner = build_learner("nearest_feature", SHAPE, WAY, chosen("nearest_feature", frozen=True))
    check_learner(learner)
    assert learner.backbone_name == "own tiny frozen"
    before = [value.clone() for value in own_weights(learner)]
    optimizer = torch.optim.Adam(learner.train().parameters(), 0.1)
    learner.loss(kshot(patterns(6), way=WAY)).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert before
    assert all(map(torch.equal, before, own_weights(learner)))


def test_prototypes_need_something_to_train() -> None:
    with pytest.raises(LearnerError) as refused:
        build_learner("prototypical", SHAPE, WAY, chosen("prototypical", frozen=True))
    assert str(refused.value) == (
        "prototypes by own tiny frozen leave nothing to train: leave frozen out, or choose nearest_feature"
    )


def test_relations_need_maps() -> None:
    with pytest.raises(LearnerError) as refused:
        build_learner("relation", SHAPE, WAY, chosen("relation", "flat"))
    assert str(refused.value) == (
        'relation compares maps, and own flat gives flat features: choose backbone = { name = "conv" }, or '
        "one of your own that gives maps (image, channel, height, width)"
    )


def test_features_are_those_of_the_module_for_any_leading_dimensions() -> None:
    torch.manual_seed(0)
    network = Backbone("tiny").build(SHAPE, ()).eval()
    assert (network.output_shape, network.output_size) == ((4, 3, 3), 36)
    images = torch.randn(2, 5, *SHAPE)
    module = network.network
    assert isinstance(module, nn.Module)
    torch.testing.assert_close(network(images)[1, 3], module(images[1, 3:4]).flatten())
    assert Backbone("flat").build(SHAPE, ()).output_shape == (5,)


def test_to_be_measured_changes_no_statistics_and_to_be_shared_no_weights() -> None:
    module = tiny(SHAPE)
    register_backbone("always_the_same", lambda image_shape: module)
    one, other = (Backbone("always_the_same").build(SHAPE, ()) for _ in range(2))
    for weight, same, given in zip(one.parameters(), other.parameters(), module.parameters(), strict=True):
        assert torch.equal(weight, given)
        assert len({part.data_ptr() for part in (weight, same, given)}) == 3
    assert all(map(torch.equal, own_weights(one), own_weights(other)))
    assert float(dict(one.named_buffers())["network.1.num_batches_tracked"]) == 0
    assert all(part.training for part in one.modules())


def test_it_is_found_in_its_module_without_being_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebodys_networks")
    module.tiny = tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_networks", module)
    learner = build_learner("lstm", SHAPE, WAY, chosen("lstm", "somebodys_networks:tiny"))
    assert learner.backbone_name == "own somebodys_networks:tiny"
    with pytest.raises(LearnerError, match="module somebodys_networks has no function 'huge'"):
        build_learner("lstm", SHAPE, WAY, chosen("lstm", "somebodys_networks:huge"))


def test_a_checkpoint_of_one_that_is_not_registered_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "learner.safetensors"
    save_learner(build_learner("mann", SHAPE, WAY, chosen("mann")), path, "mann", chosen("mann"))
    monkeypatch.setattr(backbones, "_OWN", dataclasses.replace(backbones._OWN, things={}))
    with pytest.raises(AbsentError) as refused:
        load_learner(path)
    assert str(refused.value) == (
        "unknown backbone 'tiny': there is conv, resnet12, resnet12_narrow, resnet18, resnet50; "
        'register your own first, or name a function as "package.module:function"'
    )


@pytest.mark.parametrize("name", ["conv", "resnet18", "tiny", "with space", ""])
def test_names_that_are_taken_or_malformed_are_refused(name: str) -> None:
    with pytest.raises(LearnerError, match=r"there is a backbone '\w+' already|a backbone's name is letters"):
        register_backbone(name, flat)
    register_backbone("flat", flat)  # once more is harmless


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda image_shape: nn.Conv2d(3, 4, 3), "fails on images of (1, 12, 12): RuntimeError: "),
        (lambda image_shape: 7, "fails on images of (1, 12, 12): AttributeError: "),
        (lambda: tiny(SHAPE), "fails on images of (1, 12, 12): TypeError: "),
        (lambda image_shape: nn.Flatten(0), "of two images of (1, 12, 12) it gives torch.float32 (288,)"),
        (lambda image_shape: nn.Flatten(0, 2), "of two it gives 24"),
        (lambda image_shape: nn.LSTM(12, 4), "fails on images of (1, 12, 12): "),
    ],
)
def test_what_gives_no_features_is_refused_in_one_line(build: Any, says: str) -> None:
    register_backbone("wrong", build)
    with pytest.raises(LearnerError) as refused:
        build_learner("prototypical", SHAPE, WAY, {"backbone": {"name": "wrong"}})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ({"name": "tiny", "weights": "tiny.pt"}, "weights are of torchvision's ResNets alone; got 'tiny'"),
        ({"name": "tiny", "drop_rate": 0.1}, "drop_rate is of ResNet-12 alone; got 'tiny'"),
        ({"name": "tinny"}, "unknown backbone 'tinny': did you mean 'tiny'?"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(backbone: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerError) as refused:
        build_learner("mann", SHAPE, WAY, {"backbone": backbone})
    assert says in str(refused.value)
