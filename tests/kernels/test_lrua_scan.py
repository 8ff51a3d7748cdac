"""The memory's scan in C against the plain cell: outputs, states and gradients, at any sizes and options."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.kernels.lrua import can_scan
from fewshot.kernels.native import library, plain_torch
from tests.kernels.scans import (
    INPUT,
    WAY,
    assert_equal,
    assert_equal_from_the_start,
    assert_equal_to_plain,
    kernel_call,
    run,
    sequences,
    used_state,
)
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
    assert_equal_to_plain(cell, batch, steps, least=options["read_heads"] + 1, apart=1e-5)


@pytest.mark.parametrize("options", [STRONG, PAPER], ids=["strong", "paper"])
@pytest.mark.parametrize("steps", [1, 60])
def test_from_an_empty_memory_until_it_overflows(options: dict[str, Any], steps: int) -> None:
    """60 x 4 writes into 128 slots."""
    torch.manual_seed(0)
    assert_equal_from_the_start(lrua_cell(INPUT, WAY, **options), 5, steps)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_pieces_give_what_the_whole_gives(controller: str) -> None:
    torch.manual_seed(0)
    cell = lrua_cell(INPUT, WAY, **(STRONG | {"controller": controller, "hidden_size": 30}))
    state, (inputs, labels) = used_state(cell, 3), sequences(3, 20)
    assert_equal(run(cell, state, inputs, labels, [1, 12, 7]), run(cell, state, inputs, labels, [20]))


def test_ties_in_usage_go_to_the_lower_slot() -> None:
    """With the write gate shut, head j writes into the j-th least used slot."""
    call = kernel_call("lrua", 1, 1)
    usage = torch.full((1, 21), 2.0)
    usage[0, [4, 9, 17]] = 1.0
    usage[0, 12] = 0.5
    call.sequences[1][..., 30:33] = -100
    call.weights[1][30:33] = 0
    _, last = call._replace(state=call.state._replace(usage=usage))()
    changed = (last.memory != call.state.memory).any(-1)
    assert changed[0].nonzero().flatten().tolist() == [4, 9, 12]


def test_what_the_kernel_is_not_for_takes_the_plain_path() -> None:
    state = kernel_call("lrua", 1, 1).state
    assert can_scan(state)
    assert not can_scan(state, torch.zeros(1).double())
    assert not can_scan(state, torch.zeros(1, device="meta"))
    assert not can_scan(state._replace(read_weights=torch.zeros(1, 3, 2)))
    with plain_torch():
        assert not can_scan(state)
