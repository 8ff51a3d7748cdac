"""The fused batch norm, ReLU and pooling equals plain torch: values, gradients, gradients of gradients."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.kernels.native import library, plain_torch
from fewshot.kernels.normalise import affine_relu, batch_norm_relu, batch_norm_relu_statistics

SHAPES = st.tuples(*(st.integers(1, most) for most in (3, 4, 37, 9, 9)))
"""Groups, images of each, channels, height, width."""


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    if library("normalise") is None:
        pytest.skip("the kernel does not compile on this machine: plain torch is all there is")


def channels_last(maps: Tensor) -> Tensor:
    return maps.contiguous(memory_format=torch.channels_last)


def inputs(shape: tuple[int, ...], shared: bool, seed: int = 0) -> list[Tensor]:
    """Maps, scale and shift. Maps on a coarse grid, so that windows have ties and images constant channels."""
    groups, images, channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-3, 4, (groups * images, channels, height, width), generator=generator) / 2 + 1
    values = (channels,) if shared else (groups, channels)
    return [maps, *(torch.randn(values, generator=generator) for _ in range(2))]


def derivatives(shape: tuple[int, ...], shared: bool, pool: bool, dtype: torch.dtype) -> list[Tensor]:
    """The result, its gradients by maps, scale and shift, and those of something that depends on all."""
    given = [part.to(dtype).requires_grad_() for part in inputs(shape, shared)]
    maps, scale, shift = given
    result = batch_norm_relu(channels_last(maps), scale, shift, pool=pool, groups=shape[0])
    generator = torch.Generator().manual_seed(1)

    def weighed(parts: list[Tensor]) -> Tensor:
        return sum((torch.randn(part.shape, generator=generator).to(dtype) * part).sum() for part in parts)  # type: ignore[return-value]

    once = list(torch.autograd.grad(weighed([result]) + result.square().sum(), given, create_graph=True))
    twice = torch.autograd.grad(weighed(once) + once[0].square().sum(), given)
    return [result.detach(), *(part.detach() for part in (*once, *twice))]


def assert_near(parts: list[Tensor], others: list[Tensor], tolerance: float) -> None:
    """Relative to the largest of each tensor."""
    for part, other in zip(parts, others, strict=True):
        assert part.shape == other.shape
        assert (part - other).abs().max() <= tolerance * (1 + other.abs().max())


@given(SHAPES, st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_values_and_both_gradients_are_those_of_plain_torch(
    shape: tuple[int, ...], shared: bool, pool: bool
) -> None:
    groups, images, channels, height, width = shape
    if images * height * width == 1:  # of one value there is no variance: noise, divided by epsilon
        images = 2
    if pool:
        height, width = max(height, 2), max(width, 2)
    shape = (groups, images, channels, height, width)
    fast = derivatives(shape, shared, pool, torch.float32)
    exact = [part.float() for part in derivatives(shape, shared, pool, torch.float64)]
    with plain_torch():
        plain = derivatives(shape, shared, pool, torch.float32)
    assert_near(fast[:1], plain[:1], 1e-5)
    assert_near(fast, exact, 1e-4)
