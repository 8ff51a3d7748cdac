"""The key-value memory against a slow twin written from the paper, planted values, and what it promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fewshot.memory.key_value import (
    KeyValueState,
    change,
    initial_state,
    margin_loss,
    similarity,
    update,
    usage,
)

Array = NDArray[np.float64]
WAY, WORD = 3, 4


class SlowMemory:
    """One memory of Kaiser et al. 2017, section 2, as a list of slots: [key, label, age]."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.slots: list[tuple[Array, int, int]] = []  # in the order in which they were first filled

    def update(self, query: Array, label: int) -> None:
        cosines = [float(np.dot(query, key)) for key, _, _ in self.slots]
        nearest = int(np.argmax(cosines)) if cosines else None
        aged = [(key, own, age + 1) for key, own, age in self.slots]
        if nearest is not None and self.slots[nearest][1] == label:
            total = query + self.slots[nearest][0]
            aged[nearest] = (total / math.sqrt(float(np.dot(total, total))), label, 0)
        elif len(self.slots) < self.num_slots:
            aged.append((query, label, 0))
        else:
            ages = [age for _, _, age in self.slots]
            aged[ages.index(max(ages))] = (query, label, 0)
        self.slots = aged


def units(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(*shape, generator=generator, dtype=torch.double)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def one_hot(*labels: int) -> Tensor:
    return torch.eye(WAY, dtype=torch.double)[list(labels)]


def empty(batch: int, num_slots: int, word: int = WORD) -> KeyValueState:
    return initial_state(
        batch, num_slots=num_slots, key_size=word, value_size=WAY, like=torch.zeros((), dtype=torch.double)
    )


@pytest.mark.parametrize("num_slots", [1, 2, 5, 40])
def test_every_update_is_that_of_the_slow_twin(num_slots: int) -> None:
    """Streams of 30, so that the smaller memories overwrite their oldest slots again and again."""
    batch, length = 3, 30
    queries, labels = units(batch, length, WORD, seed=num_slots), torch.arange(batch * length).view(batch, -1)
    labels = (labels * 7 // 4) % WAY
    state, twins = empty(batch, num_slots), [SlowMemory(num_slots) for _ in range(batch)]
    for step in range(length):
        state = update(state, queries[:, step], one_hot(*labels[:, step].tolist()))
        for episode, twin in enumerate(twins):
            twin.update(queries[episode, step].numpy(), int(labels[episode, step]))
            filled = len(twin.slots)
            for slot, (key, label, age) in enumerate(twin.slots):
                np.testing.assert_allclose(state.keys[episode, slot].numpy(), key, rtol=1e-12)
                assert state.values[episode, slot].tolist() == one_hot(label)[0].tolist()
                assert int(state.ages[episode, slot]) == age
            assert not state.keys[episode, filled:].any()
            assert not state.values[episode, filled:].any()


def test_a_right_answer_renews_its_key_and_nothing_else() -> None:
    state = update(empty(1, 4, 2), torch.tensor([[1.0, 0.0]]).double(), one_hot(2))
    state = update(state, torch.tensor([[0.0, -1.0]]).double(), one_hot(1))
    query = torch.tensor([[0.6, 0.8]]).double()
    renewed = update(state, query, one_hot(2))
    share = 1 / math.hypot(1.6, 0.8)
    assert change(state, query, one_hot(2)) == (0, pytest.approx(share), pytest.approx(share))
    expected = torch.tensor([1.6, 0.8]).double() * share
    torch.testing.assert_close(renewed.keys[0, 0], expected)
    assert torch.equal(renewed.keys[0, 1:], state.keys[0, 1:])
    assert torch.equal(renewed.values, state.values)
    assert renewed.ages[0, :2].tolist() == [0, 1]


def test_a_wrong_answer_lands_in_the_oldest_slot() -> None:
    first, second = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    state = update(empty(1, 2, 2), first, one_hot(0))
    state = update(state, second, one_hot(1))
    state = update(state, first, one_hot(0))  # renewed: now the second is the oldest
    query = torch.tensor([[-1.0, 0.0]]).double()
    assert change(state, query, one_hot(2)) == (1, 1, 0)
    assert usage(state).tolist() == [[1, 0]], "the oldest is the least used"
    state = update(state, query, one_hot(2))
    assert state.keys.tolist() == [[[1.0, 0.0], [-1.0, 0.0]]]
    assert state.values.argmax(-1).tolist() == [[0, 2]]
    assert state.ages.tolist() == [[1, 0]]


def test_in_a_life_longer_than_the_memory_the_rare_is_known_and_what_is_long_past_makes_room() -> None:
    """Lifelong learning (the paper's section 1): nothing is wiped and nothing grows. 400 classes, each shown
    twice and then never again, pass through 16 slots."""
    word, classes, slots = 64, 400, 16
    keys = units(classes, word, seed=0)
    near = torch.nn.functional.normalize(keys + 0.1 * units(classes, word, seed=1), dim=-1)
    labels = torch.arange(classes, dtype=torch.double) + 1
    state = initial_state(
        1, num_slots=slots, key_size=word, value_size=1, like=torch.zeros((), dtype=torch.double)
    )

    def named(queries: Tensor) -> Tensor:
        nearest = similarity(state, queries.unsqueeze(0)).argmax(-1)
        return state.values[0, nearest[0], 0]

    for shown in range(classes):
        state = update(state, keys[shown : shown + 1], labels[shown].view(1, 1))
        first = max(shown - slots + 1, 0)
        assert torch.equal(named(near[first : shown + 1]), labels[first : shown + 1]), (
            "the youngest, all of them"
        )
        state = update(state, near[shown : shown + 1], labels[shown].view(1, 1))
    assert state.keys.shape == (1, slots, word)
    assert not (named(near[: classes - slots]) == labels[: classes - slots]).any(), "the others made room"


def test_a_query_that_points_away_from_its_only_key_leaves_nothing_of_it() -> None:
    query = torch.tensor([[0.6, 0.8]]).double()
    state = update(empty(1, 2, 2), query, one_hot(1))
    assert not update(state, -query, one_hot(1)).keys.any()


def test_empty_slots_are_not_used_and_the_younger_ones_are_used_more() -> None:
    state = empty(1, 4, 2)
    assert not usage(state).any()
    for number, query in enumerate(([1.0, 0.0], [0.0, 1.0])):
        state = update(state, torch.tensor([query]).double(), one_hot(number))
    first, second, *others = usage(state)[0].tolist()
    assert second == first + 1
    assert first > 0
    assert others == [0, 0]


def test_an_empty_slot_is_never_the_nearest() -> None:
    """A key of zeros has cosine 0, which is more than that of the only key there is."""
    state = update(empty(1, 3, 2), torch.tensor([[1.0, 0.0]]).double(), one_hot(1))
    away = torch.tensor([[-1.0, 0.0]]).double()
    assert similarity(state, away.unsqueeze(1)).tolist() == [[[-1.0, -math.inf, -math.inf]]]
    assert torch.equal(update(state, away, one_hot(0)).values[0, :2], one_hot(1, 0))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, WAY - 1)), max_size=25), st.integers(1, 6))
def test_no_two_slots_are_of_one_age_and_every_stored_key_has_length_one(
    shown: list[tuple[int, int]], num_slots: int
) -> None:
    state = empty(1, num_slots)
    for seed, label in shown:
        state = update(state, units(1, WORD, seed=seed), one_hot(label))
    assert len(set(state.ages[0].tolist())) == num_slots
    stored = state.values.sum(-1) > 0
    torch.testing.assert_close(state.keys.norm(dim=-1), stored.double())
    assert bool(stored.any()) == bool(shown)


def test_an_update_leaves_the_memory_before_as_it_was_and_takes_no_gradient() -> None:
    query = units(2, WORD, seed=0).requires_grad_()
    before = update(empty(2, 3), query, one_hot(0, 1))
    copies = [part.clone() for part in before]
    after = update(before, query, one_hot(1, 1))
    assert all(map(torch.equal, before, copies))
    assert not any(part.requires_grad for part in after)


def slow_loss(scores: Array, labels: NDArray[np.int64], margin: float) -> float:
    losses = []
    for episode in range(scores.shape[0]):
        for query in range(scores.shape[1]):
            row, label = scores[episode, query], labels[episode, query]
            wrong = max(value for other, value in enumerate(row) if other != label)
            if np.isfinite(row[label]) and np.isfinite(wrong):
                losses.append(max(0.0, wrong - row[label] + margin))
    return sum(losses) / max(len(losses), 1)


def some_scores() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(4, 6, WAY, generator=generator, dtype=torch.double)
    labels = torch.randint(WAY, (4, 6), generator=generator)
    return scores.masked_fill(torch.rand(scores.shape, generator=generator) < 0.3, -math.inf), labels


def test_the_loss_is_that_of_the_slow_twin() -> None:
    scores, labels = some_scores()
    expected = slow_loss(scores.numpy(), labels.numpy(), 0.1)
    assert expected > 0
    assert margin_loss(scores, labels, 0.1).item() == pytest.approx(expected)


def test_the_loss_is_zero_beyond_the_margin_and_where_there_is_nothing_to_compare() -> None:
    labels = torch.tensor([[1]])
    for scores, expected in (
        ([0.5, 0.7, -math.inf], 0.0),
        ([0.5, 0.55, -math.inf], 0.05),
        ([0.5, -math.inf, 0.2], 0.0),  # no right one
        ([-math.inf, 0.5, -math.inf], 0.0),  # no wrong one
        ([-math.inf, -math.inf, -math.inf], 0.0),
    ):
        loss = margin_loss(torch.tensor([[scores]]), labels, 0.1)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_loss_passes_its_gradient_to_queries() -> None:
    state = empty(2, 5)
    for step in range(4):
        state = update(state, units(2, WORD, seed=step), one_hot(step % 2, 2))
    state = update(state, units(2, WORD, seed=9), one_hot(2, 1))
    labels = torch.tensor([[0, 2, 1], [1, 1, 0]])

    def loss(queries: Tensor) -> Tensor:
        found = similarity(state, queries).unsqueeze(-1)
        of_label = torch.where(state.values.unsqueeze(1) > 0, found, -math.inf).amax(2)
        return margin_loss(of_label, labels, 0.5)

    queries = units(2, 3, WORD, seed=20).requires_grad_()
    assert torch.autograd.gradcheck(loss, queries)
    (gradient,) = torch.autograd.grad(loss(queries), queries)
    assert gradient.abs().sum() > 0
