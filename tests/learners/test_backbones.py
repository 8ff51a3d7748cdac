"""The convolutional backbone: sizes, leading dimensions, batch-norm modes, too small an image; and that its
kernels give what its layers give one by one.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.kernels.native import plain_torch
from fewshot.learners.backbones import BatchNormMode, ConvBackbone, Downsample, Embedding


@pytest.mark.parametrize(
    ("downsample", "size", "features"),
    [("pool", 28, 64), ("pool", 84, 1600), ("stride", 28, 256), ("stride", 20, 256), ("stride", 105, 3136)],
)
def test_output_size(downsample: Downsample, size: int, features: int) -> None:
    backbone = ConvBackbone((1, size, size), downsample=downsample)
    assert backbone.output_size == features
    assert backbone(torch.zeros(2, 3, 1, size, size)).shape == (2, 3, features)


def test_the_first_blocks_alone_may_halve() -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone((1, 12, 12), (4, 8, 6), halvings=1).eval()
    assert backbone.output_shape == (6, 6, 6)
    maps = images = torch.randn(2, 1, 12, 12)
    for number, (convolution, norm, *_) in enumerate(backbone.blocks):
        maps = norm(convolution(maps)).relu()
        maps = nn.functional.max_pool2d(maps, 2) if number == 0 else maps
    torch.testing.assert_close(backbone(images), maps.flatten(1))
    with pytest.raises(
        LearnerError, match="3 convolution blocks, 2 of them halving the image, do not fit 3x3"
    ):
        ConvBackbone((1, 3, 3), (4, 4, 4), halvings=2)


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_averaged_features_are_the_means_of_maps_that_the_last_block_does_not_halve(
    downsample: Downsample,
) -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone((3, 12, 12), (4, 6), downsample=downsample, averaged=True).eval()
    assert backbone.output_shape == (6,)
    laid_flat = ConvBackbone((3, 12, 12), (4, 6), downsample=downsample, halvings=1).eval()
    laid_flat.load_state_dict(backbone.state_dict())
    images = torch.randn(5, 3, 12, 12)
    means = laid_flat(images).view(5, 6, 6, 6).mean((2, 3))
    torch.testing.assert_close(backbone(images), means)
    assert backbone(images[..., :7, :9]).shape == (5, 6)


def test_leading_dimensions_and_memory_format_change_nothing() -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone((3, 12, 12), (4, 8)).eval()
    images = torch.randn(2, 5, 3, 12, 12)
    features = backbone(images)
    torch.testing.assert_close(features[1, 3], backbone(images[1, 3]))
    plain = nn.Sequential(*backbone.blocks, nn.Flatten())
    torch.testing.assert_close(features.flatten(0, 1), plain(images.flatten(0, 1)))


@pytest.mark.parametrize(
    ("mode", "layers", "depends_on_neighbours"),
    [("none", 0, False), ("frozen", 2, False), ("batch", 2, True)],
)
def test_batch_norm_modes_when_evaluating(
    mode: BatchNormMode, layers: int, depends_on_neighbours: bool
) -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone((1, 8, 8), (4, 4), batch_norm=mode).eval()
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules()) == layers
    images = torch.randn(3, 1, 8, 8)
    together, alone = backbone(images)[0], backbone(images[:1])[0]
    assert torch.allclose(together, alone, atol=1e-5) != depends_on_neighbours


@pytest.mark.parametrize("widths", [(), (4, 4, 4, 4)])
def test_an_image_too_small_is_refused_in_one_line(widths: tuple[int, ...]) -> None:
    with pytest.raises(LearnerError, match=r"8x8: give fewer widths \(at least one\) or a larger image"):
        ConvBackbone((1, 8, 8), widths)


def test_an_embedding_is_centred_and_of_unit_variance_in_training() -> None:
    torch.manual_seed(0)
    embedding = Embedding(ConvBackbone((1, 8, 8), (4, 4)), 6, "frozen")
    codes = embedding(torch.rand(5, 7, 1, 8, 8))
    assert codes.shape == (5, 7, 6)
    torch.testing.assert_close(codes.mean((0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    assert codes.flatten(0, 1).std(0, correction=0).sub(1).abs().max() < 0.1
    plain = Embedding(ConvBackbone((1, 8, 8), (4, 4), batch_norm="none"), 6, "none")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in plain.modules())


# --- Kernels against layers ---------------------------------------------------------------------------------

WIDE = (32, 48)  # a first block for one kernel, a second for others


def backbone_of(
    channels: int, downsample: Downsample, mode: BatchNormMode, dtype: torch.dtype = torch.float32
) -> ConvBackbone:
    torch.manual_seed(0)
    backbone = ConvBackbone((channels, 13, 10), WIDE, downsample=downsample, batch_norm=mode)
    for norm in backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return backbone.to(dtype)


def trained_a_little(backbone: ConvBackbone, images: Tensor) -> dict[str, Tensor]:
    """Features and gradients of a training pass, the state after it, and features of an evaluating one."""
    features = backbone(images)
    features.square().sum().backward()
    found = {f"gradient of {name}": weight.grad for name, weight in backbone.named_parameters()}
    found |= {"features": features.detach(), **backbone.state_dict()}
    with torch.inference_mode():
        found["evaluated"] = backbone.eval()(images).clone()
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("mode", ["frozen", "batch", "none"])
@pytest.mark.parametrize("channels", [1, 3, 32])
def test_kernels_give_what_the_layers_give(
    channels: int, mode: BatchNormMode, downsample: Downsample
) -> None:
    torch.manual_seed(0)
    images = torch.rand(7, channels, 13, 10) * 2 + 1
    fast = trained_a_little(backbone_of(channels, downsample, mode), images)
    with plain_torch():
        plain = trained_a_little(backbone_of(channels, downsample, mode), images)
    exact = trained_a_little(backbone_of(channels, downsample, mode, torch.float64), images.double())
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        size = 1 + exact[name].abs().max()
        assert (value - plain[name]).abs().max() <= 1e-4 * size, name
        assert (value - exact[name]).abs().max() <= 1e-5 * size, name


def test_images_may_want_a_gradient() -> None:
    backbone = backbone_of(1, "pool", "frozen")
    images = torch.rand(4, 1, 13, 10)

    def by_images() -> Tensor:
        wanted = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(copy.deepcopy(backbone)(wanted).square().sum(), wanted)
        return gradient

    fast = by_images()
    with plain_torch():
        plain = by_images()
    assert (fast - plain).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.parametrize("downsample", ["pool", "stride"])
def test_gradients_can_be_differentiated(downsample: Downsample) -> None:
    """Somebody's own MAML on this backbone."""
    torch.manual_seed(0)
    images = torch.rand(4, 1, 13, 10)

    def twice() -> tuple[Tensor, ...]:
        backbone = backbone_of(1, downsample, "batch")
        weights = tuple(backbone.parameters())
        once = torch.autograd.grad(backbone(images).square().sum(), weights, create_graph=True)
        return torch.autograd.grad(torch.stack([part.square().sum() for part in once]).sum(), weights)

    fast = twice()
    with plain_torch():
        plain = twice()
    for part, other in zip(fast, plain, strict=True):
        assert (part - other).abs().max() <= 1e-3 * other.abs().max()


def test_an_image_is_answered_alike_alone_and_among_others() -> None:
    backbone = backbone_of(1, "pool", "frozen").eval()
    images = torch.rand(70, 1, 13, 10)
    with torch.no_grad():
        together, alone = backbone(images), torch.cat([backbone(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_training_is_in_mixed_precision_and_answering_is_not() -> None:
    torch.manual_seed(0)
    backbone = ConvBackbone((1, 28, 28))
    images = torch.randn(6, 1, 28, 28)
    expected = copy.deepcopy(backbone)(images)
    backbone.cuda()
    features = backbone(images.cuda())
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.cpu(), expected, rtol=0.1, atol=0.1)
    backbone.eval()
    reference = copy.deepcopy(backbone).cpu()(images)
    torch.testing.assert_close(backbone(images.cuda()).cpu(), reference, rtol=1e-3, atol=1e-3)


def test_a_network_is_compiled_while_it_is_asked_for_and_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ConvBackbone((1, 12, 12), (4,))
    images, seen = torch.randn(3, 1, 12, 12), []

    def compiled(function: Callable[[Tensor], Tensor], *, dynamic: bool) -> Callable[[Tensor], Tensor]:
        assert not dynamic
        return lambda given: seen.append(len(given)) or function(given)

    monkeypatch.setattr(torch, "compile", compiled)
    expected = network(images)
    with network.compiled():
        torch.testing.assert_close(network(images), expected)
        network.eval()(images)
        assert seen == [3]
    network.train()(images)
    assert seen == [3]
