"""A DNC's scan in C against the plain cell: outputs, states and gradients, at any sizes and options."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.kernels.dnc import can_scan
from fewshot.kernels.native import library, plain_torch
from tests.kernels.scans import (
    assert_equal,
    assert_equal_from_the_start,
    assert_equal_to_plain,
    dnc_cell,
    kernel_call,
    run,
    sequences,
    used_state,
)

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


@settings(max_examples=25, deadline=None)
@given(
    of_cell=CELL, of_memory=MEMORY, batch=st.integers(1, 19), steps=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_the_scan_equals_the_plain_cell(
    of_cell: dict[str, Any], of_memory: dict[str, Any], batch: int, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    cell = dnc_cell(**of_cell, **of_memory)
    assert_equal_to_plain(cell, batch, steps, least=cell.memory.num_slots, apart=1e-6)


@pytest.mark.parametrize("steps", [1, 40])
@pytest.mark.parametrize("links", [True, False])
def test_from_an_empty_memory_until_it_is_full(links: bool, steps: int) -> None:
    """40 writes into 32 slots."""
    torch.manual_seed(0)
    assert_equal_from_the_start(dnc_cell(num_slots=32, links=links), 3, steps, slack=1e-6)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_pieces_give_what_the_whole_gives(controller: str) -> None:
    torch.manual_seed(0)
    cell = dnc_cell(controller=controller, hidden_size=30, num_slots=20, word_size=7)
    state, (inputs, labels) = used_state(cell, 3), sequences(3, 12)
    assert_equal(run(cell, state, inputs, labels, [1, 7, 4]), run(cell, state, inputs, labels, [12]))


def test_what_the_kernel_is_not_for_goes_step_by_step() -> None:
    state = kernel_call("dnc", 1, 1).state
    assert can_scan(*state)
    assert not can_scan(*state, torch.zeros(1).double())
    assert not can_scan(*state, torch.zeros(1, device="meta"))
    with plain_torch():
        assert not can_scan(*state)
