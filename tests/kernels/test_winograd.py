"""The convolution with fewer products equals torch's, and both its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.kernels.native import library, plain_torch
from fewshot.kernels.winograd import FEWEST_CHANNELS, LANES, SMALLEST_SIDE, convolve, fits

CHANNELS = st.integers(FEWEST_CHANNELS // LANES, 5).map(lambda vectors: vectors * LANES)
SIDES = st.integers(SMALLEST_SIDE, 11)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    if library("winograd") is None:
        pytest.skip("the kernel does not compile on this machine: plain torch is all there is")


def inputs(images: int, inside: int, outside: int, height: int, width: int) -> list[Tensor]:
    """Maps, weights, and the gradient of the result."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((images, inside, height, width), (outside, inside, 3, 3), (images, outside, height, width))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def made(parts: list[Tensor], *, fast: bool) -> list[Tensor]:
    maps, weights, gradient = parts
    given = maps.requires_grad_(), weights.requires_grad_()
    result = convolve(*given) if fast else F.conv2d(*given, padding=1)
    return [result.detach(), *torch.autograd.grad(result, given, gradient)]


@given(images=st.integers(1, 9), inside=CHANNELS, outside=CHANNELS, height=SIDES, width=SIDES)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_values_and_gradients_are_those_of_torch(
    images: int, inside: int, outside: int, height: int, width: int
) -> None:
    parts = inputs(images, inside, outside, height, width)
    assert fits(*parts[:2])
    for part, true in zip(
        made(parts, fast=True), made([part.double() for part in parts], fast=False), strict=True
    ):
        assert part.shape == true.shape
        assert (part - true).abs().max() <= 2e-6 * true.abs().max()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    parts = inputs(12, 32, 48, 14, 9)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(made([part.clone() for part in parts], fast=True))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_a_gradient_of_a_gradient_is_that_of_torch() -> None:
    def twice(fast: bool) -> tuple[Tensor, ...]:
        maps, weights, _ = (part.requires_grad_() for part in inputs(2, 32, 32, 5, 6))
        result = convolve(maps, weights) if fast else F.conv2d(maps, weights, padding=1)
        once = torch.autograd.grad(result.square().sum(), (maps, weights), create_graph=True)
        return torch.autograd.grad(once[0].square().sum() + once[1].square().sum(), (maps, weights))

    for part, other in zip(twice(True), twice(False), strict=True):
        assert (part - other).abs().max() <= 1e-5 * other.abs().max()


def test_only_wanted_gradients_are_computed() -> None:
    maps, weights, gradient = inputs(1, 32, 32, 4, 4)
    convolve(maps, weights.requires_grad_()).backward(gradient)
    assert maps.grad is None
    assert weights.grad is not None
    convolve(maps.requires_grad_(), weights.detach()).backward(gradient)
    assert maps.grad is not None


def test_what_does_not_fit_is_left_to_torch() -> None:
    maps, weights, _ = inputs(1, 32, 32, 4, 4)
    assert fits(maps, weights)
    assert not fits(maps.double(), weights.double())
    assert not fits(maps[:, :16], weights[:, :16])
    assert not fits(maps[..., :3], weights)
    assert not fits(maps.repeat(1, 2, 1, 1), weights)  # made for other maps: torch refuses them
    with plain_torch():
        assert not fits(maps, weights)
