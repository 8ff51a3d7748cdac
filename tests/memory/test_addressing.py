"""Addressing by content and by location against slow twins, planted values and their invariants."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fewshot.memory.addressing import content_weights, cosine_similarity, interpolate, sharpen, shift

Array = NDArray[np.float64]


def slow_weights(key: Array, memory: Array, strength: Array | None, mask: Array | None) -> Array:
    """Softmax over slots of strength times cosine of what is masked, one number at a time."""
    batch, heads, _ = key.shape
    weights = np.zeros((batch, heads, memory.shape[1]))
    for b in range(batch):
        for head in range(heads):
            scores = []
            share = 1.0 if mask is None else mask[b, head]
            for slot in range(memory.shape[1]):
                asked, words = share * key[b, head], share * memory[b, slot]
                dot = sum(x * y for x, y in zip(asked, words, strict=True))
                lengths = math.hypot(*asked) * math.hypot(*words)
                scores.append(dot / lengths * (1.0 if strength is None else strength[b, head]))
            total = sum(math.exp(score) for score in scores)
            weights[b, head] = [math.exp(score) / total for score in scores]
    return weights


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_strength", [False, True])
def test_weights_equal_the_slow_twin(with_strength: bool, masked: bool) -> None:
    random = np.random.default_rng(0)
    key, memory = random.normal(size=(3, 2, 5)), random.normal(size=(3, 7, 5))
    strength = random.uniform(1, 10, size=(3, 2)) if with_strength else None
    mask = random.uniform(size=(3, 2, 5)) if masked else None
    weights = content_weights(
        torch.tensor(key),
        torch.tensor(memory),
        None if strength is None else torch.tensor(strength),
        None if mask is None else torch.tensor(mask),
    )
    np.testing.assert_allclose(weights.numpy(), slow_weights(key, memory, strength, mask), rtol=1e-10)


def test_a_planted_key_finds_its_slot() -> None:
    torch.manual_seed(0)
    memory = torch.randn(1, 128, 40)
    key = 3 * memory[:, [17, 90]]
    similarity = cosine_similarity(key, memory)
    torch.testing.assert_close(similarity[0, [0, 1], [17, 90]], torch.ones(2))
    weights = content_weights(key, memory, torch.full((1, 2), 20.0))
    assert weights.argmax(-1).tolist() == [[17, 90]]
    assert weights.amax(-1).min() > 0.99


def test_what_a_mask_covers_does_not_count() -> None:
    """Each head covers another half of the word, in which only one of the slots is as the key."""
    torch.manual_seed(0)
    key = torch.randn(1, 1, 6).expand(1, 2, 6)
    memory = torch.randn(1, 5, 6)
    memory[0, 1, :3], memory[0, 4, 3:] = key[0, 0, :3], key[0, 0, 3:]
    mask = torch.tensor([[[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]])
    similarity = cosine_similarity(key, memory, mask=mask)
    torch.testing.assert_close(similarity[0, [0, 1], [1, 4]], torch.ones(2))
    assert similarity.argmax(-1).tolist() == [[1, 4]]
    assert cosine_similarity(key, memory, mask=torch.zeros(1, 2, 6)).eq(0).all()


def test_without_strength_even_a_perfect_match_is_read_faintly() -> None:
    memory = torch.full((1, 128, 40), -1.0)
    memory[:, 5] = 1.0
    weights = content_weights(torch.ones(1, 1, 40), memory)
    assert weights[0, 0, 5].item() == pytest.approx(math.e / (math.e + 127 / math.e), rel=1e-5)


def test_length_of_key_and_slot_does_not_matter() -> None:
    torch.manual_seed(1)
    key, memory = torch.randn(2, 3, 6), torch.randn(2, 9, 6)
    scale = torch.rand(2, 9, 1) + 0.5
    torch.testing.assert_close(cosine_similarity(key, memory), cosine_similarity(4 * key, scale * memory))


def test_an_empty_slot_and_an_empty_key_are_finite_both_ways() -> None:
    key = torch.zeros(1, 1, 4, requires_grad=True)
    memory = torch.zeros(1, 3, 4, requires_grad=True)
    weights = content_weights(key, memory)
    torch.testing.assert_close(weights, torch.full((1, 1, 3), 1 / 3))
    weights[0, 0, 0].backward()
    assert key.grad is not None
    assert memory.grad is not None
    assert key.grad.isfinite().all()
    assert memory.grad.isfinite().all()


def test_weights_sum_to_one_and_are_positive() -> None:
    torch.manual_seed(2)
    weights = content_weights(torch.randn(4, 4, 40), torch.randn(4, 128, 40), torch.full((4, 4), 10.0))
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4))
    assert (weights >= 0).all()


def test_gradient() -> None:
    torch.manual_seed(3)
    key, memory = torch.randn(2, 2, 3, dtype=torch.double), torch.randn(2, 5, 3, dtype=torch.double)
    strength = torch.rand(2, 2, dtype=torch.double) + 1
    inputs = tuple(tensor.requires_grad_() for tensor in (key, memory, strength))
    assert torch.autograd.gradcheck(content_weights, inputs)
    mask = torch.rand(2, 2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(content_weights, (*inputs, mask))


# --- By location --------------------------------------------------------------------------------------------


def slow_shift(weights: Array, kernel: Array) -> Array:
    """Equation 8 of Graves et al. 2014: the kernel spread over all slots, indices modulo their number."""
    batch, heads, slots = weights.shape
    reach = kernel.shape[-1] // 2
    shifted = np.zeros_like(weights)
    for b in range(batch):
        for head in range(heads):
            spread = np.zeros(slots)
            for place, share in enumerate(kernel[b, head]):
                spread[(place - reach) % slots] += share
            for i in range(slots):
                shifted[b, head, i] = sum(weights[b, head, j] * spread[(i - j) % slots] for j in range(slots))
    return shifted


def slow_sharpen(weights: Array, sharpening: Array) -> Array:
    powers = weights ** sharpening[..., None]
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("reach", [1, 2, 4])  # the last is wider than the ring of seven slots
def test_location_equals_the_slow_twin(reach: int) -> None:
    random = np.random.default_rng(reach)
    previous, content = random.dirichlet(np.ones(7), size=(2, 3, 2))
    kernel = random.dirichlet(np.ones(2 * reach + 1), size=(3, 2))
    gate, sharpening = random.uniform(size=(3, 2)), random.uniform(1, 5, size=(3, 2))
    blend = interpolate(torch.tensor(content), torch.tensor(previous), torch.tensor(gate))
    expected = gate[..., None] * content + (1 - gate[..., None]) * previous
    np.testing.assert_allclose(blend.numpy(), expected, rtol=1e-12)
    moved = shift(blend, torch.tensor(kernel))
    np.testing.assert_allclose(moved.numpy(), slow_shift(expected, kernel), rtol=1e-12)
    sharp = sharpen(moved, torch.tensor(sharpening))
    np.testing.assert_allclose(sharp.numpy(), slow_sharpen(moved.numpy(), sharpening), rtol=1e-10)


def one_hot(slot: int, slots: int = 5) -> Tensor:
    return torch.eye(slots)[slot].view(1, 1, slots)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_a_shut_gate_keeps_the_weights_and_an_open_one_replaces_them(gate: float) -> None:
    content, previous = torch.rand(2, 3, 6).softmax(-1), torch.rand(2, 3, 6).softmax(-1)
    kept = interpolate(content, previous, torch.full((2, 3), gate))
    assert torch.equal(kept, content if gate else previous)


@pytest.mark.parametrize(
    ("place", "slot", "becomes"), [(2, 1, 2), (2, 4, 0), (1, 3, 3), (0, 3, 2), (0, 0, 4)]
)
def test_a_shift_moves_a_one_hot_around_the_ring(place: int, slot: int, becomes: int) -> None:
    """The kernel's places are the shifts -1, 0 and +1."""
    assert torch.equal(shift(one_hot(slot), one_hot(place, 3)), one_hot(becomes))


def test_sharpening_by_one_changes_nothing_and_by_much_leaves_the_largest() -> None:
    weights = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    torch.testing.assert_close(sharpen(weights, torch.ones(1, 1)), weights)
    torch.testing.assert_close(sharpen(weights, torch.full((1, 1), 100.0)), one_hot(3, 4))
    torch.testing.assert_close(sharpen(one_hot(3, 4), torch.full((1, 1), 1.7)), one_hot(3, 4))


def test_flat_weights_survive_a_power_that_would_underflow() -> None:
    flat = torch.full((1, 1, 128), 1 / 128, requires_grad=True)
    sharp = sharpen(flat, torch.full((1, 1), 1000.0))
    torch.testing.assert_close(sharp, torch.full((1, 1, 128), 1 / 128))
    sharp[0, 0, 0].backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_the_gradient_of_a_one_hot_is_finite() -> None:
    weights = one_hot(2).requires_grad_()
    kernel, sharpening = one_hot(2, 3).requires_grad_(), torch.full((1, 1), 2.0, requires_grad=True)
    sharpen(shift(weights, kernel), sharpening)[0, 0, 3].backward()
    for leaf in (weights, kernel, sharpening):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


sizes = st.integers(1, 9)


@given(slots=sizes, reach=st.integers(0, 3), seed=st.integers(0, 99), scale=st.sampled_from([1.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_weights_stay_weights(slots: int, reach: int, seed: int, scale: float) -> None:
    """Whatever the logits, flat or so sharp that all but one weight vanish: positive, with a sum of 1."""
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    content, previous = logits(2, 3, slots).softmax(-1), logits(2, 3, slots).softmax(-1)
    blend = interpolate(content, previous, logits(2, 3).sigmoid())
    moved = shift(blend, logits(2, 3, 2 * reach + 1).softmax(-1))
    sharp = sharpen(moved, 1 + logits(2, 3).exp().clamp(max=1e4))
    for weights in (blend, moved, sharp):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))


def test_gradient_by_location() -> None:
    torch.manual_seed(4)
    content, previous = torch.randn(2, 2, 2, 5, dtype=torch.double).softmax(-1)
    kernel = torch.randn(2, 2, 3, dtype=torch.double).softmax(-1)
    gate, sharpening = torch.rand(2, 2, dtype=torch.double), torch.rand(2, 2, dtype=torch.double) + 1

    def moved(content: Tensor, previous: Tensor, gate: Tensor, kernel: Tensor, sharpening: Tensor) -> Tensor:
        return sharpen(shift(interpolate(content, previous, gate), kernel), sharpening)

    leaves = (content, previous, gate, kernel, sharpening)
    assert torch.autograd.gradcheck(moved, tuple(leaf.detach().requires_grad_() for leaf in leaves))
