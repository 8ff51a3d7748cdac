"""Learners by name: what is known, what is refused, and how options are read."""

import dataclasses
import inspect
import math
import re
import sys
import types
from pathlib import Path
from typing import TypedDict, Unpack

import pytest
import torch
from torch import Tensor

from fewshot.episodes.batch import KShotBatch, Support
from fewshot.errors import AbsentError, LearnerError
from fewshot.learners import registry
from fewshot.learners.base import Learner
from fewshot.learners.mann import Mann
from fewshot.learners.prototypical import Prototypical
from fewshot.learners.registry import (
    build_learner,
    learner_class,
    learner_names,
    options_of,
    register_learner,
)

IMAGE_SHAPE = (1, 16, 16)


class Own(Learner):
    """A learner outside the package, with options of several types."""

    def __init__(
        self, image_shape: tuple[int, int, int], way: int, *, scale: float, sizes: tuple[int, ...] = (1, 2)
    ) -> None:
        super().__init__(image_shape, way)
        self.scale = scale
        self.sizes = sizes

    def start(self, batch: int, way: int) -> Tensor:
        return torch.zeros(batch, way)

    def observe(self, state: Tensor, image: Tensor, label: Tensor) -> Tensor:
        return state

    def predict(self, state: Tensor, images: Tensor) -> Tensor:
        return state.unsqueeze(1).expand(-1, images.shape[1], -1)


class OwnShared(TypedDict):
    scale: float


class PassesOn(Own):
    """Takes one option itself and passes one of its base's on."""

    def __init__(
        self, image_shape: tuple[int, int, int], way: int, *, depth: int = 3, **shared: Unpack[OwnShared]
    ) -> None:
        super().__init__(image_shape, way, sizes=(depth,), **shared)


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("somebody.learners")
    module.Own, module.number = Own, 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebody", types.ModuleType("somebody"))
    monkeypatch.setitem(sys.modules, "somebody.learners", module)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    learners = dataclasses.replace(registry._LEARNERS, things=dict(registry._LEARNERS.things))
    monkeypatch.setattr(registry, "_LEARNERS", learners)
    register_learner("own", Own)


@pytest.mark.parametrize("name", learner_names())
def test_every_learner_says_in_words_what_it_is(name: str) -> None:
    """Inductive or transductive as built by default, and what its batch norm is."""
    learner = build_learner(name, IMAGE_SHAPE, 5)
    text = f"{inspect.getdoc(sys.modules[type(learner).__module__])} {inspect.getdoc(type(learner))}".lower()
    assert re.search(r"\btransductive" if learner.transductive else r"\binductive", text)
    modes = {"frozen": "batch norm frozen", "none": "(no|without) batch norm", "batch": "batch norm"}
    assert re.search(modes[learner.batch_norm], " ".join(text.split()))


def test_every_id_of_the_issue_is_known() -> None:
    expected = {"mann", "mann_dnc", "mann_ntm", "mann_paper", "mann_sparse"}
    expected |= {"lstm", "prototypical", "maml", "fomaml", "anil", "metasgd", "reptile"}
    expected |= {"key_value", "attention", "feedforward", "nearest_feature"}
    expected |= {"matching", "relation", "siamese", "ridge", "logistic"}
    expected |= {"baseline", "baseline_pp", "simpleshot", "meta_baseline"}
    assert set(learner_names()) == expected | {"nearest_neighbour", "count_guesser"}


def test_a_variant_is_only_a_label() -> None:
    assert learner_class("prototypical:wide") is learner_class("prototypical") is Prototypical


def test_a_registered_learner_is_known(registered: None) -> None:
    assert "own" in learner_names()
    assert learner_class("own:variant") is Own
    register_learner("own", Own)  # once more is harmless


@pytest.mark.parametrize("name", ["prototypical", "with space", "a:b", ""])
def test_names_that_are_taken_or_malformed_are_refused(registered: None, name: str) -> None:
    with pytest.raises(LearnerError):
        register_learner(name, Own)


@pytest.mark.parametrize("name", ["somebody.learners:Own", "somebody.learners:Own:variant"])
def test_a_learner_is_found_in_its_module(own_module: None, name: str) -> None:
    assert learner_class(name) is Own


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prototypcal", "did you mean 'prototypical'"),
        ("prototypcal:wide", "did you mean 'prototypical'"),
        ("somebody.learners", "package.module:Class"),
        ("somebody.learners:Other", "module somebody.learners has no Learner 'Other'"),
        ("somebody.learners:number", "module somebody.learners has no Learner 'number'"),
        ("nobody.anywhere:Own", "nobody"),
        ("nobody:Own", "No module named 'nobody'"),
        ("", "unknown learner ''"),
        (":Own", "package.module:Class"),
        (".learners:Own", "package.module:Class"),
        ("somebody..learners:Own", "package.module:Class"),
        ("own.py:Own", "No module named 'own'"),
    ],
)
def test_an_unknown_learner_is_one_line_with_the_nearest(own_module: None, name: str, says: str) -> None:
    with pytest.raises(AbsentError) as caught:
        learner_class(name)
    assert says in str(caught.value)
    assert "count_guesser" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("class Own(:", "SyntaxError: invalid syntax"),
        ("Own = Unheard", "NameError: name 'Unheard' is not defined"),
        ("import math\nmath.sine", "AttributeError: module 'math' has no attribute 'sine'"),
        ("import a_package_nobody_has", "ModuleNotFoundError: No module named 'a_package_nobody_has'"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
def test_a_module_that_does_not_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, says: str
) -> None:
    (tmp_path / "a_broken_module.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AbsentError) as caught:
        learner_class("a_broken_module:Own")
    assert str(caught.value).startswith(f"module a_broken_module does not import: {says}")
    assert "\n" not in str(caught.value)


def test_options_are_given_or_default() -> None:
    assert options_of(Own, {"scale": 2}) == {"scale": 2.0, "sizes": (1, 2)}
    assert options_of(Own, {"scale": 2, "sizes": [3]}) == {"scale": 2.0, "sizes": (3,)}  # TOML knows no tuple
    assert options_of(Prototypical)["widths"] == (64, 64, 64, 64)


def test_options_that_are_passed_on_are_the_bases() -> None:
    """With its types and defaults (`scale` has none), and no more of them than are passed on."""
    assert options_of(PassesOn, {"scale": 2}) == {"depth": 3, "scale": 2.0}
    with pytest.raises(LearnerError, match="option scale of PassesOn: Field required"):
        options_of(PassesOn)
    with pytest.raises(LearnerError, match="unknown option of PassesOn 'sizes'"):
        options_of(PassesOn, {"scale": 2, "sizes": [1]})
    assert options_of(Mann)["widths"] == (32, 32, 64)
    with pytest.raises(LearnerError, match=r"option widths of Mann: .*got 'wide'"):
        options_of(Mann, {"widths": "wide"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scael": 1.0}, "unknown option of Own 'scael': did you mean 'scale'?"),
        ({"scale": "wide"}, "option scale of Own"),
        ({"scale": 1.0, "sizes": ["x"]}, "option sizes"),
        ({}, "option scale of Own: Field required"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, object], says: str) -> None:
    with pytest.raises(LearnerError) as caught:
        options_of(Own, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        (
            "resnet18",
            "option backbone of Mann: it is a table of name, weights, frozen, drop_rate, averaged, as "
            "backbone = { name = \"resnet18\" }, got 'resnet18'",
        ),
        (
            ["resnet18"],
            "option backbone of Mann: it is a table of name, weights, frozen, drop_rate, averaged, as "
            "backbone = { name = ... }, got ['resnet18']",
        ),
        (
            {"name": "resnet18", "wieghts": "published"},
            "unknown key of option backbone of Mann 'wieghts': did you mean 'weights'? there is averaged, "
            "drop_rate, frozen, name, weights",
        ),
        ({"name": 18}, "option backbone.name of Mann: Input should be a valid string, got 18"),
    ],
)
def test_an_option_that_is_a_table_says_what_is_in_it(backbone: object, says: str) -> None:
    with pytest.raises(LearnerError) as caught:
        options_of(Mann, {"backbone": backbone})
    assert str(caught.value) == says


def test_the_learner_is_built_with_its_options() -> None:
    learner = build_learner("prototypical:narrow", IMAGE_SHAPE, 7, {"widths": [8, 16]})
    assert isinstance(learner, Prototypical)
    assert learner.backbone.output_size == 16 * 4 * 4
    assert (learner.image_shape, learner.way) == (IMAGE_SHAPE, 7)


def test_the_word_none_stands_for_none_where_an_option_may_be() -> None:
    assert options_of(Mann, {"strength_offset": "none"})["strength_offset"] is None
    assert options_of(Mann, {"strength_offset": None})["strength_offset"] is None
    assert options_of(Mann, {"batch_norm": "none"})["batch_norm"] == "none"
    with pytest.raises(LearnerError, match=r"option strength_offset of Mann: .*got 'sharp'"):
        options_of(Mann, {"strength_offset": "sharp"})


class WithoutPredict(Learner):
    def start(self, batch: int, way: int) -> None: ...

    def observe(self, state: None, image: Tensor, label: Tensor) -> None: ...


class WithoutWay(Own):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape, 5)


@pytest.mark.parametrize("made", [WithoutPredict, WithoutWay])
def test_a_learner_of_ones_own_that_cannot_be_made_is_one_line(
    made: type[Learner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "learner_class", lambda name: made)
    with pytest.raises(LearnerError, match=rf"^{made.__name__}\(image_shape, way\) cannot be made \([^\n]+$"):
        registry.build_learner("own", (1, 12, 12), 5)


@pytest.mark.parametrize(("image_shape", "way"), [((12, 12), 5), ((1, 12, 12), 0), ((1, 0, 12), 5)])
def test_a_learner_is_built_for_images_and_classes(image_shape: tuple[int, int, int], way: int) -> None:
    with pytest.raises(LearnerError, match=r"^a learner is built for images of [^\n]+; got [^\n]+$"):
        registry.build_learner("prototypical", image_shape, way)


class TooNarrow(Own):
    def predict(self, state: Tensor, images: Tensor) -> Tensor:
        return super().predict(state, images)[..., :-1]


def test_answers_without_a_number_for_each_class_are_refused_in_training() -> None:
    support = Support(torch.zeros(2, 3, *IMAGE_SHAPE), torch.arange(3).expand(2, 3), 3)
    queries = torch.zeros(2, 3, *IMAGE_SHAPE), torch.arange(3).expand(2, 3)
    batch = KShotBatch(support, *queries, torch.arange(3).expand(2, 3))
    assert Own(IMAGE_SHAPE, 3, scale=1.0).loss(batch).item() == pytest.approx(math.log(3))
    with pytest.raises(LearnerError, match=r"^TooNarrow gives 2 logits for 3 classes: predict gives [^\n]+$"):
        TooNarrow(IMAGE_SHAPE, 3, scale=1.0).loss(batch)
