"""The memory's scan in C against the plain cell: outputs, states and gradients, at any sizes and options."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.kernels.lrua import ScanOptions, ScanState, can_scan, scan
from fewshot.kernels.native import library, plain_torch
from fewshot.memory.cell import MemoryCell, MemoryState
from fewshot.memory.lrua import LruaState
from tests.kernels.scans import INPUT, WAY, assert_equal, double, run, sequences, used_state
from tests.memory.cells import lrua_cell

pytestmark = pytest.mark.skipif(library("lrua") is None, reason="the lrua kernel does not compile here")

STRONG: dict[str, Any] = {
    "controller": "lstm",
    "hidden_size": 200,
    "num_slots": 128,
    "word_size": 40,
    "read_heads": 4,
    "usage_decay": 0.99,
    "least_used": "per_head",
    "add_vector": "apart",
    "strength_offset": 5.0,
    "gate_bias": 0.0,
    "tie": True,
}
PAPER = STRONG | {"least_used": "shared", "add_vector": "key", "strength_offset": None, "tie": False}

OPTIONS = st.fixed_dictionaries(
    {
        "controller": st.sampled_from(["lstm", "feedforward"]),
        "hidden_size": st.integers(1, 40),
        "word_size": st.integers(2, 20),  # of one number, the cosine has no slope but rounding
        "read_heads": st.integers(1, 6),
        "usage_decay": st.sampled_from([0.9, 0.99]),
        "least_used": st.sampled_from(["shared", "per_head"]),
        "strength_offset": st.sampled_from([None, 1.0, 5.0]),
        "gate_bias": st.sampled_from([0.0, -1.0]),
    }
)


def used_lrua(cell: MemoryCell, batch: int) -> MemoryState:
    """A state from the middle of a sequence: no two slots alike."""
    memory, read_weights, usage = cell.start(batch).access
    access = LruaState(
        torch.randn_like(memory) / 2, torch.randn_like(read_weights).softmax(-1), 2 * torch.rand_like(usage)
    )
    return used_state(cell, access)


def nearest_usages(cell: MemoryCell, state: MemoryState, inputs: Tensor, labels: Tensor) -> float:
    """How near two of the least used slots come: where rounding decides between them, paths may part."""
    nearest = float("inf")
    with torch.no_grad():
        for step in range(inputs.shape[1]):
            least = state.access.usage.sort(-1).values[:, : cell.memory.read_heads + 1]
            nearest = min(nearest, least.diff(dim=-1).amin().item())
            _, state = cell(state, inputs[:, step : step + 1], labels[:, step : step + 1])
    return nearest


@settings(max_examples=25, deadline=None)
@given(
    options=OPTIONS,
    more_slots=st.integers(1, 40),
    kind=st.sampled_from([("key", False), ("apart", False), ("apart", True)]),
    batch=st.integers(1, 19),
    steps=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_the_scan_equals_the_plain_cell(
    options: dict[str, Any], more_slots: int, kind: tuple[Any, bool], batch: int, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    slots = options["read_heads"] + more_slots
    cell = lrua_cell(INPUT, WAY, **options, num_slots=slots, add_vector=kind[0], tie=kind[1])
    state, (inputs, labels) = used_lrua(cell, batch), sequences(batch, steps)
    with plain_torch():
        assume(nearest_usages(cell, state, inputs, labels) > 1e-5)
        plain = run(cell, state, inputs, labels, [steps])
        exact = run(copy.deepcopy(cell).double(), double(state), inputs.double(), labels.double(), [steps])
    assert_equal(run(cell, state, inputs, labels, [steps]), plain, exact)


@pytest.mark.parametrize("options", [STRONG, PAPER], ids=["strong", "paper"])
@pytest.mark.parametrize("steps", [1, 60])
def test_from_an_empty_memory_until_it_overflows(options: dict[str, Any], steps: int) -> None:
    """60 x 4 writes into 128 slots. Slots that nothing told apart may be swapped, so outputs are compared."""
    torch.manual_seed(0)
    cell = lrua_cell(INPUT, WAY, **options)
    inputs, labels = sequences(5, steps)

    def outputs_and_gradients() -> tuple[Tensor, ...]:
        outputs, _ = cell(cell.start(5), inputs, labels)
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3))
        return outputs, *torch.autograd.grad((outputs * weights).sum(), list(cell.parameters()))

    fast = outputs_and_gradients()
    with plain_torch():
        plain = outputs_and_gradients()
    torch.testing.assert_close(fast[0], plain[0], atol=1e-5, rtol=0)
    for ours, theirs in zip(fast[1:], plain[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().amax().item(), rtol=0)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_pieces_give_what_the_whole_gives(controller: str) -> None:
    torch.manual_seed(0)
    cell = lrua_cell(INPUT, WAY, **(STRONG | {"controller": controller, "hidden_size": 30}))
    state, (inputs, labels) = used_lrua(cell, 3), sequences(3, 20)
    assert_equal(run(cell, state, inputs, labels, [1, 12, 7]), run(cell, state, inputs, labels, [20]))


def kernel_inputs(batch: int, steps: int, slots: int = 21) -> tuple[list[Tensor], ScanState, ScanOptions]:
    """Straight into the kernel, so that no product of torch stands between; 3 heads, words of 5, 7 units."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in [(batch, steps, 28), (batch, steps, 36), (28, 22), (36, 7)]]
    usage = torch.rand(batch, slots)
    shapes = [(batch, 22), (batch, 7), (batch, slots, 5)]
    recurrent, cell, memory = (torch.randn(shape) for shape in shapes)
    state = ScanState(recurrent, cell, memory, torch.randn(batch, 3, slots).softmax(-1), usage)
    return tensors, state, ScanOptions(True, True, False, 0.95, 2.0)


def scan_and_gradients(tensors: list[Tensor], state: ScanState, options: ScanOptions) -> list[Tensor]:
    """Outputs, the last state and all gradients but the weights' (which are torch's products)."""
    projected, offsets, *weights = (tensor.detach().requires_grad_() for tensor in tensors)
    start = ScanState(*(part.detach().requires_grad_() for part in state[:4]), state.usage)
    outputs, last = scan(projected, offsets, weights[0], weights[1], start, options)
    total = outputs.sin().sum() + sum(part.square().sum() for part in last[:4])
    return [outputs, *last, *torch.autograd.grad(total, [projected, offsets, *start[:4]])]


def test_the_same_bits_at_any_number_of_threads_and_in_any_batch() -> None:
    tensors, state, options = kernel_inputs(37, 6)
    once, again = (scan_and_gradients(tensors, state, options) for _ in range(2))
    try:
        torch.set_num_threads(2)
        in_two_threads = scan_and_gradients(tensors, state, options)
    finally:
        torch.set_num_threads(1)
    alone = scan_and_gradients(
        [part[30:31] for part in tensors[:2]] + tensors[2:],
        ScanState(*(part[30:31] for part in state)),
        options,
    )
    for ours, second, threaded, single in zip(once, again, in_two_threads, alone, strict=True):
        assert torch.equal(ours, second)
        assert torch.equal(ours, threaded)
        assert torch.equal(ours[30:31], single)


def test_without_gradients_the_outputs_are_the_same_bits() -> None:
    tensors, state, options = kernel_inputs(5, 9)
    projected, offsets, *weights = tensors
    outputs, last = scan(projected, offsets, weights[0], weights[1], state, options)
    assert not outputs.requires_grad
    for ours, kept in zip((outputs, *last), scan_and_gradients(tensors, state, options), strict=False):
        assert torch.equal(ours, kept)


def test_strides_do_not_matter() -> None:
    tensors, state, options = kernel_inputs(4, 5)
    bias = tensors[1][:1, :1]
    expanded, whole = bias.expand(4, 5, -1), bias.repeat(4, 5, 1)
    turned = [tensor.mT.contiguous().mT for tensor in (tensors[0], tensors[2], tensors[3])]
    one, _ = scan(tensors[0], whole, tensors[2], tensors[3], state, options)
    other, _ = scan(turned[0], expanded, turned[1], turned[2], state, options)
    assert torch.equal(one, other)


def test_the_state_that_went_in_is_left_as_it_was() -> None:
    tensors, state, options = kernel_inputs(4, 5)
    copies = [part.clone() for part in state]
    scan(tensors[0], tensors[1], tensors[2], tensors[3], state, options)
    assert all(torch.equal(part, copy) for part, copy in zip(state, copies, strict=True))


def test_ties_in_usage_go_to_the_lower_slot() -> None:
    """With the write gate shut, head j writes into the j-th least used slot."""
    (projected, offsets, recurrent, interface), state, options = kernel_inputs(1, 1)
    usage = torch.full((1, 21), 2.0)
    usage[0, [4, 9, 17]] = 1.0
    usage[0, 12] = 0.5
    offsets[..., 30:33] = -100
    interface[30:33] = 0
    _, last = scan(projected, offsets, recurrent, interface, state._replace(usage=usage), options)
    changed = (last.memory != state.memory).any(-1)
    assert changed[0].nonzero().flatten().tolist() == [4, 9, 12]


def test_what_is_not_a_number_does_no_harm() -> None:
    tensors, state, options = kernel_inputs(3, 8)
    tensors[0][1, 2, 0] = float("nan")
    clean, *_ = kernel_inputs(3, 8)
    outputs, _ = scan(tensors[0], tensors[1], tensors[2], tensors[3], state, options)
    expected, _ = scan(clean[0], clean[1], clean[2], clean[3], state, options)
    assert outputs[1, 2:].isnan().any(-1).all()
    assert torch.equal(outputs[[0, 2]], expected[[0, 2]])


def test_what_the_kernel_is_not_for_takes_the_plain_path() -> None:
    _, state, _ = kernel_inputs(1, 1)
    assert can_scan(state)
    assert not can_scan(state, torch.zeros(1).double())
    assert not can_scan(state, torch.zeros(1, device="meta"))
    assert not can_scan(state._replace(read_weights=torch.zeros(1, 3, 2)))
    with plain_torch():
        assert not can_scan(state)


def test_a_backward_pass_does_not_depend_on_where_it_is_called() -> None:
    tensors, state, options = kernel_inputs(2, 3)
    projected = tensors[0].requires_grad_()
    outputs, _ = scan(projected, tensors[1], tensors[2], tensors[3], state, options)
    with plain_torch():
        (gradient,) = torch.autograd.grad(outputs.sum(), projected, retain_graph=True)
    (again,) = torch.autograd.grad(outputs.sum(), projected)
    assert torch.equal(gradient, again)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    tensors, state, options = kernel_inputs(2, 3)
    projected = tensors[0].requires_grad_()
    outputs, _ = scan(projected, tensors[1], tensors[2], tensors[3], state, options)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), projected, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
