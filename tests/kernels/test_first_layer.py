"""The first block in one pass equals convolution, batch norm, ReLU and pooling one by one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.kernels.first_layer import (
    LANES,
    MOST_CHANNELS,
    convolve_batch_norm_relu,
    convolve_frozen_norm_relu,
    fits,
    patch_moments,
)
from fewshot.kernels.native import library, plain_torch
from fewshot.kernels.normalise import batch_norm_relu_statistics, frozen_norm_relu

IMAGES = torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    if library("first_layer") is None:
        pytest.skip("the kernel does not compile on this machine: plain torch is all there is")


def weights_of(channels: int, width: int) -> list[Tensor]:
    """A kernel, and a scale and shift per map."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((width, channels, 3, 3), (width,), (width,))
    return [torch.randn(shape, generator=generator) / 2 for shape in shapes]


@given(
    images=st.integers(1, 4),
    channels=st.integers(1, MOST_CHANNELS),
    vectors=st.integers(1, 5),
    height=st.integers(4, 11),
    width=st.integers(4, 11),
    stride=st.integers(1, 2),
    pool=st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_values_statistics_and_gradients_are_those_of_plain_torch(
    images: int, channels: int, vectors: int, height: int, width: int, stride: int, pool: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    shown = torch.rand(images, channels, height, width, generator=generator) + 1
    parts = weights_of(channels, LANES * vectors)
    assert fits(shown, parts[0])
    exact = [part.double().requires_grad_() for part in parts]
    given = [part.requires_grad_() for part in parts]
    fast = convolve_batch_norm_relu(shown, *given, stride=stride, pool=pool)
    maps = F.conv2d(shown.double(), exact[0], stride=stride, padding=1)
    true = batch_norm_relu_statistics(maps, *exact[1:], pool=pool)
    assert fast.size == true.size
    weighing = torch.randn(true.maps.shape, generator=generator)
    gradients = torch.autograd.grad((fast.maps * weighing).sum(), given)
    true_gradients = torch.autograd.grad((true.maps * weighing).sum(), exact)
    for part, other in zip((*fast[:3], *gradients), (*true[:3], *true_gradients), strict=True):
        assert part.shape == other.shape
        assert (part - other).abs().max() <= 1e-5 * (1 + other.abs().max())


@pytest.mark.parametrize("stride", [1, 2])
def test_moments_are_those_of_the_unfolded_patches(stride: int) -> None:
    torch.manual_seed(0)
    padded = F.pad(torch.rand(3, 2, 20, 33) + 5, (1, 1, 1, 1))
    mean, covariance, size = patch_moments(padded, stride)
    patches = F.unfold(padded.double(), 3, stride=stride).transpose(0, 1).flatten(1)
    assert size == patches.shape[1]
    torch.testing.assert_close(mean, patches.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(covariance, patches.cov(correction=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("stride", "pool"), [(1, True), (2, False)])
def test_given_statistics(stride: int, pool: bool) -> None:
    torch.manual_seed(0)
    weights, scale, shift = weights_of(1, 32)
    mean, variance = torch.randn(32), torch.rand(32) + 0.1
    made = convolve_frozen_norm_relu(IMAGES, weights, mean, variance, scale, shift, stride=stride, pool=pool)
    maps = F.conv2d(IMAGES, weights, stride=stride, padding=1)
    expected = frozen_norm_relu(maps, mean, variance, scale, shift, pool=pool)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    images = torch.randn(150, 1, 28, 28, generator=torch.Generator().manual_seed(3)) + 1  # torch shares these
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            given = [part.requires_grad_() for part in weights_of(1, 32)]
            made = convolve_batch_norm_relu(images, *given, stride=1, pool=True)
            results.append((*made[:3], *torch.autograd.grad(made.maps.square().sum(), given)))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_gradient_of_a_gradient_is_that_of_plain_torch() -> None:
    def twice(dtype: torch.dtype) -> list[Tensor]:
        given = [part.to(dtype).requires_grad_() for part in weights_of(1, 16)]
        if dtype == torch.float32:
            maps = convolve_batch_norm_relu(IMAGES, *given, stride=1, pool=True).maps
        else:
            convolved = F.conv2d(IMAGES.to(dtype), given[0], padding=1)
            maps = batch_norm_relu_statistics(convolved, *given[1:], pool=True).maps
        once = torch.autograd.grad(maps.square().sum(), given, create_graph=True)
        return list(torch.autograd.grad(sum(part.square().sum() for part in once), given))  # type: ignore[arg-type]

    for part, true in zip(twice(torch.float32), twice(torch.float64), strict=True):
        assert (part - true).abs().max() <= 1e-4 * true.abs().max()


def test_images_without_contrast_give_the_shift() -> None:
    weights, scale, shift = weights_of(1, 16)
    weights[:, :, :, :] = 0
    made = convolve_batch_norm_relu(
        torch.full((2, 1, 6, 6), 255.0), weights, scale, shift, stride=1, pool=True
    )
    torch.testing.assert_close(made.maps, shift.relu()[:, None, None].expand(2, 16, 3, 3))


def test_what_does_not_fit_is_left_to_torch() -> None:
    weights = weights_of(1, 32)[0]
    assert fits(IMAGES, weights)
    assert not fits(IMAGES.double(), weights.double())
    assert not fits(IMAGES.clone().requires_grad_(), weights)
    assert not fits(IMAGES, weights[:8])
    assert not fits(IMAGES.expand(-1, 5, -1, -1), weights_of(5, 32)[0])
    assert not fits(IMAGES.expand(-1, 3, -1, -1), weights)  # made for other images: torch refuses them
    assert not fits(IMAGES[:0], weights)
    with plain_torch():
        assert not fits(IMAGES, weights)
