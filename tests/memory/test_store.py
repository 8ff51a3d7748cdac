"""Slots that were filled before the episode: an overlay over a base is one flat memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.memory.search import ExactSearch, FaissSearch
from fewshot.memory.sparse import Sparse, SparseState
from fewshot.memory.store import OverlayStore, OwnStore, Store

WORD, BATCH = 5, 3


def build(store: Store, heads: int = 2, k: int = 3) -> Sparse:
    return Sparse(store, word_size=WORD, read_heads=heads, slots_per_head=k)


def filled(memory: Sparse, rows: Tensor) -> SparseState:
    """The state of a memory that every episode holds whole, with these words in its slots."""
    state = memory.start(BATCH, rows)
    return state._replace(held=state.held._replace(words=rows.expand(BATCH, -1, -1)))


def interfaces(memory: Sparse, steps: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, memory.interface_size)
    return [2 * torch.randn(shape, dtype=torch.double, generator=generator) for _ in range(steps)]


@settings(deadline=None, max_examples=15)
@given(slots=st.integers(4, 40), heads=st.integers(1, 3), k=st.integers(1, 4), seed=st.integers(0, 2**31 - 1))
def test_an_overlay_over_a_base_is_one_flat_memory(slots: int, heads: int, k: int, seed: int) -> None:
    """Until every slot was written over, and after."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(slots, WORD, dtype=torch.double, generator=generator)
    flat, over = build(OwnStore(slots), heads, k), build(OverlayStore(ExactSearch(rows)), heads, k)
    one, other = filled(flat, rows), over.start(BATCH, rows)
    for interface in interfaces(flat, 12, seed):
        expected, access = flat.step(one, interface), over.step(other, interface)
        one, other = expected.state, access.state
        torch.testing.assert_close(access.reads, expected.reads)
        for name in ("read_slots", "write_slots"):
            assert torch.equal(getattr(access, name), getattr(expected, name)), name
        for name in ("read_weights", "write_weights"):
            torch.testing.assert_close(getattr(access, name), getattr(expected, name))


def test_episodes_hold_the_slots_that_they_touched_once_each_and_leave_the_base_as_it_was() -> None:
    rows = torch.randn(60, WORD, dtype=torch.double)
    before = rows.clone()
    memory = build(OverlayStore(ExactSearch(rows)))
    state, touched = memory.start(BATCH, rows), [{0} for _ in range(BATCH)]
    for interface in interfaces(memory, 8, seed=0):
        access = memory.step(state, interface)
        state = access.state
        assert access.usage is None
        assert access.read_slots is not None
        assert access.write_slots is not None
        for b in range(BATCH):
            touched[b] |= set(access.read_slots[b].flatten().tolist())
            touched[b] |= set(access.write_slots[b].flatten().tolist())
    for b in range(BATCH):
        held = [slot for slot in state.held.slots[b].tolist() if slot >= 0]
        assert sorted(held) == sorted(touched[b])
    assert torch.equal(rows, before)
    assert state.held.slots.shape[1] < 60


def test_an_episode_reads_what_it_wrote_over_a_distractor_and_not_the_distractor() -> None:
    rows = torch.eye(WORD, dtype=torch.double)
    memory = build(OverlayStore(ExactSearch(rows)), heads=1, k=1)
    interface = torch.zeros(BATCH, memory.interface_size, dtype=torch.double)
    interface[:, 0] = 1  # looks for the first row, where slot 0 was
    interface[:, WORD + 1] = 40  # and writes the second one
    interface[:, 2 * WORD], interface[:, 2 * WORD + 1] = 40, -40  # whole, to the least used slot, which is 0
    access = memory.step(memory.start(BATCH, rows), interface)
    assert access.write_slots is not None
    assert access.write_slots[:, 0, -1].tolist() == [0] * BATCH
    torch.testing.assert_close(access.state.held.words[:, 0], rows[1].expand(BATCH, -1))
    torch.testing.assert_close(access.reads[:, 0, 0], torch.zeros(BATCH, dtype=torch.double))


def test_gradient_over_a_base() -> None:
    rows = torch.randn(30, WORD, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    memory = build(OverlayStore(ExactSearch(rows)))

    def two_steps(*given: Tensor) -> Tensor:
        state, reads = memory.start(1, rows), []
        for interface in given:
            access = memory.step(state, interface)
            state = access.state
            reads.append(access.reads)
        return torch.stack(reads)

    leaves = tuple(interface[:1].clone().requires_grad_() for interface in interfaces(memory, 2, seed=0))
    assert torch.autograd.gradcheck(two_steps, leaves)


def test_an_index_in_place_of_the_exact_search_reads_nearly_the_same() -> None:
    pytest.importorskip("faiss", reason="needs faiss: pip install 'fewshot[ann]'")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(400, WORD, generator=generator)
    exact, approximate = (build(OverlayStore(search(rows))) for search in (ExactSearch, FaissSearch))
    state, shares = approximate.start(BATCH, rows), []
    for interface in interfaces(exact, 10, seed=0):
        expected = exact.step(state, interface.float()).read_slots
        access = approximate.step(state, interface.float())
        state = access.state
        assert expected is not None
        assert access.read_slots is not None
        shares.append((access.read_slots.unsqueeze(3) == expected.unsqueeze(2)).any(2).float().mean())
    assert torch.stack(shares).mean() >= 0.9
