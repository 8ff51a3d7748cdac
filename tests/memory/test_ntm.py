"""The neural Turing machine's memory against a slow twin, planted values and its invariants."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fewshot.memory.addressing import EPSILON
from fewshot.memory.cell import MemoryCell, MemoryState
from fewshot.memory.external import INITIAL_WORD
from fewshot.memory.ntm import Aim, Ntm, NtmState, ntm_step

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def slow_address(
    previous: Array, memory: Array, key: Array, strength: float, gate: float, kernel: Array, power: float
) -> Array:
    """Equations 5 to 9 for one head."""
    slots = len(memory)
    cosines = [key @ word / (math.hypot(*key, EPSILON) * math.hypot(*word, EPSILON)) for word in memory]
    content = np.array([math.exp(strength * cosine) for cosine in cosines])
    content /= content.sum()
    blend = gate * content + (1 - gate) * previous
    reach = len(kernel) // 2
    shifted = np.zeros(slots)
    for i in range(slots):
        for steps in range(-reach, reach + 1):
            shifted[i] += blend[(i - steps) % slots] * kernel[steps + reach]
    return np.array([weight**power for weight in shifted]) / sum(weight**power for weight in shifted)


def slow_step(ntm: Ntm, state: tuple[Array, Array, Array], interface: Array) -> tuple[Array, ...]:
    """One step of one episode from the raw interface: reads, memory, read weights, write weights."""
    memory, read_weights, write_weights = (part.copy() for part in state)
    readers, writers = len(read_weights), len(write_weights)
    heads, word = readers + writers, ntm.word_size
    waiting = list(interface)

    def take(*shape: int) -> Array:
        count = math.prod(shape)
        taken = np.array(waiting[:count]).reshape(shape)
        del waiting[:count]
        return taken

    read_key, add = np.tanh(take(readers, word)), np.tanh(take(writers, word))
    write_key, erase = np.tanh(take(writers, word)), sigmoid(take(writers, word))
    gate = sigmoid(take(heads))
    strength = ntm.strength_offset + softplus(take(heads))
    power = 1 + softplus(take(heads))
    kernel = np.exp(take(heads, 2 * ntm.shift_range + 1))
    kernel /= kernel.sum(-1, keepdims=True)
    assert not waiting

    def aimed(head: int, previous: Array, key: Array) -> Array:
        return slow_address(previous, memory, key, strength[head], gate[head], kernel[head], power[head])

    write_weights = np.array(
        [aimed(readers + head, write_weights[head], write_key[head]) for head in range(writers)]
    )
    slots = range(len(memory))
    for head, slot in itertools.product(range(writers), slots):
        memory[slot] = memory[slot] * (1 - write_weights[head, slot] * erase[head])
    for head, slot in itertools.product(range(writers), slots):
        memory[slot] = memory[slot] + write_weights[head, slot] * add[head]
    read_weights = np.array([aimed(head, read_weights[head], read_key[head]) for head in range(readers)])
    return read_weights @ memory, memory, read_weights, write_weights


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


DOUBLE = torch.zeros((), dtype=torch.double)
HEADS = [(1, 1), (3, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(("read_heads", "write_heads"), HEADS)
@pytest.mark.parametrize(("shift_range", "strength_offset"), [(1, 0.0), (2, 5.0)])
def test_eight_steps_equal_the_slow_twin(
    read_heads: int, write_heads: int, shift_range: int, strength_offset: float
) -> None:
    ntm = Ntm(
        num_slots=6,
        word_size=4,
        read_heads=read_heads,
        write_heads=write_heads,
        shift_range=shift_range,
        strength_offset=strength_offset,
    )
    state = ntm.start(2, DOUBLE)
    slow: list[Any] = [tuple(part[b].numpy() for part in state) for b in range(2)]
    for step in range(8):
        interface = 2 * noise(2, ntm.interface_size, seed=step)
        reads, state, read_weights, write_weights = ntm.step(state, interface)[:4]
        assert read_weights is state.read_weights
        assert write_weights is state.write_weights
        for b in range(2):
            slow_reads, *slow[b] = slow_step(ntm, slow[b], interface[b].numpy())
            np.testing.assert_allclose(reads[b].numpy(), slow_reads, atol=1e-10)
            for fast, twin in zip(state, slow[b], strict=True):
                np.testing.assert_allclose(fast[b].numpy(), twin, atol=1e-10)


def test_start() -> None:
    memory, read_weights, write_weights = Ntm(num_slots=6, word_size=3, read_heads=2, write_heads=3).start(
        2, torch.zeros(())
    )
    assert memory.shape == (2, 6, 3)
    assert memory.eq(INITIAL_WORD).all()
    assert read_weights.tolist() == [[[1, 0, 0, 0, 0, 0]] * 2] * 2
    assert write_weights.argmax(-1).tolist() == [[0, 2, 4]] * 2
    assert write_weights.sum(-1).eq(1).all()


def moving(*, key: Tensor, to: int = 1, strength: float = 0.0, gate: float = 0.0) -> Aim:
    """One head that shifts by -1, 0 or +1 (places 0, 1, 2) from where it was, unless the gate is open."""
    ones = torch.ones(1, 1, dtype=torch.double)
    kernel = torch.eye(3, dtype=torch.double)[to].view(1, 1, 3)
    return Aim(key, strength * ones, gate * ones, kernel, 2 * ones)


def at(slot: int, slots: int = 5) -> Tensor:
    return torch.eye(slots, dtype=torch.double)[slot].view(1, 1, slots)


def test_a_full_erase_leaves_what_is_added_alone() -> None:
    memory, add = noise(1, 5, 3, seed=0), noise(1, 1, 3, seed=1)
    aim = moving(key=noise(1, 1, 3, seed=2))
    for erase, old in ((1.0, 0.0), (0.0, 1.0), (0.25, 0.75)):
        access = ntm_step(
            NtmState(memory, at(0), at(3)),
            read=aim,
            write=aim,
            erase=torch.full((1, 1, 3), erase, dtype=torch.double),
            add=add,
        )
        after = access.state.memory[0]
        torch.testing.assert_close(after[3], old * memory[0, 3] + add[0, 0])
        others = [0, 1, 2, 4]
        torch.testing.assert_close(after[others], memory[0, others])
        assert access.kept is not None
        assert access.kept.tolist() == [pytest.approx([1, 1, 1, old, 1])]


def test_what_was_kept_is_a_mean_over_the_word_of_what_all_heads_left() -> None:
    memory, apart = noise(1, 5, 2, seed=0), torch.cat([at(1), at(1)], dim=1)
    one = moving(key=noise(1, 1, 2, seed=1))
    both = Aim(*(torch.cat([part, part], dim=1) for part in one))
    erase = torch.tensor([[[1.0, 0.5], [0.0, 0.5]]], dtype=torch.double)
    access = ntm_step(NtmState(memory, at(0), apart), read=one, write=both, erase=erase, add=0 * erase)
    torch.testing.assert_close(access.state.memory[0, 1, 1], memory[0, 1, 1] / 4)
    assert access.kept is not None
    assert access.kept.tolist() == [pytest.approx([1, (0 + 1 / 4) / 2, 1, 1, 1])]


def test_a_write_head_goes_on_around_the_ring_and_a_read_head_finds_what_was_just_written() -> None:
    words = noise(7, 1, 1, 3, seed=0).tanh()
    state = NtmState(torch.full((1, 5, 3), INITIAL_WORD, dtype=torch.double), at(0), at(0))
    for step, word in enumerate(words):
        reads, state = ntm_step(
            state,
            read=moving(key=word, strength=1000.0, gate=1.0),
            write=moving(key=word, to=2),
            erase=torch.ones(1, 1, 3, dtype=torch.double),
            add=word,
        )[:2]
        assert state.write_weights.argmax().item() == (step + 1) % 5
        torch.testing.assert_close(reads, word)
    torch.testing.assert_close(state.memory[0], words[[4, 5, 6, 2, 3], 0, 0])


def test_a_write_head_finds_its_place_before_anything_is_written() -> None:
    """With its gate open it goes where the key was already, though what it adds would suit the key better."""
    memory = torch.eye(3, dtype=torch.double).unsqueeze(0)
    after = ntm_step(
        NtmState(memory, at(0, 3), at(0, 3)),
        read=moving(key=memory[:, :1]),
        write=moving(key=memory[:, 1:2], strength=1000.0, gate=1.0),
        erase=torch.zeros(1, 1, 3, dtype=torch.double),
        add=-2 * memory[:, 1:2],
    )
    assert after.write_weights.argmax().item() == 1
    torch.testing.assert_close(after.state.memory[0, 1], -memory[0, 1])


@given(
    heads=st.sampled_from(HEADS),
    slots=st.integers(1, 9),
    scale=st.sampled_from([0.1, 3.0, 50.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_weights_sum_to_one_and_all_stays_finite(
    heads: tuple[int, int], slots: int, scale: float, seed: int
) -> None:
    readers, writers = heads
    ntm = Ntm(num_slots=slots, word_size=3, read_heads=readers, write_heads=writers, strength_offset=5.0)
    state = ntm.start(2, torch.zeros(()))
    interfaces = (scale * noise(4, 2, ntm.interface_size, seed=seed)).float().requires_grad_()
    for interface in interfaces:
        reads, state = ntm.step(state, interface)[:2]
        for weights in (state.read_weights, state.write_weights):
            assert (weights >= 0).all()
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        # Nothing leaves the range that adding within -1 and 1 can reach: a word is kept or shrinks before.
        assert state.memory.abs().max() <= 4 * writers + 1e-3
    reads.sum().backward()
    assert interfaces.grad is not None
    assert interfaces.grad.isfinite().all()


def test_the_state_that_went_in_is_left_as_it_was() -> None:
    ntm = Ntm(num_slots=5, word_size=3, read_heads=2, write_heads=2)
    state = ntm.start(2, DOUBLE)
    copies = [part.clone() for part in state]
    ntm.step(state, noise(2, ntm.interface_size, seed=0))
    assert all(torch.equal(part, copy) for part, copy in zip(state, copies, strict=True))


@pytest.mark.parametrize(("read_heads", "write_heads"), [(2, 1), (1, 2)])
def test_gradient(read_heads: int, write_heads: int) -> None:
    ntm = Ntm(num_slots=5, word_size=2, read_heads=read_heads, write_heads=write_heads, strength_offset=1.0)
    state = [
        noise(1, 5, 2, seed=0),
        noise(1, read_heads, 5, seed=1).softmax(-1),
        noise(1, write_heads, 5, seed=2).softmax(-1),
    ]

    def two_steps(interface: Tensor, *state: Tensor) -> Any:
        access = ntm.step(NtmState(*state), interface[:1])
        access = ntm.step(access.state, interface[1:])
        return access.reads, *access.state

    leaves = (noise(2, ntm.interface_size, seed=3), *state)
    assert torch.autograd.gradcheck(two_steps, tuple(leaf.requires_grad_() for leaf in leaves))


# --- In its cell --------------------------------------------------------------------------------------------


def small_cell(ntm: Ntm, hidden_size: int = 6) -> MemoryCell:
    torch.manual_seed(0)
    cell = MemoryCell(4, 5, controller="lstm", hidden_size=hidden_size, memory=ntm, tie=True)
    return cell.double()


def test_heads_start_in_their_roles() -> None:
    """With the controller silenced, write heads go on, each from its place, and read heads go by content."""
    ntm = Ntm(num_slots=8, word_size=3, read_heads=2, write_heads=2, shift_range=2, role_bias=20.0)
    cell = small_cell(ntm)
    with torch.no_grad():
        cell.interface.weight.zero_()
    inputs, labels = noise(1, 3, 4, seed=1), torch.zeros(1, 3, 5, dtype=torch.double)
    _, accesses, _ = cell.step_by_step(cell.start(1), inputs, labels)
    for step, access in enumerate(accesses, start=1):
        assert access.write_weights[0].argmax(-1).tolist() == [step, 4 + step]
        assert access.write_weights.amax(-1).min() > 0.999


def test_without_a_role_the_controls_start_alike_for_all_heads() -> None:
    first = Ntm(num_slots=8, word_size=3, read_heads=2, write_heads=1).first_controls()
    assert first.nan_to_num(0).eq(0).all()
    given = Ntm(num_slots=8, word_size=3, read_heads=1, write_heads=1, role_bias=3.0).first_controls()
    drawn = [math.nan] * 3
    expected = [*drawn, *drawn, 3, -3, *[math.nan] * 4, 0, 3, 0, 0, 0, 3]  # keys, erase, gates, ..., shifts
    torch.testing.assert_close(given, torch.tensor(expected), equal_nan=True)


def test_a_sequence_in_pieces_gives_what_it_gives_whole() -> None:
    cell = small_cell(Ntm(num_slots=6, word_size=3, read_heads=3, write_heads=2, role_bias=1.0))
    inputs, labels = noise(3, 8, 4, seed=1), noise(3, 8, 5, seed=2)
    whole, last = cell(cell.start(3), inputs, labels)
    state: MemoryState = cell.start(3)
    pieces = []
    for part in (slice(0, 1), slice(1, 5), slice(5, 8)):
        outputs, state = cell(state, inputs[:, part], labels[:, part])
        pieces.append(outputs)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


def test_tied_an_image_is_looked_up_with_what_it_is_stored_under() -> None:
    """With the controller silenced, an image seen again is found where the write head left it."""
    ntm = Ntm(num_slots=8, word_size=16, read_heads=2, write_heads=1, strength_offset=300.0, role_bias=20.0)
    cell = small_cell(ntm)
    assert cell.content is not None
    assert cell.label_content is not None
    with torch.no_grad():
        cell.interface.weight.zero_()
        cell.interface.bias[: ntm.vector_size].zero_()
        cell.label_content.weight.zero_()
    images = noise(1, 3, 4, seed=3)
    _, state = cell(cell.start(1), images[:, [0, 1, 2, 0]], torch.zeros(1, 4, 5, dtype=torch.double))
    stored = torch.tanh(cell.content(images[:, 0]))
    for head in range(2):
        torch.testing.assert_close(state.reads[:, head], stored, atol=1e-3, rtol=0)
