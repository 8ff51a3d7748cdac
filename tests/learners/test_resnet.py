"""ResNet-12 with DropBlock, torchvision's ResNets, and how a learner's options choose among backbones."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from fewshot.data.locations import CACHE_VARIABLE, cache_root
from fewshot.episodes.batch import KShotBatch, Support
from fewshot.errors import AbsentError, DataError, LearnerError
from fewshot.harness.checkpoint import load_learner, save_learner
from fewshot.harness.plan import plain
from fewshot.learners import backbones, feature_cache
from fewshot.learners.backbones import Backbone
from fewshot.learners.check import check_learner
from fewshot.learners.nearest_feature import NearestFeature
from fewshot.learners.pretrained import TorchvisionResNet
from fewshot.learners.prototypical import Prototypical
from fewshot.learners.registry import build_learner, learner_class, learner_names, options_of, telling_options
from fewshot.learners.resnet12 import BLOCK, ResidualStage, ResNet12, drop_block

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = (4, 6, 8, 8)


def weights_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- ResNet-12 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "millions"), [("resnet12", 12.4), ("resnet12_narrow", 8.0)])
def test_resnet12_has_as_many_weights_as_the_papers_say(name: Any, millions: float) -> None:
    network = Backbone(name).build((3, 84, 84), ())
    assert weights_of(network) / 1e6 == pytest.approx(millions, abs=0.05)
    assert network.output_size == (640 if name == "resnet12" else 512)


@pytest.mark.parametrize("size", [16, 28, 35])
def test_resnet12_gives_flat_features_for_any_leading_dimensions(size: int) -> None:
    torch.manual_seed(0)
    network = ResNet12((3, size, size), SMALL).eval()
    images = torch.randn(2, 3, 3, size, size)
    features = network(images)
    assert features.shape == (2, 3, SMALL[-1])
    torch.testing.assert_close(features[1, 2], network(images[1, 2]))


def test_a_stage_is_three_convolutions_beside_one() -> None:
    """In the words of the paper, with the norm written out."""
    torch.manual_seed(0)
    stage = ResidualStage(3, 5, 0.0).double()
    maps = torch.randn(4, 3, 6, 6).double()

    def normalised(maps: Tensor) -> Tensor:
        mean = maps.mean((0, 2, 3), keepdim=True)
        return (maps - mean) / (maps.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    def leaky(maps: Tensor) -> Tensor:
        return torch.where(maps > 0, maps, 0.1 * maps)

    first, second, third = (layer.weight for layer in stage.path if isinstance(layer, nn.Conv2d))
    path = leaky(normalised(F.conv2d(maps, first, padding=1)))
    path = leaky(normalised(F.conv2d(path, second, padding=1)))
    path = normalised(F.conv2d(path, third, padding=1))
    beside = normalised(F.conv2d(maps, next(stage.shortcut.parameters())))
    expected = leaky(path + beside).unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
    torch.testing.assert_close(stage(maps), expected)


def test_a_gradient_reaches_every_weight_and_image() -> None:
    torch.manual_seed(0)
    network = ResNet12((1, 16, 16), SMALL, drop_rate=0.1)
    images = torch.randn(4, 1, 16, 16, requires_grad=True)
    network(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is not None and weight.grad.any() for weight in network.parameters())


def test_an_image_too_small_is_refused_in_one_line() -> None:
    with pytest.raises(
        LearnerError, match=r'needs 16x16; got 15x16: give larger images, or backbone = { name = "conv" }'
    ):
        ResNet12((3, 15, 16))


# --- DropBlock ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "least"), [(3, 0.095), (5, 0.095), (10, 0.085), (24, 0.085)])
def test_drop_block_keeps_what_it_should(side: int, least: float) -> None:
    """Overlapping squares drop a little less than asked for; a map of one square drops exactly that."""
    torch.manual_seed(0)
    kept = drop_block(torch.ones(200, 100, side, side), 0.1)
    assert least < float((kept == 0).float().mean()) < 0.105
    assert float(kept.mean()) == pytest.approx(1, abs=1e-4), "the scale stays"


def test_what_is_dropped_is_squares() -> None:
    torch.manual_seed(0)
    dropped = (drop_block(torch.ones(50, 4, 12, 12), 0.2) == 0).float()
    inside = -F.max_pool2d(-dropped, BLOCK, stride=1)  # where a whole square is dropped
    again = F.max_pool2d(F.pad(inside, [BLOCK - 1] * 4), BLOCK, stride=1)
    assert dropped.any()
    assert torch.equal(again, dropped)


def test_the_drop_rate_rises_over_training_and_is_off_in_evaluation() -> None:
    torch.manual_seed(0)
    stage = ResidualStage(2, 4, 0.2)
    norm = stage.shortcut[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked is not None
    rates = []
    for passes in (0, 20_000, 40_000, 80_000):
        norm.num_batches_tracked.fill_(passes)
        rates.append(float(stage.rate()))
    assert rates == pytest.approx([0, 0.1, 0.2, 0.2])
    maps = torch.randn(8, 2, 12, 12)
    assert not torch.equal(stage(maps), stage(maps))
    stage.eval()
    assert torch.equal(stage(maps), stage(maps))


# --- torchvision's ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of somebody's own weights, with a classifier of seven classes."""
    torch.manual_seed(0)
    network = TorchvisionResNet((3, 32, 32), "resnet18").network
    state = network.state_dict() | {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "features", "millions"), [("resnet18", 512, 11.18), ("resnet50", 2048, 23.51)]
)
def test_torchvisions_networks_lose_their_classifier(name: Any, features: int, millions: float) -> None:
    network = TorchvisionResNet((1, 32, 32), name)
    assert weights_of(network) / 1e6 == pytest.approx(millions, abs=0.05)
    assert network.eval()(torch.randn(2, 1, 1, 32, 32)).shape == (2, 1, features)
    assert network.name == f"ResNet-{name[6:]}"


def test_frozen_weights_are_those_of_the_file_and_stay(resnet18: Path) -> None:
    network = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True)
    images = torch.randn(3, 3, 32, 32)
    features = network.eval()(images)
    assert torch.equal(network.train()(images), features), "batch norms do not follow"
    assert not any(parameter.requires_grad for parameter in network.parameters())
    again = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18))
    torch.testing.assert_close(again.eval()(images), features)
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert (network.name, again.name) == ("ResNet-18 pretrained frozen", "ResNet-18 pretrained")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass through a network has while the test runs."""
    passes: list[int] = []
    embed = TorchvisionResNet._features

    def counted(network: TorchvisionResNet, images: Tensor) -> Tensor:
        passes.append(len(images))
        return embed(network, images)

    monkeypatch.setattr(TorchvisionResNet, "_features", counted)
    return passes


def test_a_frozen_network_sees_each_image_once_ever(resnet18: Path, seen: list[int]) -> None:
    images = torch.randn(5, 3, 32, 32)
    images[4] = images[1]
    first = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True).eval()
    together = first(images)
    assert seen == [1] * 4
    again = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True).eval()
    assert torch.equal(again(images.flip(0)), together.flip(0))
    assert seen == [1] * 4
    torch.testing.assert_close(first._features(images), together)


def test_other_weights_or_pixels_are_other_features(resnet18: Path, seen: list[int]) -> None:
    network = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True).eval()
    image = torch.randn(1, 3, 32, 32)
    features = network(image)
    assert not torch.equal(network(image + 0.01), features)
    network.load_state_dict({name: value * 1.01 for name, value in network.state_dict().items()})
    assert not torch.equal(network(image), features)
    assert seen == [1] * 3


def test_a_full_cache_keeps_no_more(resnet18: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "LARGEST_FILE", 0)
    network = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(image), network(image))
    assert seen == [1, 1]


def test_what_another_version_kept_is_not_taken(
    resnet18: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True).eval()
    image = torch.randn(1, 3, 32, 32)
    network(image)
    monkeypatch.setattr(feature_cache, "VERSION", feature_cache.VERSION + 1)
    network(image)
    assert seen == [1, 1]


@pytest.mark.parametrize("trouble", ["damaged", "locked", "no folder"])
def test_a_cache_that_cannot_be_used_is_named_in_one_line(
    resnet18: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    network = TorchvisionResNet((3, 32, 32), "resnet18", str(resnet18), frozen=True).eval()
    image = torch.randn(1, 3, 32, 32)
    network(image)
    path = cache_root() / "features.sqlite"
    monkeypatch.setattr(feature_cache, "_WAIT_SECONDS", 0.0)
    with closing(sqlite3.connect(path)) as another:
        if trouble == "locked":
            another.execute("BEGIN EXCLUSIVE")
        elif trouble == "damaged":
            path.write_bytes(b"no features")
        else:
            (own_cache / "file").touch()
            monkeypatch.setenv(CACHE_VARIABLE, str(own_cache / "file"))
            path = own_cache / "file" / "features.sqlite"
        with pytest.raises(DataError, match=f"in {re.escape(str(path))} .*: delete that file") as refused:
            network(image)
    assert "\n" not in str(refused.value)


def test_features_of_a_frozen_network_stand_for_its_images(resnet18: Path) -> None:
    """So that evaluation embeds each image once."""
    torch.manual_seed(0)
    frozen = Backbone("resnet18", weights=str(resnet18), frozen=True)
    learner = NearestFeature((1, 32, 32), 2, embedding_size=8, backbone=frozen).eval()
    images, labels = torch.randn(1, 4, 1, 32, 32), torch.tensor([[0, 1, 1, 0]])
    batch = KShotBatch(Support(images, labels, 2), images + 0.1, labels, torch.arange(2)[None])
    assert learner.answers_from_features
    with torch.no_grad():
        support = batch.support._replace(images=learner.embed(images))
        embedded = batch._replace(support=support, query_images=learner.embed(batch.query_images))
        torch.testing.assert_close(learner.answer_features(embedded), learner.answer(batch))
    learner.train().loss(batch).backward()  # type: ignore[no-untyped-call]
    trained = {
        name.split(".")[1]
        for name, weight in learner.named_parameters()
        if weight.grad is not None and name.startswith("encoder")
    }
    assert trained == {"linear", "norm"}


def test_published_weights_are_never_downloaded_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(AbsentError, match=r"not on this machine.*download https://\S+ \(BSD-3-Clause\) to "):
        TorchvisionResNet((3, 32, 32), "resnet18", "published")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    with pytest.raises(LearnerError, match=r"is damaged: its SHA-256 is .*download it again"):
        TorchvisionResNet((3, 32, 32), "resnet18", "published")


@pytest.mark.parametrize("content", [b"no weights", None])
def test_a_file_of_other_weights_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    for name in ("own.pt", "own.safetensors"):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        expected = "no file of weights" if content is None else "does not hold a state dict of torchvision's"
        with pytest.raises(LearnerError, match=expected) as refused:
            TorchvisionResNet((3, 32, 32), "resnet18", str(tmp_path / name))
        assert isinstance(refused.value, AbsentError) == (content is None)
        assert "\n" not in str(refused.value)


# --- Choosing -----------------------------------------------------------------------------------------------


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backbones.RESNET12_WIDTHS, "resnet12", SMALL)


@pytest.mark.parametrize("name", ["prototypical", "nearest_feature", "key_value", "lstm"])
def test_a_learner_behind_resnet12_keeps_its_promises(name: str, narrow: None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"backbone": {"name": "resnet12", "drop_rate": 0.1}}
    learner = build_learner(name, (1, 16, 16), 3, options)
    check_learner(learner)
    assert str(learner.backbone_name).startswith("ResNet-12")
    path = tmp_path / "learner.safetensors"
    save_learner(learner, path, name, plain(options_of(learner_class(name), options)))
    assert load_learner(path).backbone_name == learner.backbone_name


@pytest.mark.parametrize("name", learner_names())
def test_the_backbone_of_before_is_no_part_of_a_key(name: str) -> None:
    kind = learner_class(name)
    assert "backbone" not in telling_options(kind)
    if "backbone" in options_of(kind):
        chosen = telling_options(kind, {"backbone": {"name": "resnet18"}})
        assert plain(chosen)["backbone"]["name"] == "resnet18"


@pytest.mark.parametrize(
    ("name", "backbone", "says"),
    [
        ("lstm", {"name": "resnet13"}, "unknown backbone 'resnet13': did you mean 'resnet18'?"),
        (
            "lstm",
            {"name": "resnet12", "width": 3},
            "unknown key of option backbone of Lstm 'width': there is averaged, drop_rate, frozen, name, "
            "weights",
        ),
        ("lstm", {"name": "resnet12", "frozen": True}, "a frozen resnet12 would stay random"),
        ("lstm", {"weights": "x.pt"}, "weights are of torchvision's ResNets alone; got 'conv'"),
        ("lstm", {"drop_rate": 0.1}, "drop_rate is of ResNet-12 alone; got 'conv'"),
        ("lstm", {"name": "resnet12", "averaged": True}, "averaged is of convolutions alone; got 'resnet12'"),
        ("relation", {"averaged": True}, "relation compares maps, and Conv4-64 averaged gives flat features"),
        ("lstm", {"name": "resnet12", "drop_rate": 2.0}, "drop_rate must be from 0 to 1"),
        ("lstm", {"name": "resnet18", "frozen": True}, "frozen resnet18 without weights would stay random"),
        ("relation", {"name": "resnet12"}, "relation compares maps, and ResNet-12 gives flat features"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_in_one_line(
    name: str, backbone: dict[str, Any], says: str
) -> None:
    with pytest.raises(LearnerError) as refused:
        build_learner(name, (1, 32, 32), 3, {"backbone": backbone})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_channels_and_batch_norms_are_refused() -> None:
    with pytest.raises(LearnerError, match="1 or 3 channels; these have 2"):
        Prototypical((2, 32, 32), 3, backbone=Backbone("resnet18"))
    with pytest.raises(LearnerError, match='resnet12 takes batch_norm = "frozen"'):
        NearestFeature((1, 32, 32), 3, batch_norm="none", backbone=Backbone("resnet12"))
