"""A DNC's scan in C against the plain cell: outputs, states and gradients, at any sizes and options."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.kernels.dnc import DncOptions, DncScanState, can_scan, scan
from fewshot.kernels.native import library, plain_torch
from fewshot.memory.cell import MemoryCell, MemoryState
from fewshot.memory.dnc import Dnc, DncState
from tests.kernels.scans import INPUT, WAY, assert_equal, double, run, sequences, used_state

pytestmark = pytest.mark.skipif(library("dnc") is None, reason="the dnc kernel does not compile here")

CELL = st.fixed_dictionaries(
    {
        "controller": st.sampled_from(["lstm", "feedforward"]),
        "hidden_size": st.integers(1, 40),
        "tie": st.booleans(),
    }
)
MEMORY = st.fixed_dictionaries(
    {
        "num_slots": st.integers(1, 40),
        "word_size": st.integers(2, 20),  # of one number, the cosine has no slope but rounding
        "read_heads": st.integers(1, 6),
        "masked": st.booleans(),
        "erase_on_free": st.booleans(),
        "links": st.booleans(),
        "sharp_links": st.booleans(),
        "strength_offset": st.sampled_from([1.0, 5.0]),
    }
)


def dnc_cell(**options: Any) -> MemoryCell:
    of_cell = {name: options.pop(name, default) for name, default in CELL_DEFAULTS.items()}
    return MemoryCell(INPUT, WAY, **of_cell, memory=Dnc(**options))


CELL_DEFAULTS = {"controller": "lstm", "hidden_size": 200, "tie": True}


def used_dnc(cell: MemoryCell, batch: int) -> MemoryState:
    """A state from the middle of a sequence: no two slots alike, links that sum to less than 1."""
    start: DncState = cell.start(batch).access
    slots = start.usage.shape[1]
    access = DncState(
        memory=torch.randn_like(start.memory) / 2,
        usage=torch.rand_like(start.usage),
        read_weights=torch.randn_like(start.read_weights).softmax(-1),
        write_weights=torch.randn_like(start.write_weights).softmax(-1) / 2,
        precedence=torch.rand_like(start.precedence) / slots,
        links=torch.rand_like(start.links) / slots * (1 - torch.eye(start.links.shape[1])),
    )
    return used_state(cell, access)


def nearest_usages(cell: MemoryCell, state: MemoryState, inputs: Tensor, labels: Tensor) -> float:
    """How near two usages come: where rounding decides which is the lesser, paths may part."""
    nearest = 1.0
    with torch.no_grad():
        for step in range(inputs.shape[1]):
            _, state = cell(state, inputs[:, step : step + 1], labels[:, step : step + 1])
            gaps = state.access.usage.sort(-1).values.diff(dim=-1)
            nearest = min(nearest, gaps.amin().item() if gaps.numel() else 1.0)
    return nearest


@settings(max_examples=25, deadline=None)
@given(
    of_cell=CELL, of_memory=MEMORY, batch=st.integers(1, 19), steps=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_the_scan_equals_the_plain_cell(
    of_cell: dict[str, Any], of_memory: dict[str, Any], batch: int, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    cell = dnc_cell(**of_cell, **of_memory)
    state, (inputs, labels) = used_dnc(cell, batch), sequences(batch, steps)
    with plain_torch():
        assume(nearest_usages(cell, state, inputs, labels) > 1e-6)
        plain = run(cell, state, inputs, labels, [steps])
        exact = run(copy.deepcopy(cell).double(), double(state), inputs.double(), labels.double(), [steps])
    assert_equal(run(cell, state, inputs, labels, [steps]), plain, exact)


@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("links", [True, False])
def test_from_an_empty_memory_until_it_is_full(links: bool, steps: int) -> None:
    """40 writes into 32 slots. Slots that nothing told apart may be swapped, so outputs are compared."""
    torch.manual_seed(0)
    cell = dnc_cell(num_slots=32, links=links)
    inputs, labels = sequences(3, steps)

    def outputs_and_gradients() -> tuple[Tensor, ...]:
        outputs, _ = cell(cell.start(3), inputs, labels)
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3))
        return outputs, *torch.autograd.grad((outputs * weights).sum(), list(cell.parameters()))

    fast = outputs_and_gradients()
    with plain_torch():
        plain = outputs_and_gradients()
    torch.testing.assert_close(fast[0], plain[0], atol=1e-5, rtol=0)
    for ours, theirs in zip(fast[1:], plain[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4 * theirs.abs().amax().item() + 1e-6, rtol=0)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_pieces_give_what_the_whole_gives(controller: str) -> None:
    torch.manual_seed(0)
    cell = dnc_cell(controller=controller, hidden_size=30, num_slots=20, word_size=7)
    state, (inputs, labels) = used_dnc(cell, 3), sequences(3, 12)
    assert_equal(run(cell, state, inputs, labels, [1, 7, 4]), run(cell, state, inputs, labels, [12]))


def kernel_inputs(batch: int, steps: int) -> tuple[list[Tensor], DncScanState, DncOptions]:
    """Straight into the kernel, so that no product of torch stands between; 3 heads, words of 5, 7 units."""
    torch.manual_seed(0)
    memory = Dnc(num_slots=21, word_size=5, read_heads=3)
    cell = MemoryCell(INPUT, WAY, controller="lstm", hidden_size=7, memory=memory, tie=False)
    recurrent = torch.randn(batch, 7 + 15)
    state = DncScanState(recurrent, torch.randn(batch, 7), *used_dnc(cell, batch).access)
    size = memory.interface_size
    shapes = [(batch, steps, 28), (batch, steps, size), (28, 22), (size, 7)]
    return [torch.randn(shape) for shape in shapes], state, memory.options


def scan_and_gradients(tensors: list[Tensor], state: DncScanState, options: DncOptions) -> list[Tensor]:
    """Outputs, the last state and all gradients but the weights' (which are torch's products)."""
    projected, offsets, *weights = (tensor.detach().requires_grad_() for tensor in tensors)
    start = DncScanState(*(part.detach().requires_grad_() for part in state))
    outputs, last = scan(projected, offsets, weights[0], weights[1], start, options)
    total = outputs.sin().sum() + sum(part.square().sum() for part in last)
    return [outputs, *last, *torch.autograd.grad(total, [projected, offsets, *start])]


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
        DncScanState(*(part[30:31] for part in state)),
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


def test_the_state_that_went_in_is_left_as_it_was() -> None:
    tensors, state, options = kernel_inputs(4, 5)
    copies = [part.clone() for part in state]
    scan(tensors[0], tensors[1], tensors[2], tensors[3], state, options)
    assert all(torch.equal(part, copy) for part, copy in zip(state, copies, strict=True))


def test_what_is_not_a_number_does_no_harm() -> None:
    tensors, state, options = kernel_inputs(3, 8)
    tensors[0][1, 2, 0] = float("nan")
    clean, *_ = kernel_inputs(3, 8)
    outputs, _ = scan(tensors[0], tensors[1], tensors[2], tensors[3], state, options)
    expected, _ = scan(clean[0], clean[1], clean[2], clean[3], state, options)
    assert outputs[1, 2:].isnan().any(-1).all()
    assert torch.equal(outputs[[0, 2]], expected[[0, 2]])


def test_what_the_kernel_is_not_for_goes_step_by_step() -> None:
    _, state, _ = kernel_inputs(1, 1)
    assert can_scan(*state)
    assert not can_scan(*state, torch.zeros(1).double())
    assert not can_scan(*state, torch.zeros(1, device="meta"))
    with plain_torch():
        assert not can_scan(*state)
