"""Attention over stored pairs: a layer against a slow twin, and one pass against step by step."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fewshot.memory.attention import AttentionCell, AttentionState
from fewshot.memory.cell import Cell

Array = NDArray[np.float64]
INPUT, LABELS, HIDDEN, HEADS = 5, 3, 8, 2


def build(num_layers: int = 2, *, tie: bool = True) -> AttentionCell:
    torch.manual_seed(0)
    cell = AttentionCell(
        INPUT, LABELS, hidden_size=HIDDEN, num_layers=num_layers, read_heads=HEADS, tie=tie
    ).double()
    with torch.no_grad():
        for parameter in cell.parameters():  # away from the ones and zeros of fresh norms
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return cell


def sequence(batch: int = 2, length: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and previous labels, none at first."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, length, INPUT, generator=generator, dtype=torch.double)
    labels = torch.eye(LABELS, dtype=torch.double)[
        torch.randint(LABELS, (batch, length), generator=generator)
    ]
    labels[:, 0] = 0
    return inputs, labels


def numbers(module: nn.Module) -> dict[str, Array]:
    return {name: np.asarray(value.detach()) for name, value in module.named_parameters()}


def layer_norm(vector: Array, scale: Array, shift: Array) -> Array:
    centred = vector - vector.mean()
    normalised: Array = centred / math.sqrt(float((centred**2).mean()) + 1e-5) * scale + shift
    return normalised


def slow_answer(
    cell: AttentionCell, pairs: list[tuple[Array, Array]], asked: Array
) -> tuple[Array, list[list[float]]]:
    """What a cell of one layer answers, and with which weights each head reads each pair.

    From the module's table, one head and one pair at a time.
    """
    own = numbers(cell)

    def head_of(name: str, token: Array, head: int) -> Array:
        size = HIDDEN // HEADS
        token = layer_norm(token, own["layers.0.norm.weight"], own["layers.0.norm.bias"])
        projected: Array = own[f"layers.0.{name}.weight"] @ token
        return projected[head * size : (head + 1) * size]

    def unit(vector: Array) -> Array:
        return vector / math.sqrt(sum(float(number) ** 2 for number in vector))

    def dense(name: str, vector: Array) -> Array:
        mapped: Array = own[f"{name}.weight"] @ vector + own[f"{name}.bias"]
        return mapped

    token = dense("input", asked)
    reads, weights = [], []
    for head in range(HEADS):
        query = unit(head_of("query" if "layers.0.query.weight" in own else "key", token, head))
        keys, values = [], []
        for given, label in pairs:
            pair = dense("input", given) + own["label.weight"] @ label
            keys.append(unit(head_of("key", pair, head)))
            values.append(head_of("value", pair, head))
        sharpness = math.exp(float(own["layers.0.log_sharpness"][head, 0, 0]))
        shares = [math.exp(sharpness * float(query @ key)) for key in keys]
        weights.append([share / sum(shares) for share in shares])
        reads.append(sum(weight * value for weight, value in zip(weights[head], values, strict=True)))
    token = token + dense("layers.0.output", np.concatenate(reads))
    inner = layer_norm(token, own["layers.0.feedforward.0.weight"], own["layers.0.feedforward.0.bias"])
    inner = dense("layers.0.feedforward.1", inner)
    inner = np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in inner])  # GELU
    token = token + dense("layers.0.feedforward.3", inner)
    return layer_norm(token, own["norm.weight"], own["norm.bias"]), weights


@pytest.mark.parametrize("tie", [True, False])
def test_one_layer_answers_as_the_slow_twin(tie: bool) -> None:
    cell, (inputs, labels) = build(1, tie=tie), sequence()
    answers, watch = cell.watch(cell.start(2), inputs, labels)
    torch.testing.assert_close(answers, cell(cell.start(2), inputs, labels)[0])
    given, shown = inputs.numpy(), labels.numpy()
    for episode in range(2):
        pairs = [(np.zeros(INPUT), np.zeros(LABELS))]
        for step in range(6):
            expected, weights = slow_answer(cell, pairs, given[episode, step])
            np.testing.assert_allclose(answers[episode, step].detach().numpy(), expected, rtol=1e-9)
            read = watch.visits[step].read[episode].detach().numpy()
            np.testing.assert_allclose(read[: step + 1], np.sum(weights, axis=0), rtol=1e-9)
            assert not read[step + 1 :].any(), "a pair that is not there yet"
            if step < 5:
                pairs.append((given[episode, step], shown[episode, step + 1]))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_sequence_at_once_is_the_sequence_step_by_step(num_layers: int) -> None:
    """And as two sequences, the second from the state that the first left."""
    cell, (inputs, labels) = build(num_layers), sequence()
    at_once, after = cell(cell.start(2), inputs, labels)
    for cuts in ([1, 2, 3, 4, 5], [4]):
        state, answers = cell.start(2), []
        for some, shown in zip(inputs.tensor_split(cuts, 1), labels.tensor_split(cuts, 1), strict=True):
            answer, state = cell(state, some, shown)
            answers.append(answer)
        torch.testing.assert_close(torch.cat(answers, dim=1), at_once)
        for slow, fast in zip(state, after, strict=True):
            torch.testing.assert_close(slow, fast)
    assert after.keys.shape == after.values.shape == (2, num_layers, HEADS, 6, HIDDEN // HEADS)
    assert torch.equal(after.last, inputs[:, -1])


def test_each_step_stores_its_pair_in_a_slot_of_its_own() -> None:
    cell, (inputs, labels) = build(), sequence()
    _, whole = cell.watch(cell.start(2), inputs, labels)
    assert whole.slots.tolist() == list(range(6))
    assert whole.num_slots == 6
    written = torch.stack([visit.written for visit in whole.visits], dim=1)
    assert torch.equal(written, torch.eye(6, dtype=torch.double).expand(2, -1, -1))
    assert all(visit.kept.eq(1).all() and visit.usage is None for visit in whole.visits)
    _, state = cell(cell.start(2), inputs[:, :4], labels[:, :4])
    _, later = cell.watch(state, inputs[:, 4:], labels[:, 4:])
    for some, same in zip(later.visits, whole.visits[4:], strict=True):
        torch.testing.assert_close(some, same)


def test_a_question_reads_the_pair_of_its_like() -> None:
    """Inputs at right angles, labels that say nothing, and heads that are sharp."""
    cell, inputs = build(1), 3 * torch.eye(INPUT, dtype=torch.double)[[0, 1, 2, 1, 0, 3]].unsqueeze(0)
    with torch.no_grad():
        cell.label.weight.zero_()
        cell.input.bias.zero_()
        cell.layers[0].get_parameter("log_sharpness").fill_(math.log(200))
    _, watch = cell.watch(cell.start(1), inputs, torch.zeros(1, 6, LABELS, dtype=torch.double))
    assert watch.visits[3].read[0, 2].item() == pytest.approx(HEADS, abs=1e-3)  # input 1 lies in slot 2
    assert watch.visits[4].read[0, 1].item() == pytest.approx(HEADS, abs=1e-3)
    assert watch.visits[0].read[0, 0].item() == HEADS, "there is nothing but the pair of zeros"


def test_the_reads_are_those_of_the_first_layer_in_which_a_slot_holds_one_pair() -> None:
    """Whatever pairs have read in between: the second layer does not change them."""
    cell, (inputs, labels) = build(2), sequence()
    reads = [visit.read for visit in cell.watch(cell.start(2), inputs, labels)[1].visits]
    with torch.no_grad():
        cell.layers[1].get_parameter("key.weight").normal_()
    others = [visit.read for visit in cell.watch(cell.start(2), inputs, labels)[1].visits]
    torch.testing.assert_close(reads, others)
    torch.testing.assert_close(
        torch.stack(reads).sum(-1), torch.full((6, 2), float(HEADS), dtype=torch.double)
    )


def test_questions_are_asked_as_of_copies_of_the_state() -> None:
    cell, (inputs, labels) = build(), sequence()
    _, state = cell(cell.start(2), inputs, labels)
    asked, _ = sequence(length=4, seed=2)
    torch.testing.assert_close(
        cell.ask(state, asked, labels[:, 1]), Cell.ask(cell, state, asked, labels[:, 1])
    )


def test_an_answer_depends_on_what_came_before_it_and_on_nothing_else() -> None:
    cell, (inputs, labels) = build(), sequence()
    answers, _ = cell(cell.start(2), inputs, labels)
    other_inputs, other_labels = inputs.clone(), labels.roll(1, dims=-1)
    other_inputs[:, 4:] += 1
    other_labels[:, :3] = labels[:, :3]
    others, _ = cell(cell.start(2), other_inputs, other_labels)
    differs = (answers - others).abs().amax(-1) > 1e-9
    assert differs.tolist() == 2 * [[False, False, False, True, True, True]]


def test_the_order_of_pairs_does_not_matter_to_one_layer() -> None:
    cell, (inputs, labels) = build(1), sequence()
    answers = []
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        shown = torch.cat([labels[:, :1], labels[:, 1:5][:, order]], dim=1)
        shuffled = torch.cat([inputs[:, order], inputs[:, 5:]], dim=1)
        answers.append(cell(cell.start(2), shuffled, shown)[0][:, -1])
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("tie", [True, False])
def test_only_tied_questions_find_their_own_pair_before_any_training(tie: bool) -> None:
    torch.manual_seed(0)
    cell = AttentionCell(64, LABELS, hidden_size=64, num_layers=1, read_heads=1, tie=tie)
    inputs, labels = torch.randn(1, 21, 64), torch.eye(LABELS)[torch.arange(21) % LABELS].unsqueeze(0)
    _, state = cell(cell.start(1), inputs, labels)
    layer: Any = cell.layers[0]
    projection = layer.key if tie else layer.query
    queries = projection(layer.norm(cell.input(inputs[0, :20])))
    found = (queries @ state.keys[0, 0, 0].T).argmax(-1) == torch.arange(1, 21)
    assert (found.double().mean() > 0.5) == tie


def test_a_step_leaves_the_state_before_as_it_was() -> None:
    cell, (inputs, labels) = build(), sequence()
    _, state = cell(cell.start(2), inputs, labels)
    copies = AttentionState(*(part.clone() for part in state))
    cell(state, inputs, labels)
    cell.ask(state, inputs, labels[:, 1])
    assert all(map(torch.equal, state, copies))


def test_gradient() -> None:
    cell, (inputs, labels) = build(), sequence(batch=1, length=3)
    leaves = inputs.requires_grad_(), *cell.parameters()

    def answers(*_: Tensor) -> Any:
        return cell(cell.start(1), inputs, labels)[0]

    assert torch.autograd.gradcheck(answers, leaves, fast_mode=True)
