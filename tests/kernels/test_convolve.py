"""Convolutions with a kernel for each group equal torch's, and so do their gradients of gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fewshot.errors import LearnerError
from fewshot.kernels.convolve import convolve, fits
from fewshot.kernels.native import library, plain_torch

SHAPES = st.tuples(*(st.integers(1, most) for most in (3, 5, 9, 9)))
"""Groups, images of each, rows, columns."""


def inputs(shape: tuple[int, ...], channels: int, width: int, *, shared: bool) -> tuple[Tensor, Tensor]:
    groups, images, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(groups * images, channels, rows, columns, generator=generator)
    kernels = torch.randn(1 if shared else groups, 3, 3, channels, width, generator=generator)
    kernels /= 3 * channels**0.5
    return maps, kernels.expand(groups, -1, -1, -1, -1)


def derivatives(maps: Tensor, kernels: Tensor, stride: int) -> list[Tensor]:
    """The result, its gradients, and those of something that depends on the gradients in a curved way."""
    given = [maps.detach().requires_grad_(), kernels.detach().requires_grad_()]
    result = convolve(given[0], given[1], stride)
    once = torch.autograd.grad(result.sin().sum(), given, create_graph=True)
    squares = torch.stack([part.square().sum() for part in once])
    twice = torch.autograd.grad(squares.sum(), given)
    return [part.detach() for part in (result, *once, *twice)]


@given(
    SHAPES,
    st.sampled_from([1, 3, 16, 20, 48]),
    st.sampled_from([16, 32, 80]),
    st.integers(1, 3),
    st.booleans(),
)
@example((2, 5, 14, 14), 64, 64, 1, False)  # images in several pieces
@example((2, 5, 29, 3), 64, 64, 2, True)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_kernel_equals_plain_torch(
    shape: tuple[int, ...], channels: int, width: int, stride: int, shared: bool
) -> None:
    if library("convolve") is None:
        pytest.skip("the kernel does not compile on this machine: plain torch is all there is")
    maps, kernels = inputs(shape, channels, width, shared=shared)
    fast = derivatives(maps, kernels, stride)
    with plain_torch():
        plain = derivatives(maps.double(), kernels.double(), stride)
    for part, other in zip(fast, plain, strict=True):
        assert (part - other).abs().max() <= 1e-5 * other.abs().max()


@given(SHAPES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans())
@settings(max_examples=15, deadline=None, derandomize=True)
def test_plain_torch_convolves_group_by_group(
    shape: tuple[int, ...], channels: int, width: int, stride: int, shared: bool
) -> None:
    maps, kernels = inputs(shape, channels, width, shared=shared)
    groups = zip(maps.chunk(shape[0]), kernels.permute(0, 4, 3, 1, 2), strict=True)
    one_by_one = [F.conv2d(group, kernel, stride=stride, padding=1) for group, kernel in groups]
    torch.testing.assert_close(convolve(maps, kernels, stride), torch.cat(one_by_one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_are_those_of_numerical_differences(stride: int, shared: bool) -> None:
    maps, kernels = inputs((2, 2, 4, 3), 2, 2, shared=shared)
    given = (maps.double().requires_grad_(), kernels.double().detach().requires_grad_())
    assert gradcheck(lambda *parts: convolve(*parts, stride), given)
    assert gradgradcheck(lambda *parts: convolve(*parts, stride), given)


@pytest.mark.parametrize(("images", "channels"), [(3, 16), (4, 32)])
def test_images_that_do_not_match_the_kernels_are_refused(images: int, channels: int) -> None:
    with pytest.raises(
        LearnerError, match=f"2 kernels for 16 channels cannot share {images} images of {channels}"
    ):
        convolve(torch.zeros(images, channels, 4, 4), torch.zeros(2, 3, 3, 16, 16))
    assert not fits(torch.zeros(4, 32, 4, 4), torch.zeros(16, 16, 3, 3))


def test_the_number_of_threads_changes_nothing() -> None:
    maps, kernels = inputs((3, 4, 7, 7), 16, 32, shared=False)
    threads = torch.get_num_threads()
    alone = derivatives(maps, kernels, 2)
    try:
        torch.set_num_threads(2)
        together = derivatives(maps, kernels, 2)
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, alone, together))
