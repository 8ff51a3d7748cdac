"""What every kernel in C that runs a cell over a sequence promises: bits, gradients, and no harm done."""

import pytest
import torch
from torch import Tensor

from fewshot.kernels.native import library, plain_torch
from tests.kernels.scans import KernelCall, kernel_call

every_kernel = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(name, marks=pytest.mark.skipif(library(name) is None, reason=f"no {name} kernel here"))
        for name in ("dnc", "lrua")
    ],
)


def results_and_gradients(call: KernelCall) -> list[Tensor]:
    """Outputs, the last state and all gradients but the weights' (which are torch's products)."""
    sequences = [part.detach().requires_grad_() for part in call.sequences]
    weights = [part.detach().requires_grad_() for part in call.weights]
    start = type(call.state)(*(part.detach().requires_grad_() for part in call.state))
    outputs, last = call._replace(sequences=sequences, weights=weights, state=start)()
    total = outputs.sin().sum() + sum(part.square().sum() for part in last if part.requires_grad)
    leaves = [*sequences, *start]
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [outputs, *last, *gradients]


@every_kernel
def test_the_same_bits_at_any_number_of_threads_and_in_any_batch(kernel: str) -> None:
    call = kernel_call(kernel, 37, 6)
    once, again = (results_and_gradients(call) for _ in range(2))
    try:
        torch.set_num_threads(2)
        in_two_threads = results_and_gradients(call)
    finally:
        torch.set_num_threads(1)
    one = [part[30:31] for part in call.sequences]
    alone = call._replace(sequences=one, state=type(call.state)(*(part[30:31] for part in call.state)))
    for ours, second, threaded, single in zip(
        once, again, in_two_threads, results_and_gradients(alone), strict=True
    ):
        assert torch.equal(ours, second)
        assert torch.equal(ours, threaded)
        assert torch.equal(ours[30:31], single)


@every_kernel
def test_without_gradients_the_outputs_are_the_same_bits(kernel: str) -> None:
    call = kernel_call(kernel, 5, 9)
    outputs, last = call()
    assert not outputs.requires_grad
    for ours, kept in zip((outputs, *last), results_and_gradients(call), strict=False):
        assert torch.equal(ours, kept)


@every_kernel
def test_strides_do_not_matter(kernel: str) -> None:
    call = kernel_call(kernel, 4, 5)
    projected, offsets = call.sequences
    expanded, whole = offsets[:1, :1].expand(4, 5, -1), offsets[:1, :1].repeat(4, 5, 1)
    turned = [tensor.mT.contiguous().mT for tensor in (projected, *call.weights)]
    one, _ = call._replace(sequences=[projected, whole])()
    other, _ = call._replace(sequences=[turned[0], expanded], weights=turned[1:])()
    assert torch.equal(one, other)


@every_kernel
def test_the_state_that_went_in_is_left_as_it_was(kernel: str) -> None:
    call = kernel_call(kernel, 4, 5)
    copies = [part.clone() for part in call.state]
    call()
    assert all(torch.equal(part, copy) for part, copy in zip(call.state, copies, strict=True))


@every_kernel
@pytest.mark.parametrize("more", [-1, 1])
def test_an_interface_of_another_width_is_not_read(kernel: str, more: int) -> None:
    """What is read beyond it would be somebody else's memory."""
    call = kernel_call(kernel, 2, 3)
    (projected, _), (recurrent, interface) = call.sequences, call.weights
    size = len(interface) + more
    others = [recurrent, torch.zeros(size, interface.shape[1])]
    with pytest.raises(AssertionError, match=f"{kernel} reads {len(interface)} numbers a step"):
        call._replace(sequences=[projected, torch.zeros(2, 3, size)], weights=others)()
    with pytest.raises(AssertionError, match="each step's interface has its offsets"):
        call._replace(weights=others)()


@every_kernel
def test_what_is_not_a_number_does_no_harm(kernel: str) -> None:
    call = kernel_call(kernel, 3, 8)
    expected, _ = call()
    call.sequences[0][1, 2, 0] = float("nan")
    outputs, _ = call()
    assert outputs[1, 2:].isnan().any(-1).all()
    assert torch.equal(outputs[[0, 2]], expected[[0, 2]])


@every_kernel
def test_a_backward_pass_does_not_depend_on_where_it_is_called(kernel: str) -> None:
    call = kernel_call(kernel, 2, 3)
    projected = call.sequences[0].requires_grad_()
    outputs, _ = call()
    with plain_torch():
        (gradient,) = torch.autograd.grad(outputs.sum(), projected, retain_graph=True)
    (again,) = torch.autograd.grad(outputs.sum(), projected)
    assert torch.equal(gradient, again)


@every_kernel
def test_a_gradient_of_a_gradient_is_refused(kernel: str) -> None:
    call = kernel_call(kernel, 2, 3)
    projected = call.sequences[0].requires_grad_()
    outputs, _ = call()
    (gradient,) = torch.autograd.grad(outputs.square().sum(), projected, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
