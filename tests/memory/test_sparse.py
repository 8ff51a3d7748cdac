"""One step of sparse access against a slow twin, planted values and its invariants; gradients."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.memory.addressing import EPSILON, content_weights
from fewshot.memory.attribution import read_amounts, touched_slots, visits
from fewshot.memory.cell import MemoryCell
from fewshot.memory.external import INITIAL_WORD
from fewshot.memory.sparse import Sparse, SparseState
from fewshot.memory.store import OwnStore

Array = NDArray[np.float64]
LIKE = torch.zeros((), dtype=torch.double)


def build(slots: int = 7, word: int = 5, heads: int = 2, k: int = 3, **options: Any) -> Sparse:
    return Sparse(OwnStore(slots), word_size=word, read_heads=heads, slots_per_head=k, **options)


def interface(memory: Sparse, batch: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, memory.interface_size, dtype=torch.double, generator=generator)


def random_state(memory: Sparse, batch: int) -> SparseState:
    """In the middle of an episode: words, weights and usage of which no two are alike."""
    generator = torch.Generator().manual_seed(0)
    state = memory.start(batch, LIKE)
    shape = state.held.words.shape
    heads, k = memory.read_heads, memory.slots_per_head
    order = torch.rand(batch, heads, memory.num_slots, generator=generator).argsort(-1)
    return SparseState(
        held=state.held._replace(
            words=torch.randn(shape, dtype=torch.double, generator=generator),
            usage=torch.rand(shape[:2], generator=generator).argsort(1).double(),
        ),
        read_rows=order[..., :k],
        read_weights=torch.randn(batch, heads, k, dtype=torch.double, generator=generator).softmax(-1),
        steps=torch.full((batch, 1), 20.0, dtype=torch.double),
    )


class SlowTwin:
    """Equations 4 to 6 for one episode, in loops: dense weights over all slots, most of them zero."""

    def __init__(self, memory: Sparse) -> None:
        self.heads, self.k, self.delta = memory.read_heads, memory.slots_per_head, memory.access_threshold
        self.offset = memory.strength_offset
        self.memory = np.full((memory.num_slots, memory.word_size), INITIAL_WORD)
        self.read_weights = np.zeros((self.heads, memory.num_slots))
        self.last_access = [0] * memory.num_slots
        self.now = 0

    def step(self, interface: Array) -> tuple[Array, Array]:
        """Reads, (head, word), and write weights, (head, slot)."""
        slots, word = self.memory.shape
        words = self.heads * word
        keys = np.tanh(interface[:words]).reshape(self.heads, word)
        adds = np.tanh(interface[words : 2 * words]).reshape(self.heads, word)
        controls = interface[2 * words :].reshape(3, self.heads)
        alpha, gamma = 1 / (1 + np.exp(-controls[0])), 1 / (1 + np.exp(-controls[1]))
        strength = self.offset + np.log1p(np.exp(controls[2]))

        self.now += 1
        oldest = sorted(range(slots), key=lambda slot: (self.last_access[slot], slot))[: self.heads]
        write_weights = np.zeros((self.heads, slots))
        for head in range(self.heads):
            for slot in range(slots):
                indicator = 1.0 if slot == oldest[head] else 0.0
                blend = gamma[head] * self.read_weights[head, slot] + (1 - gamma[head]) * indicator
                write_weights[head, slot] = alpha[head] * blend
        for slot in oldest:
            self.memory[slot] = 0.0
        for head in range(self.heads):
            for slot in range(slots):
                self.memory[slot] += write_weights[head, slot] * adds[head]

        reads = np.zeros((self.heads, word))
        self.read_weights = np.zeros((self.heads, slots))
        for head in range(self.heads):
            cosines = []
            for slot in range(slots):
                lengths = math.hypot(*keys[head], EPSILON) * math.hypot(*self.memory[slot], EPSILON)
                cosines.append(float(keys[head] @ self.memory[slot]) / lengths)
            empty = (self.memory == INITIAL_WORD).all(axis=1)
            order = sorted(range(slots), key=lambda slot: 0.0 if empty[slot] else -2 - cosines[slot])
            chosen = order[: self.k]
            total = sum(math.exp(strength[head] * cosines[slot]) for slot in chosen)
            for slot in chosen:
                self.read_weights[head, slot] = math.exp(strength[head] * cosines[slot]) / total
                reads[head] += self.read_weights[head, slot] * self.memory[slot]

        for slot in range(slots):
            if self.read_weights[:, slot].sum() + write_weights[:, slot].sum() > self.delta:
                self.last_access[slot] = self.now
        return reads, write_weights


def dense(weights: Tensor, slots: Tensor, num_slots: int) -> Tensor:
    """Weights of some slots, (batch, head, any), as weights of all."""
    return weights.new_zeros(*weights.shape[:2], num_slots).scatter_add(2, slots, weights)


@pytest.mark.parametrize("threshold", [0.005, 0.3])
def test_twelve_steps_equal_the_slow_twin(threshold: float) -> None:
    memory = build(access_threshold=threshold)  # 12 x 2 writes into 7 slots: the memory overflows
    state, twins = memory.start(2, LIKE), [SlowTwin(memory), SlowTwin(memory)]
    for step in range(12):
        given = interface(memory, 2, step)
        access = memory.step(state, given)
        state = access.state
        assert access.usage is not None
        assert access.read_slots is not None
        assert access.write_slots is not None
        for b, twin in enumerate(twins):
            reads, write_weights = twin.step(given[b].numpy())
            np.testing.assert_allclose(access.reads[b].numpy(), reads, atol=1e-10)
            np.testing.assert_allclose(state.held.words[b].numpy(), twin.memory, atol=1e-10)
            assert access.usage[b].tolist() == twin.last_access
            read = dense(access.read_weights, access.read_slots, 7)[b].numpy()
            np.testing.assert_allclose(read, twin.read_weights, atol=1e-10)
            written = dense(access.write_weights, access.write_slots, 7)[b].numpy()
            np.testing.assert_allclose(written, write_weights, atol=1e-10)


def test_with_as_many_slots_as_there_are_it_reads_like_dense_content_addressing() -> None:
    memory = build(slots=6, k=6)
    access = memory.step(random_state(memory, 3), given := interface(memory, 3, 0))
    keys, _, controls = memory.split(given)
    strength = 5 + torch.nn.functional.softplus(controls[:, 4:])
    words = access.state.held.words
    weights = content_weights(keys.tanh(), words, strength)
    torch.testing.assert_close(access.reads, weights @ words)
    assert access.read_slots is not None
    torch.testing.assert_close(dense(access.read_weights, access.read_slots, 6), weights)


def test_each_head_writes_to_a_slot_that_was_not_used_for_longest() -> None:
    memory = build(slots=8, k=2)
    state = random_state(memory, 1)
    usage = torch.tensor([[9.0, 3, 9, 9, 1, 9, 9, 9]], dtype=torch.double)
    state = state._replace(held=state.held._replace(usage=usage))
    given = torch.zeros(1, memory.interface_size, dtype=torch.double)
    given[:, 10:20], given[:, 20:22], given[:, 22:24] = 1, 40, -40  # write whole, and nothing where was read
    access = memory.step(state, given)
    assert access.write_slots is not None
    assert access.write_slots[0, :, -1].tolist() == [4, 1]
    words = access.state.held.words[0]
    torch.testing.assert_close(words[[4, 1]], torch.full((2, 5), math.tanh(1), dtype=torch.double))
    others = [0, 2, 3, 5, 6, 7]
    torch.testing.assert_close(words[others], state.held.words[0, others])
    assert access.usage is not None
    assert access.usage[0, [4, 1]].tolist() == [21, 21]


def test_a_slot_that_is_barely_read_does_not_count_as_used() -> None:
    memory = build(slots=4, word=2, heads=1, k=2)
    state = memory.start(1, LIKE)
    words = torch.tensor([[[9.0, 9], [1, 0], [-1, 0], [-1, -9]]], dtype=torch.double)
    state = state._replace(held=state.held._replace(words=words))
    given = torch.zeros(1, memory.interface_size, dtype=torch.double)
    given[:, 0], given[:, 4] = 1, -40  # looks for slot 1, and writes nothing; slot 0 is emptied
    access = memory.step(state, given)
    assert access.read_slots is not None
    assert access.usage is not None
    assert access.read_slots.tolist() == [[[1, 0]]]
    assert 0 < access.read_weights[0, 0, 1] < 0.005
    assert access.usage.tolist() == [[0, 1, 0, 0]]


def test_empty_slots_are_read_last_the_lower_ones_first() -> None:
    memory = build(slots=9, word=2, heads=1, k=4)
    given = torch.zeros(1, memory.interface_size, dtype=torch.double)
    given[:, 0], given[:, 2] = 1, -1  # what it writes points away from where it looks
    access = memory.step(memory.start(1, LIKE), given)
    assert access.read_slots is not None
    assert access.read_slots.tolist() == [[[0, 1, 2, 3]]]


def test_gradients_reach_the_rows_read_and_written_and_no_others() -> None:
    memory = build(slots=9, k=2)
    state = random_state(memory, 1)
    words = state.held.words.clone().requires_grad_()
    access = memory.step(state._replace(held=state.held._replace(words=words)), interface(memory, 1, 0))
    access.reads.square().sum().backward()
    assert words.grad is not None
    assert access.read_slots is not None
    assert access.write_slots is not None
    kept = set(access.read_slots.unique().tolist()) - set(access.write_slots[0, :, -1].tolist())
    assert set(words.grad[0].abs().sum(-1).nonzero().flatten().tolist()) == kept
    assert 1 < len(kept) <= 4
    assert not access.state.held.usage.requires_grad


def test_gradient() -> None:
    memory = build()
    state = random_state(memory, 2)

    def step(interface: Tensor, words: Tensor, read_weights: Tensor) -> tuple[Tensor, ...]:
        held = state.held._replace(words=words)
        access = memory.step(state._replace(held=held, read_weights=read_weights), interface)
        return access.reads, access.read_weights, access.write_weights, access.state.held.words

    inputs = (interface(memory, 2, 3), state.held.words, state.read_weights)
    assert torch.autograd.gradcheck(step, tuple(part.clone().requires_grad_() for part in inputs))


def test_the_state_that_went_in_is_left_as_it_was() -> None:
    memory = build()
    state = random_state(memory, 2)
    parts = [*state.held, state.read_rows, state.read_weights, state.steps]
    copies = [part.clone() for part in parts]
    memory.step(state, interface(memory, 2, 0))
    assert all(torch.equal(part, copy) for part, copy in zip(parts, copies, strict=True))


@pytest.mark.parametrize("kind", ["lstm", "gru", "feedforward"])
def test_a_cell_runs_it_in_one_piece_or_in_two(kind: Any) -> None:
    torch.manual_seed(0)
    cell = MemoryCell(4, 5, controller=kind, hidden_size=6, memory=build(), tie=True).double()
    inputs, labels = torch.randn(2, 6, 4, dtype=torch.double), torch.zeros(2, 6, 5, dtype=torch.double)
    whole, _ = cell(cell.start(2), inputs, labels)
    first, state = cell(cell.start(2), inputs[:, :2], labels[:, :2])
    second, _ = cell(state, inputs[:, 2:], labels[:, 2:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_the_write_gates_start_where_asked() -> None:
    cell = MemoryCell(4, 5, controller="lstm", hidden_size=6, memory=build(gate_bias=2.0), tie=True)
    assert cell.interface.bias[20:22].tolist() == [2, 2]
    assert not cell.interface.bias.isnan().any()


def test_too_few_slots_are_one_line() -> None:
    with pytest.raises(LearnerError, match=r"^num_slots must be at least .*; got 3, 2 and 4$"):
        build(slots=3, k=4)


def test_what_is_read_is_what_was_written_in_the_amounts_that_attribution_finds() -> None:
    """Where all heads write one vector: exact, as an access says what it emptied."""
    memory = build(slots=6, k=2)
    state = memory.start(1, LIKE)
    state = state._replace(held=state.held._replace(words=torch.zeros_like(state.held.words)))
    accesses, written = [], []
    for step in range(8):
        given = interface(memory, 1, step)
        given[:, 15:20] = given[:, 10:15]
        access = memory.step(state, given)
        state = access.state
        accesses.append(access)
        written.append(given[0, 10:15].tanh())
    found = read_amounts(visits(accesses, touched_slots(accesses)))[0]
    reads = torch.stack([access.reads[0].sum(0) for access in accesses])
    torch.testing.assert_close(found @ torch.stack(written), reads)
