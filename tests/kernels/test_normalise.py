"""The fused batch norm, ReLU and pooling equals plain torch: values, gradients, gradients of gradients."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewshot.kernels.native import library, plain_torch
from fewshot.kernels.normalise import (
    EPSILON,
    LANES,
    batch_norm_relu,
    batch_norm_relu_statistics,
    fits,
    frozen_norm_relu,
)

SIDES = st.integers(2, 7)
MAPS = torch.randn(6, 32, 5, 5, generator=torch.Generator().manual_seed(0)).contiguous(
    memory_format=torch.channels_last
)


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    if library("normalise") is None:
        pytest.skip("the kernel does not compile on this machine: plain torch is all there is")


def maps_of(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """On a grid, so that windows have ties."""
    maps = torch.randint(-20, 21, tuple(shape), generator=generator) / 8 + 1
    return maps.contiguous(memory_format=torch.channels_last)


def derivatives(
    maps: Tensor, affine: Sequence[Tensor], pool: bool, groups: int, dtype: torch.dtype
) -> list[Tensor]:
    """The result, its gradients by maps, scale and shift, and those of something that depends on all four."""
    given = [part.to(dtype, copy=True).requires_grad_() for part in (maps, *affine)]
    result = batch_norm_relu(given[0], *given[1:], pool=pool, groups=groups)
    generator = torch.Generator().manual_seed(1)

    def weighed(parts: Sequence[Tensor]) -> Tensor:
        products = [
            torch.randn(part.shape, generator=generator).to(part).mul(part).sum().unsqueeze(0)
            for part in parts
        ]
        return torch.cat(products).sum()

    once = torch.autograd.grad(weighed([result]) + result.square().sum(), given, create_graph=True)
    twice = torch.autograd.grad(weighed(once) + once[0].square().sum(), given)
    return [part.detach() for part in (result, *once, *twice)]


@given(
    groups=st.integers(1, 3),
    images=st.integers(1, 4),
    vectors=st.integers(1, 3),
    height=SIDES,
    width=SIDES,
    shared=st.booleans(),
    pool=st.booleans(),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_values_and_both_gradients_are_those_of_plain_torch(
    groups: int, images: int, vectors: int, height: int, width: int, shared: bool, pool: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    channels = LANES * vectors
    maps = maps_of((groups * images, channels, height, width), generator)
    size = (channels,) if shared else (groups, channels)
    affine = [torch.randn(size, generator=generator) for _ in range(2)]
    assert fits(maps, *affine, pool=pool)
    fast = derivatives(maps, affine, pool, groups, torch.float32)
    exact = derivatives(maps, affine, pool, groups, torch.float64)
    with plain_torch():
        plain = derivatives(maps, affine, pool, groups, torch.float32)
    torch.testing.assert_close(fast[0], plain[0], atol=1e-5, rtol=1e-5)
    for part, true in zip(fast, exact, strict=True):
        assert (part - true).abs().max() <= 1e-5 * (1 + true.abs().max())


def test_the_plain_gradients_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, scale, shift = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((4, 3, 4, 5), (2, 3), (2, 3))
    )

    def normalised(*parts: Tensor) -> Tensor:
        return batch_norm_relu(*parts, pool=True, groups=2)

    assert torch.autograd.gradcheck(normalised, (maps, scale, shift))
    assert torch.autograd.gradgradcheck(normalised, (maps, scale, shift))


@pytest.mark.parametrize("pool", [True, False])
def test_any_number_of_threads_gives_the_same_bits(pool: bool) -> None:
    torch.manual_seed(0)
    affine = [torch.randn(2, 32) for _ in range(2)]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(derivatives(MAPS, affine, pool, 2, torch.float32))
        finally:
            torch.set_num_threads(1)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_statistics_are_exact_far_from_zero() -> None:
    maps = MAPS + 1000
    _, mean, variance, size = batch_norm_relu_statistics(
        maps, torch.ones(32), torch.zeros(32), pool=False, groups=2
    )
    apart = maps.double().reshape(2, 3, 32, 5, 5)
    true_variance, true_mean = torch.var_mean(apart, (1, 3, 4), correction=0)
    assert size == 75
    torch.testing.assert_close(mean.double(), true_mean, rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), true_variance, rtol=1e-4, atol=0)
    with plain_torch():
        plain = batch_norm_relu_statistics(maps, torch.ones(32), torch.zeros(32), pool=False, groups=2)
    torch.testing.assert_close(plain.mean, mean)
    torch.testing.assert_close(plain.variance, variance, rtol=1e-4, atol=0)


@pytest.mark.parametrize("pool", [True, False])
def test_given_statistics_are_those_of_an_evaluating_batch_norm(pool: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(32, eps=EPSILON).eval()
    given = [torch.randn(32), torch.rand(32) + 0.1, torch.randn(32), torch.randn(32)]
    for values, drawn in zip(
        (norm.running_mean, norm.running_var, norm.weight, norm.bias), given, strict=True
    ):
        assert values is not None
        values.data.copy_(drawn)
    expected = norm(MAPS).relu()
    expected = torch.max_pool2d(expected, 2) if pool else expected
    with torch.no_grad():
        torch.testing.assert_close(frozen_norm_relu(MAPS, *given, pool=pool), expected, atol=1e-5, rtol=1e-5)
    wanted = MAPS.clone().requires_grad_()
    made = frozen_norm_relu(wanted, *given, pool=pool)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    made.sum().backward()
    assert wanted.grad is not None


def test_channels_without_contrast_become_their_shift() -> None:
    maps = torch.full((2, 16, 4, 4), 3.7).contiguous(memory_format=torch.channels_last).requires_grad_()
    shift = torch.linspace(-1, 1, 16)
    made = batch_norm_relu(maps, torch.ones(16), shift, pool=True)
    torch.testing.assert_close(made, shift.relu()[:, None, None].expand(2, 16, 2, 2), atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(made.sum(), maps)
    assert gradient.isfinite().all()
    assert gradient.sum().abs() < 1e-3


def test_what_is_not_a_number_is_not_hidden() -> None:
    maps = MAPS.clone()
    maps[3, 2, 4, 4] = float("nan")  # in the odd last row and column, in no window
    with torch.no_grad():
        made = batch_norm_relu(maps, torch.ones(32), torch.zeros(32), pool=True, groups=2)
    assert made[:3].isfinite().all()
    assert made[3:, 2].isnan().all()
    assert made[3:, :2].isfinite().all()


@pytest.mark.parametrize(
    "maps",
    [MAPS.double(), MAPS.contiguous(), MAPS[:, :8].contiguous(memory_format=torch.channels_last), MAPS[:0]],
    ids=["float64", "channels first", "few channels", "no images"],
)
def test_what_does_not_fit_is_left_to_torch(maps: Tensor) -> None:
    assert not fits(maps, pool=True)


def test_numbers_that_do_not_match_the_maps_are_left_to_torch() -> None:
    assert fits(MAPS, torch.ones(32), pool=True, groups=2)
    assert not fits(MAPS, torch.ones(16), pool=True)
    assert not fits(MAPS, pool=True, groups=4)


def test_maps_too_small_to_pool_are_left_to_torch() -> None:
    assert fits(MAPS[..., :1].contiguous(memory_format=torch.channels_last), pool=False)
    assert not fits(MAPS[..., :1].contiguous(memory_format=torch.channels_last), pool=True)
