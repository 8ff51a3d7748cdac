"""Usage and allocation against slow twins, planted values and their invariants."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fewshot.memory.allocation import allocation_weights, retention, usage_after

Array = NDArray[np.float64]


def slow_retention(free_gates: Array, read_weights: Array) -> Array:
    """One episode: the share of each slot that no head frees."""
    retained = np.ones(read_weights.shape[1])
    for slot in range(len(retained)):
        for head, gate in enumerate(free_gates):
            retained[slot] *= 1 - gate * read_weights[head, slot]
    return retained


def slow_allocation(usage: Array) -> Array:
    """One episode: down the list of free slots."""
    weights = np.zeros(len(usage))
    free_list = sorted(range(len(usage)), key=lambda slot: (usage[slot], slot))
    for place, slot in enumerate(free_list):
        weights[slot] = 1 - usage[slot]
        for earlier in free_list[:place]:
            weights[slot] *= usage[earlier]
    return weights


def test_usage_and_allocation_equal_the_slow_twins() -> None:
    random = np.random.default_rng(0)
    free_gates, usage = random.uniform(size=(3, 2)), random.uniform(size=(3, 7))
    read_weights, write_weights = random.dirichlet(np.ones(7), size=(3, 2)), random.dirichlet(np.ones(7), 3)
    retained = retention(torch.tensor(free_gates), torch.tensor(read_weights))
    after = usage_after(torch.tensor(usage), torch.tensor(write_weights), retained)
    weights = allocation_weights(after)
    for b in range(3):
        slow_retained = slow_retention(free_gates[b], read_weights[b])
        slow_usage = (usage[b] + write_weights[b] - usage[b] * write_weights[b]) * slow_retained
        np.testing.assert_allclose(retained[b], slow_retained, rtol=1e-12)
        np.testing.assert_allclose(after[b], slow_usage, rtol=1e-12)
        np.testing.assert_allclose(weights[b], slow_allocation(slow_usage), rtol=1e-12)


def one_hot(slot: int, slots: int = 5) -> torch.Tensor:
    return torch.eye(slots)[slot]


def test_a_full_write_makes_usage_exactly_one_and_a_full_free_exactly_zero() -> None:
    """Slot 1 is written, slot 3 is read by a head that frees it; the rest stays as it was."""
    usage = torch.tensor([[0.2, 0.3, 0.4, 0.9, 0.6]])
    retained = retention(torch.tensor([[1.0, 0.0]]), torch.stack([one_hot(3), one_hot(4)]).unsqueeze(0))
    after = usage_after(usage, one_hot(1).unsqueeze(0), retained)
    assert after[0, 1] == 1
    assert after[0, 3] == 0
    assert torch.equal(after[0, [0, 2, 4]], usage[0, [0, 2, 4]])


def test_a_shut_gate_frees_nothing() -> None:
    read_weights = torch.rand(2, 3, 6).softmax(-1)
    assert torch.equal(retention(torch.zeros(2, 3), read_weights), torch.ones(2, 6))


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ([0.0, 0.0, 0.0], [1.0, 0.0, 0.0]),  # ties go to the lower slot
        ([1.0, 0.0, 0.5], [0.0, 1.0, 0.0]),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.5, 1.0, 0.25], [0.125, 0.0, 0.75]),
    ],
)
def test_allocation_takes_what_is_free(usage: list[float], expected: list[float]) -> None:
    assert allocation_weights(torch.tensor([usage])).tolist() == [expected]


@settings(max_examples=40, deadline=None)
@given(usage=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_allocation_weights_sum_to_what_is_free(usage: list[float]) -> None:
    given = torch.tensor([usage], dtype=torch.double)
    weights = allocation_weights(given)
    assert (weights >= 0).all()
    assert weights.sum() <= 1 + 1e-12
    torch.testing.assert_close(weights.sum(-1), 1 - given.prod(-1))


def test_gradient() -> None:
    torch.manual_seed(0)
    leaves = (
        torch.rand(2, 3, dtype=torch.double),
        torch.randn(2, 3, 5, dtype=torch.double).softmax(-1),
        torch.rand(2, 5, dtype=torch.double),
        torch.randn(2, 5, dtype=torch.double).softmax(-1),
    )

    def allocated(
        free_gates: torch.Tensor, read_weights: torch.Tensor, usage: torch.Tensor, written: torch.Tensor
    ) -> torch.Tensor:
        return allocation_weights(usage_after(usage, written, retention(free_gates, read_weights)))

    assert torch.autograd.gradcheck(allocated, tuple(leaf.requires_grad_() for leaf in leaves))


def test_the_gradient_at_an_empty_memory_is_finite() -> None:
    usage = torch.zeros(1, 4, requires_grad=True)
    allocation_weights(usage)[0, 1].backward()
    assert usage.grad is not None
    assert usage.grad.tolist() == [[1.0, 0.0, 0.0, 0.0]]  # what slot 0 could not take goes on to slot 1
