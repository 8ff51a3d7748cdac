"""Content addressing against slow twins, planted values and its invariants."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fewshot.memory.addressing import content_weights, cosine_similarity

Array = NDArray[np.float64]


def slow_weights(key: Array, memory: Array, strength: Array | None) -> Array:
    """Softmax over slots of strength times cosine, one number at a time."""
    batch, heads, _ = key.shape
    weights = np.zeros((batch, heads, memory.shape[1]))
    for b in range(batch):
        for head in range(heads):
            scores = []
            for slot in range(memory.shape[1]):
                dot = sum(x * y for x, y in zip(key[b, head], memory[b, slot], strict=True))
                lengths = math.hypot(*key[b, head]) * math.hypot(*memory[b, slot])
                scores.append(dot / lengths * (1.0 if strength is None else strength[b, head]))
            total = sum(math.exp(score) for score in scores)
            weights[b, head] = [math.exp(score) / total for score in scores]
    return weights


@pytest.mark.parametrize("with_strength", [False, True])
def test_weights_equal_the_slow_twin(with_strength: bool) -> None:
    random = np.random.default_rng(0)
    key, memory = random.normal(size=(3, 2, 5)), random.normal(size=(3, 7, 5))
    strength = random.uniform(1, 10, size=(3, 2)) if with_strength else None
    weights = content_weights(
        torch.tensor(key), torch.tensor(memory), None if strength is None else torch.tensor(strength)
    )
    np.testing.assert_allclose(weights.numpy(), slow_weights(key, memory, strength), rtol=1e-10)


def test_a_planted_key_finds_its_slot() -> None:
    torch.manual_seed(0)
    memory = torch.randn(1, 128, 40)
    key = 3 * memory[:, [17, 90]]
    similarity = cosine_similarity(key, memory)
    torch.testing.assert_close(similarity[0, [0, 1], [17, 90]], torch.ones(2))
    weights = content_weights(key, memory, torch.full((1, 2), 20.0))
    assert weights.argmax(-1).tolist() == [[17, 90]]
    assert weights.amax(-1).min() > 0.99


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
