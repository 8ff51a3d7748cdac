"""torch's grouped convolution, differentiable any number of times, equals a convolution group by group."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fewshot.kernels.grouped import convolve


def inputs(groups: int, channels: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, groups * channels, 5, 4, generator=generator, dtype=torch.double)
    weights = torch.randn(groups * width, channels, 3, 3, generator=generator, dtype=torch.double)
    return maps.requires_grad_(), weights.requires_grad_()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_each_group_is_convolved_by_itself(groups: int, stride: int) -> None:
    maps, weights = inputs(groups, 2, 3)
    pairs = zip(maps.chunk(groups, 1), weights.chunk(groups), strict=True)
    one_by_one = [F.conv2d(*pair, stride=stride, padding=1) for pair in pairs]
    torch.testing.assert_close(convolve(maps, weights, stride, groups), torch.cat(one_by_one, 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_and_theirs_are_those_of_numerical_differences(stride: int) -> None:
    given = inputs(2, 1, 2)
    assert gradcheck(lambda *parts: convolve(*parts, stride, 2), given)
    assert gradgradcheck(lambda *parts: convolve(*parts, stride, 2), given)
