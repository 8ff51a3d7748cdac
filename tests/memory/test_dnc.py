"""The differentiable neural computer's memory against a slow twin, planted requests and its invariants."""

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
from fewshot.memory.dnc import Dnc, DncState
from fewshot.memory.links import EPSILON as NO_LINK

Array = NDArray[np.float64]
SLOTS, WORD, HEADS = 6, 4, 2


def small(**options: Any) -> Dnc:
    return Dnc(num_slots=SLOTS, word_size=WORD, read_heads=HEADS, **options)


def every_option(function: Any) -> Any:
    """The paper's memory, each correction alone, all together, and what is left without links."""
    none = {"masked": False, "erase_on_free": False, "sharp_links": False}
    cases = [none, *(none | {name: True} for name in none), {}, {"links": False}, none | {"links": False}]
    named = ["paper", *none, "corrected", "no_links", "paper_no_links"]
    return pytest.mark.parametrize("options", cases, ids=named)(function)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(x))


def slow_content(key: Array, memory: Array, strength: float, mask: Array) -> Array:
    """C(M, k, beta) of one head, with key and slots masked before they are compared."""
    scores = []
    for words in memory:
        dot = sum(key[w] * mask[w] * words[w] * mask[w] for w in range(WORD))
        scores.append(
            strength * dot / (math.hypot(*(key * mask), EPSILON) * math.hypot(*(words * mask), EPSILON))
        )
    powers = np.exp(np.array(scores))
    return powers / powers.sum()


def slow_step(memory_kind: Dnc, state: list[Array], interface: Array) -> tuple[Array, list[Array]]:
    """One step of one episode from its raw interface, in the paper's order: reads and the state after it."""
    memory, usage, read_weights, write_weights, precedence, links = (part.copy() for part in state)
    numbers = iter(interface)

    def take(*shape: int) -> Array:
        return np.array([next(numbers) for _ in range(math.prod(shape))]).reshape(shape)

    read_keys, write_vector, write_key = np.tanh(take(HEADS, WORD)), np.tanh(take(WORD)), np.tanh(take(WORD))
    erase = sigmoid(take(WORD))
    read_masks, write_mask = np.ones((HEADS, WORD)), np.ones(WORD)
    if memory_kind.options.masked:
        read_masks, write_mask = sigmoid(take(HEADS, WORD)), sigmoid(take(WORD))
    free_gates, allocation_gate, write_gate = sigmoid(take(HEADS)), sigmoid(take(1))[0], sigmoid(take(1))[0]
    strengths = memory_kind.options.strength_offset + softplus(take(HEADS + 1))
    sharpness = 1 + softplus(take(2, HEADS)) if memory_kind.options.sharp_links else None
    modes = np.exp(take(HEADS, 3)) if memory_kind.options.links else np.zeros((0, 3))
    assert not list(numbers)

    retained = np.array([math.prod(1 - free_gates * read_weights[:, i]) for i in range(SLOTS)])
    usage = (usage + write_weights - usage * write_weights) * retained
    free_list = sorted(range(SLOTS), key=lambda slot: (usage[slot], slot))
    allocation = np.zeros(SLOTS)
    for place, slot in enumerate(free_list):
        allocation[slot] = (1 - usage[slot]) * math.prod(usage[earlier] for earlier in free_list[:place])
    content = slow_content(write_key, memory, strengths[HEADS], write_mask)
    write_weights = write_gate * (allocation_gate * allocation + (1 - allocation_gate) * content)
    for slot, w in itertools.product(range(SLOTS), range(WORD)):
        if memory_kind.options.erase_on_free:
            memory[slot, w] *= retained[slot]
        memory[slot, w] *= 1 - write_weights[slot] * erase[w]
        memory[slot, w] += write_weights[slot] * write_vector[w]

    if memory_kind.options.links:
        for i, j in itertools.product(range(SLOTS), repeat=2):
            links[i, j] *= 1 - write_weights[i] - write_weights[j]
            links[i, j] += write_weights[i] * precedence[j]
            links[i, j] *= i != j
        precedence = (1 - write_weights.sum()) * precedence + write_weights
    reads = np.zeros((HEADS, WORD))
    before = read_weights.copy()
    for head in range(HEADS):
        read_weights[head] = slow_content(read_keys[head], memory, strengths[head], read_masks[head])
        if memory_kind.options.links:
            ways = [before[head] @ links, read_weights[head], links @ before[head]]
            if sharpness is not None:
                for way, power in ((0, sharpness[0, head]), (2, sharpness[1, head])):
                    ways[way] = (ways[way] + NO_LINK) ** power
                    ways[way] /= ways[way].sum()
            shares = modes[head] / modes[head].sum()
            read_weights[head] = sum(share * way for share, way in zip(shares, ways, strict=True))
        for slot in range(SLOTS):
            reads[head] += read_weights[head, slot] * memory[slot]
    return reads, [memory, usage, read_weights, write_weights, precedence, links]


@every_option
def test_eight_steps_equal_the_slow_twin(options: dict[str, Any]) -> None:
    """More than there are slots, so that what was written is found, freed and written over."""
    memory_kind = small(**options)
    generator = torch.Generator().manual_seed(0)
    state = memory_kind.start(2, torch.zeros((), dtype=torch.double))
    slow = [[part[b].numpy() for part in state] for b in range(2)]
    for _ in range(8):
        interface = 2 * torch.randn(2, memory_kind.interface_size, dtype=torch.double, generator=generator)
        access = memory_kind.step(state, interface)
        state = access.state
        for b in range(2):
            reads, slow[b] = slow_step(memory_kind, slow[b], interface[b].numpy())
            np.testing.assert_allclose(access.reads[b], reads, atol=1e-10)
            for part, expected in zip(state, slow[b], strict=True):
                np.testing.assert_allclose(part[b], expected, atol=1e-10)
            np.testing.assert_allclose(access.read_weights[b], slow[b][2], atol=1e-10)
            np.testing.assert_allclose(access.write_weights[b, 0], slow[b][3], atol=1e-10)
            np.testing.assert_allclose(access.usage[b], slow[b][1], atol=1e-10)


def requested(memory_kind: Dnc, vector: Tensor, **asked: float) -> Tensor:
    """A raw interface that writes `vector`, keys included, with gates and modes so far open or shut."""
    interface = torch.zeros(1, memory_kind.interface_size)
    interface[0, : (HEADS + 2) * WORD] = vector.repeat(HEADS + 2)
    gates = interface[0, (HEADS + 2) * WORD :]
    gates[:WORD] = 50.0  # erase
    places = {"free": slice(-HEADS - 2, -2), "allocate": -2, "write": -1}
    end = WORD * (1 + memory_kind.options.masked * (HEADS + 1)) + HEADS + 2
    for name, value in asked.items():
        gates[:end][places[name]] = value
    return interface


def test_a_freed_slot_is_erased_or_stays_to_be_found() -> None:
    """Written with all gates open, found, then freed while nothing is written."""
    vector = torch.tensor([1.0, -1.0, 0.5, 2.0])
    for erase_on_free in (True, False):
        memory_kind = small(erase_on_free=erase_on_free, links=False, strength_offset=50.0, masked=False)
        written = requested(memory_kind, vector, free=-50.0, allocate=50.0, write=50.0)
        access = memory_kind.step(memory_kind.start(1, vector), written)
        torch.testing.assert_close(access.reads[0, 0], vector.tanh())
        torch.testing.assert_close(access.state.write_weights[0], torch.eye(SLOTS)[0])
        freed = requested(memory_kind, vector, free=50.0, allocate=50.0, write=-50.0)
        access = memory_kind.step(access.state, freed)
        assert access.usage is not None
        assert access.usage[0, 0] < 1e-6
        left = access.state.memory[0, 0].abs().max()
        assert left < 1e-6 if erase_on_free else left > 0.4


def test_a_mask_leaves_out_what_it_covers() -> None:
    """The first word is like the key but for its last number: it is found where that is covered."""
    memory_kind = small(masked=True, links=False, strength_offset=50.0)
    state = memory_kind.start(1, torch.zeros(()))
    state.memory[0, :2] = torch.tensor([[0.9, 0.0, 0.0, 0.9], [0.9, 0.1, 0.0, 0.0]])
    asked = requested(memory_kind, torch.tensor([5.0, 0.0, 0.0, -5.0]), free=-50.0, write=-50.0)
    masks = asked[0, (HEADS + 3) * WORD :][: HEADS * WORD].view(HEADS, WORD)
    masks.fill_(50.0)
    assert memory_kind.step(state, asked).read_weights[0, 0].argmax() == 1
    masks[0, 3] = -50.0
    weights = memory_kind.step(state, asked).read_weights[0]
    assert weights.argmax(-1).tolist() == [0, 1]


def test_without_links_their_state_is_empty_and_reading_is_by_content() -> None:
    memory_kind = small(links=False)
    state = memory_kind.start(3, torch.zeros(()))
    assert [tuple(part.shape) for part in state[4:]] == [(3, 0), (3, 0, 0)]
    linked = small(links=True, sharp_links=False)
    assert linked.interface_size == memory_kind.interface_size + 3 * HEADS
    assert small().interface_size == linked.interface_size + 2 * HEADS
    access = memory_kind.step(state, torch.randn(3, memory_kind.interface_size))
    torch.testing.assert_close(access.read_weights.sum(-1), torch.ones(3, HEADS))


@settings(max_examples=30, deadline=None)
@given(links=st.booleans(), sharp=st.booleans(), scale=st.sampled_from([1.0, 10.0]), seed=st.integers(0, 99))
def test_weights_sum_to_at_most_one(links: bool, sharp: bool, scale: float, seed: int) -> None:
    """Whatever is asked for, from an empty memory until all slots were in use."""
    memory_kind = small(links=links, sharp_links=sharp)
    generator = torch.Generator().manual_seed(seed)
    state: DncState = memory_kind.start(2, torch.zeros(()))
    for _ in range(10):
        asked = scale * torch.randn(2, memory_kind.interface_size, generator=generator)
        state = memory_kind.step(state, asked).state
        for weights in (state.read_weights, state.write_weights):
            assert (weights >= -1e-6).all()
            assert weights.sum(-1).max() <= 1 + 1e-5
        assert state.usage.min() >= -1e-6
        assert state.usage.max() <= 1 + 1e-6


def test_an_empty_memory_passes_finite_gradients() -> None:
    memory_kind = small()
    interface = torch.randn(2, memory_kind.interface_size, requires_grad=True)
    memory_kind.step(memory_kind.start(2, interface), interface).reads.square().sum().backward()
    assert interface.grad is not None
    assert interface.grad.isfinite().all()


@every_option
def test_gradient_of_a_step(options: dict[str, Any]) -> None:
    memory_kind = small(**options)
    torch.manual_seed(1)
    start = memory_kind.start(1, torch.zeros((), dtype=torch.double))
    used = [torch.rand_like(part) / 3 for part in start]  # no two slots alike, weights below 1 in sum
    interface = torch.randn(1, memory_kind.interface_size, dtype=torch.double)

    def run(interface: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        access = memory_kind.step(DncState(*state), interface)
        return (access.reads, *access.state)

    leaves = tuple(leaf.requires_grad_() for leaf in (interface, *used))
    assert torch.autograd.gradcheck(run, leaves)
