"""One step of least recently used access against a slow twin, planted values and its invariants."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.memory.addressing import EPSILON
from fewshot.memory.lrua import (
    INITIAL_WORD,
    LeastUsed,
    Lrua,
    LruaState,
    Order,
    initial_state,
    least_used_mask,
    least_used_slots,
    lrua_step,
)

Array = NDArray[np.float64]
MODES: tuple[LeastUsed, ...] = ("shared", "per_head")
ORDERS: tuple[Order, ...] = ("write_first", "address_first")


def slow_step(
    memory: Array,
    read_weights: Array,
    usage: Array,
    *,
    key: Array,
    add: Array,
    gate: Array,
    strength: Array | None,
    decay: float,
    mode: str,
    order: str,
) -> tuple[Array, Array, Array, Array]:
    """Equations 2 to 8 for one episode, one number at a time: reads, memory, read weights, usage."""
    slots, words = memory.shape
    heads = len(key)
    least_used = sorted(range(slots), key=lambda slot: (usage[slot], slot))[:heads]
    write_weights = np.zeros((heads, slots))
    for head in range(heads):
        for slot in range(slots):
            chosen = slot in least_used if mode == "shared" else slot == least_used[head]
            write_weights[head, slot] = gate[head] * read_weights[head, slot] + (1 - gate[head]) * chosen
    new_memory = memory.copy()
    for word in range(words):
        new_memory[least_used[0], word] = 0.0
    for head in range(heads):
        for slot in range(slots):
            for word in range(words):
                new_memory[slot, word] += write_weights[head, slot] * add[head, word]
    looked_into = memory if order == "address_first" else new_memory
    new_read_weights = np.zeros((heads, slots))
    reads = np.zeros((heads, words))
    for head in range(heads):
        scores = []
        for slot in range(slots):
            lengths = math.hypot(*key[head], EPSILON) * math.hypot(*looked_into[slot], EPSILON)
            cosine = (key[head] @ looked_into[slot]) / lengths
            scores.append(math.exp(cosine * (1.0 if strength is None else strength[head])))
        for slot in range(slots):
            new_read_weights[head, slot] = scores[slot] / sum(scores)
            reads[head] += new_read_weights[head, slot] * new_memory[slot]
    new_usage = np.array(
        [
            decay * usage[slot]
            + sum(new_read_weights[head, slot] + write_weights[head, slot] for head in range(heads))
            for slot in range(slots)
        ]
    )
    return reads, new_memory, new_read_weights, new_usage


def random_inputs(batch: int, heads: int, word: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "key": torch.randn(batch, heads, word, dtype=torch.double, generator=generator).tanh(),
        "add": torch.randn(batch, heads, word, dtype=torch.double, generator=generator).tanh(),
        "write_gate": torch.rand(batch, heads, dtype=torch.double, generator=generator),
        "strength": 1 + 9 * torch.rand(batch, heads, dtype=torch.double, generator=generator),
    }


def empty(batch: int, slots: int, word: int, heads: int) -> LruaState:
    like = torch.zeros((), dtype=torch.double)
    return initial_state(batch, num_slots=slots, word_size=word, read_heads=heads, like=like)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("with_strength", [False, True])
def test_ten_steps_equal_the_slow_twin(mode: LeastUsed, order: Order, with_strength: bool) -> None:
    batch, slots, word, heads = 2, 6, 5, 3  # 10 x 3 writes into 6 slots: the memory overflows
    state = empty(batch, slots, word, heads)
    slow: list[tuple[Array, Array, Array]] = [
        (state.memory[b].numpy(), state.read_weights[b].numpy(), state.usage[b].numpy()) for b in range(batch)
    ]
    for step in range(10):
        inputs = random_inputs(batch, heads, word, seed=step)
        strength = inputs.pop("strength") if with_strength else None
        inputs.pop("strength", None)
        reads, state = lrua_step(
            state, **inputs, strength=strength, usage_decay=0.9, least_used=mode, order=order
        )[:2]
        for b in range(batch):
            slow_reads, *slow_state = slow_step(
                *slow[b],
                key=inputs["key"][b].numpy(),
                add=inputs["add"][b].numpy(),
                gate=inputs["write_gate"][b].numpy(),
                strength=None if strength is None else strength[b].numpy(),
                decay=0.9,
                mode=mode,
                order=order,
            )
            slow[b] = (slow_state[0], slow_state[1], slow_state[2])
            np.testing.assert_allclose(reads[b].numpy(), slow_reads, atol=1e-10)
            for fast, twin in zip(state, slow[b], strict=True):
                np.testing.assert_allclose(fast[b].numpy(), twin, atol=1e-10)


def test_initial_state() -> None:
    state = initial_state(2, num_slots=5, word_size=3, read_heads=4)
    assert state.memory.eq(INITIAL_WORD).all()
    assert state.read_weights.tolist() == [[[1, 0, 0, 0, 0]] * 4] * 2
    assert state.usage.tolist() == [[1, 0, 0, 0, 0]] * 2


def test_ties_in_usage_go_to_the_lower_slot() -> None:
    usage = torch.zeros(1, 128)
    usage[0, 0] = 1
    assert least_used_slots(usage, 4).tolist() == [[1, 2, 3, 4]]
    assert least_used_slots(torch.tensor([[2.0, 1.0, 1.0, 0.5]]), 3).tolist() == [[3, 1, 2]]


def test_shared_mask_has_n_ones_and_per_head_masks_one_each() -> None:
    slots = least_used_slots(torch.rand(3, 10, generator=torch.Generator().manual_seed(0)), 4)
    shared = least_used_mask(slots, 10, "shared")
    apart = least_used_mask(slots, 10, "per_head")
    assert shared.shape == (3, 1, 10)
    assert shared.sum(-1).tolist() == [[4]] * 3
    assert apart.argmax(-1).tolist() == slots.tolist()
    assert torch.equal(apart.sum(1, keepdim=True), shared)


def write(mode: LeastUsed, gate: float, state: LruaState, add: Tensor) -> LruaState:
    heads = add.shape[1]
    return lrua_step(
        state, key=add, add=add, write_gate=torch.full((1, heads), gate).double(), least_used=mode
    )[1]


def test_a_closed_gate_writes_each_heads_vector_whole_into_its_own_slot() -> None:
    add = torch.eye(2, 4, dtype=torch.double).unsqueeze(0)
    memory = write("per_head", 0.0, empty(1, 5, 4, 2), add).memory[0]
    # Slot 1 is the least used: emptied first. Slot 2 keeps its initial filling under what is added.
    torch.testing.assert_close(memory[1], add[0, 0])
    torch.testing.assert_close(memory[2], add[0, 1] + INITIAL_WORD)
    assert memory[[0, 3, 4]].eq(INITIAL_WORD).all()


def test_shared_slots_receive_the_same_blend() -> None:
    add = torch.eye(2, 4, dtype=torch.double).unsqueeze(0)
    memory = write("shared", 0.0, empty(1, 5, 4, 2), add).memory[0]
    torch.testing.assert_close(memory[1], add[0].sum(0))
    torch.testing.assert_close(memory[2], add[0].sum(0) + INITIAL_WORD)


def test_an_open_gate_writes_where_was_read_last() -> None:
    add = torch.ones(1, 2, 4, dtype=torch.double)
    memory = write("shared", 1.0, empty(1, 5, 4, 2), add).memory[0]
    torch.testing.assert_close(memory[0], torch.full((4,), 2 + INITIAL_WORD, dtype=torch.double))
    assert memory[1].eq(0).all()  # emptied, though nothing came instead
    assert memory[2:].eq(INITIAL_WORD).all()


def test_a_step_reads_what_it_has_just_written() -> None:
    add = torch.tensor([[[0.5, -0.5, 0.5, -0.5]]], dtype=torch.double)
    reads, state = lrua_step(
        empty(1, 8, 4, 1),
        key=add,
        add=add,
        write_gate=torch.zeros(1, 1, dtype=torch.double),
        strength=torch.full((1, 1), 50.0, dtype=torch.double),
    )[:2]
    assert state.read_weights[0, 0, 1] > 0.999
    torch.testing.assert_close(reads, add, atol=1e-3, rtol=0)


def test_addressed_first_what_is_stored_is_found_a_step_later() -> None:
    add = torch.tensor([[[0.5, -0.5, 0.5, -0.5]]], dtype=torch.double)
    state, found = empty(1, 8, 4, 1), []
    for _ in range(2):
        reads, state = lrua_step(
            state,
            key=add,
            add=add,
            write_gate=torch.zeros(1, 1, dtype=torch.double),
            strength=torch.full((1, 1), 50.0, dtype=torch.double),
            order="address_first",
        )[:2]
        found.append((state.read_weights[0, 0, 1].item(), reads))
    # Into an empty memory all slots look alike; but what is read there has been written.
    assert found[0][0] == pytest.approx(1 / 8)
    torch.testing.assert_close(found[0][1], add / 8, atol=1e-5, rtol=0)
    assert found[1][0] > 0.999
    torch.testing.assert_close(found[1][1], add, atol=1e-3, rtol=0)


def test_weights_keep_their_sums_and_usage_gains_what_was_read_and_written() -> None:
    state = empty(2, 16, 4, 3)
    for step in range(20):
        before = state.usage.sum(-1)
        state = lrua_step(
            state, **random_inputs(2, 3, 4, step), usage_decay=0.95, least_used="per_head"
        ).state
        torch.testing.assert_close(state.read_weights.sum(-1), torch.ones(2, 3, dtype=torch.double))
        # Each of three heads reads with a total weight of 1 and writes with a total weight of 1.
        torch.testing.assert_close(state.usage.sum(-1), 0.95 * before + 6)


def test_the_state_that_went_in_is_left_as_it_was() -> None:
    state = empty(1, 6, 4, 2)
    copies = [tensor.clone() for tensor in state]
    lrua_step(state, **random_inputs(1, 2, 4, 0))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(state, copies, strict=True))


def test_usage_passes_no_gradient() -> None:
    state = empty(1, 6, 4, 2)
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs(1, 2, 4, 0).items()}
    after = lrua_step(state, **inputs).state
    assert after.memory.requires_grad
    assert not after.usage.requires_grad


@pytest.mark.parametrize(
    ("mode", "order", "with_strength"),
    [
        ("shared", "write_first", False),
        ("per_head", "write_first", True),
        ("shared", "address_first", True),
        ("per_head", "address_first", False),
    ],
)
def test_gradient(mode: LeastUsed, order: Order, with_strength: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn(2, 6, 4, dtype=torch.double, generator=generator)
    read_weights = torch.rand(2, 2, 6, dtype=torch.double, generator=generator).softmax(-1)
    usage = torch.rand(2, 6, dtype=torch.double, generator=generator)
    inputs = random_inputs(2, 2, 4, 0)
    if not with_strength:
        del inputs["strength"]
    names = list(inputs)

    def step(memory: Tensor, read_weights: Tensor, *tensors: Tensor) -> Any:
        keywords: Any = dict(zip(names, tensors, strict=True))
        start = LruaState(memory, read_weights, usage)
        reads, state = lrua_step(start, **keywords, least_used=mode, order=order)[:2]
        return reads, state.memory, state.read_weights

    leaves = tuple(tensor.requires_grad_() for tensor in (memory, read_weights, *inputs.values()))
    assert torch.autograd.gradcheck(step, leaves)


def test_too_few_slots_are_one_line() -> None:
    with pytest.raises(LearnerError, match=r"^num_slots must be at least read_heads, .* got 3 and 4$"):
        Lrua(num_slots=3, read_heads=4)
