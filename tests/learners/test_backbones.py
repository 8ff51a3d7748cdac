"""The convolutional backbone: sizes, leading dimensions, batch-norm modes, and too small an image."""

import pytest
import torch
from torch import nn

from fewshot.errors import LearnerError
from fewshot.learners.backbones import BatchNormMode, ConvBackbone, ConvEmbedding, Downsample


@pytest.mark.parametrize(
    ("downsample", "size", "features"),
    [("pool", 28, 64), ("pool", 84, 1600), ("stride", 28, 256), ("stride", 20, 256), ("stride", 105, 3136)],
)
def test_output_size(downsample: Downsample, size: int, features: int) -> None:
    backbone = ConvBackbone((1, size, size), downsample=downsample)
    assert backbone.output_size == features
    assert backbone(torch.zeros(2, 3, 1, size, size)).shape == (2, 3, features)


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
    embedding = ConvEmbedding((1, 8, 8), (4, 4), 6)
    codes = embedding(torch.rand(5, 7, 1, 8, 8))
    assert codes.shape == (5, 7, 6)
    torch.testing.assert_close(codes.mean((0, 1)), torch.zeros(6), atol=1e-5, rtol=0)
    assert codes.flatten(0, 1).std(0, correction=0).sub(1).abs().max() < 0.1
    plain = ConvEmbedding((1, 8, 8), (4, 4), 6, batch_norm="none")
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in plain.modules())
