"""The controllers and the cells against slow twins; the tied content path; sequences in one piece or many."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.memory.addressing import EPSILON
from fewshot.memory.attribution import read_amounts, touched_slots, visits
from fewshot.memory.cell import Intervention, LstmCell, MemoryCell, MemoryState
from fewshot.memory.controllers import (
    ControllerKind,
    ControllerState,
    FeedforwardController,
    GruController,
    LstmController,
    lstm_step,
)
from fewshot.memory.dnc import Dnc
from fewshot.memory.external import ExternalMemory
from fewshot.memory.lrua import Lrua, LruaState
from fewshot.memory.ntm import Ntm
from fewshot.memory.sparse import Sparse
from fewshot.memory.store import OwnStore
from tests.memory.cells import lrua_cell

Array = NDArray[np.float64]
KINDS: tuple[ControllerKind, ...] = ("lstm", "gru", "feedforward")


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def small_cell(**changes: Any) -> MemoryCell:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "controller": "lstm",
        "hidden_size": 7,
        "num_slots": 6,
        "word_size": 3,
        "read_heads": 2,
        "usage_decay": 0.9,
        "least_used": "per_head",
        "add_vector": "apart",
        "strength_offset": 5.0,
        "gate_bias": 0.0,
        "tie": True,
    }
    return lrua_cell(4, 5, **(options | changes)).double()


PAPER = {"least_used": "shared", "add_vector": "key", "strength_offset": None, "tie": False}


def sequence(batch: int, steps: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(batch, steps, 4, dtype=torch.double, generator=generator)
    labels = torch.randint(5, (batch, steps), generator=generator)
    previous = torch.nn.functional.one_hot(labels, 5).double()
    previous[:, 0] = 0
    return inputs, previous


def slow_cell(
    cell: MemoryCell, inputs: Array, previous: Array, start: tuple[Array, Array, Array] | None = None
) -> tuple[Array, tuple[Array, Array, Array]]:
    """The cell with an LSTM over one episode, in NumPy, head by head and slot by slot.

    start: memory, read weights and usage; gives (step, output) and the last of them.
    """
    value = {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}
    memory_kind = cell.memory
    assert isinstance(memory_kind, Lrua)
    heads, word, slots, hidden_size = memory_kind.read_heads, memory_kind.word_size, memory_kind.num_slots, 7
    hidden, memory_cell = np.zeros(hidden_size), np.zeros(hidden_size)
    memory = np.full((slots, word), 1e-6)
    read_weights = np.zeros((heads, slots))
    read_weights[:, 0] = 1
    usage = np.zeros(slots)
    usage[0] = 1
    if start is not None:
        memory, read_weights, usage = start[0], start[1].copy(), start[2]
    reads, last_content = np.zeros((heads, word)), np.zeros(heads * word)
    outputs = []
    for x, label in zip(inputs, previous, strict=True):
        gates = (
            value["controller.input_gates.weight"] @ np.concatenate([x, label])
            + value["controller.input_gates.bias"]
            + value["controller.recurrent_gates.weight"] @ np.concatenate([hidden, reads.ravel()])
        )
        keep, let_in, show, candidate = gates.reshape(4, hidden_size)
        memory_cell = sigmoid(keep) * memory_cell + sigmoid(let_in) * np.tanh(candidate)
        hidden = sigmoid(show) * np.tanh(memory_cell)
        raw = value["interface.weight"] @ hidden + value["interface.bias"]
        keys, rest = raw[: heads * word], raw[heads * word :]
        adds = keys
        if memory_kind.add_heads:
            adds, rest = rest[: heads * word], rest[heads * word :]
        if cell.content is not None:
            content = value["content.weight"] @ x
            keys = keys + content
            adds = adds + last_content + value["label_content.weight"] @ label
            last_content = content
        key, add = np.tanh(keys).reshape(heads, word), np.tanh(adds).reshape(heads, word)
        gate, strengths = sigmoid(rest[:heads]), np.ones(heads)
        if memory_kind.strength_offset is not None:
            strengths = memory_kind.strength_offset + np.log1p(np.exp(rest[heads:]))
        order = np.argsort(usage, kind="stable")[:heads]
        write_weights = np.zeros((heads, slots))
        for head in range(heads):
            least_used = np.zeros(slots)
            least_used[order if memory_kind.least_used == "shared" else order[head]] = 1
            write_weights[head] = gate[head] * read_weights[head] + (1 - gate[head]) * least_used
        memory = memory.copy()
        memory[order[0]] = 0
        for head, slot in itertools.product(range(heads), range(slots)):
            memory[slot] += write_weights[head, slot] * add[head]
        for head in range(heads):
            lengths = [math.hypot(*key[head], EPSILON) * math.hypot(*words, EPSILON) for words in memory]
            scores = memory @ key[head] / np.array(lengths)
            weights = np.exp(strengths[head] * scores)
            read_weights[head] = weights / weights.sum()
            reads[head] = read_weights[head] @ memory
        usage = memory_kind.usage_decay * usage + read_weights.sum(0) + write_weights.sum(0)
        outputs.append(np.concatenate([hidden, reads.ravel()]))
    return np.array(outputs), (memory, read_weights, usage)


variants = pytest.mark.parametrize(
    "changes",
    [{}, PAPER, {"tie": False}, {"least_used": "shared"}, {"gate_bias": -2.0, "strength_offset": 1.0}],
    ids=["strong", "paper", "no_tie", "shared", "gate_and_strength"],
)


@variants
def test_the_cell_equals_the_slow_twin(changes: dict[str, Any]) -> None:
    cell = small_cell(**changes)
    inputs, previous = sequence(2, 9)
    outputs, _ = cell(cell.start(2), inputs, previous)
    for episode in range(2):
        twin, _ = slow_cell(cell, inputs[episode].numpy(), previous[episode].numpy())
        np.testing.assert_allclose(outputs[episode].detach().numpy(), twin, atol=1e-9)


@variants
def test_in_single_precision_too_which_may_run_in_a_kernel(changes: dict[str, Any]) -> None:
    """From a memory in which no two slots are alike, so that rounding does not choose between them."""
    cell = small_cell(**changes)
    inputs, previous = sequence(2, 9)
    generator = torch.Generator().manual_seed(2)
    access = LruaState(
        torch.randn(2, 6, 3, dtype=torch.double, generator=generator),
        torch.randn(2, 2, 6, dtype=torch.double, generator=generator).softmax(-1),
        torch.rand(2, 6, dtype=torch.double, generator=generator),
    )
    single = copy.deepcopy(cell).float()
    state = single.start(2)._replace(access=LruaState(*(part.float() for part in access)))
    outputs, last = single(state, inputs.float(), previous.float())
    for episode in range(2):
        start = (
            access.memory[episode].numpy(),
            access.read_weights[episode].numpy(),
            access.usage[episode].numpy(),
        )
        twin, end = slow_cell(cell, inputs[episode].numpy(), previous[episode].numpy(), start)
        np.testing.assert_allclose(outputs[episode].detach().numpy(), twin, atol=1e-5)
        for part, expected in zip(last.access, end, strict=True):
            np.testing.assert_allclose(part[episode].detach().numpy(), expected, atol=2e-5)


def test_lstm_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = LstmController(5, 3, 6)
    theirs = torch.nn.LSTMCell(8, 6)
    order = [1, 0, 3, 2]  # ours: keep, write, show, candidate; theirs: write, keep, candidate, show
    with torch.no_grad():
        weight = torch.cat([ours.input_gates.weight, ours.recurrent_gates.weight[:, 6:]], dim=1)
        theirs.weight_ih.copy_(weight.view(4, 6, 8)[order].reshape(24, 8))
        theirs.weight_hh.copy_(ours.recurrent_gates.weight[:, :6].reshape(4, 6, 6)[order].reshape(24, 6))
        theirs.bias_ih.copy_(ours.input_gates.bias.view(4, 6)[order].flatten())
        theirs.bias_hh.zero_()
    inputs, reads = torch.randn(2, 5), torch.randn(2, 3)
    hidden, cell = torch.randn(2, 6), torch.randn(2, 6)
    gates = ours.project(inputs) + torch.cat([hidden, reads], dim=1) @ ours.recurrent_weight.t()
    torch.testing.assert_close(
        lstm_step(gates, cell), theirs(torch.cat([inputs, reads], dim=1), (hidden, cell))
    )


def test_gru_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = GruController(5, 3, 6)
    theirs = torch.nn.GRUCell(8, 6)
    with torch.no_grad():
        # Without a share of the inputs in the reads' columns: torch feeds both to the gates before the reset.
        ours.recurrent_gates.weight[:, 6:] = 0
        theirs.weight_ih[:, :5] = ours.input_gates.weight
        theirs.weight_ih[:, 5:] = 0
        theirs.bias_ih.copy_(ours.input_gates.bias)
        theirs.weight_hh.copy_(ours.recurrent_gates.weight[:, :6])
        theirs.bias_hh.copy_(ours.recurrent_gates.bias)
    inputs, reads, hidden = torch.randn(2, 5), torch.randn(2, 3), torch.randn(2, 6)
    state = ours.start(2)._replace(hidden=hidden)
    given, after = ours.step(ours.project(inputs), state, reads)
    torch.testing.assert_close(given, theirs(torch.cat([inputs, reads], dim=1), hidden))
    assert after.hidden is given
    moved = ours.recurrent_gates.weight[:, 6:]
    with torch.no_grad():
        moved.copy_(torch.randn_like(moved))
    assert not torch.allclose(ours.step(ours.project(inputs), state, reads)[0], given)


def test_gru_with_reads_equals_the_slow_twin() -> None:
    """Reads are fed back like the hidden state, so that the reset gate holds back both."""
    torch.manual_seed(1)
    gru = GruController(5, 3, 6).double()
    inputs, reads = torch.randn(4, 2, 5, dtype=torch.double), torch.randn(4, 2, 3, dtype=torch.double)
    state, slow = gru.start(2), np.zeros((2, 6))
    into, back = gru.input_gates.weight.detach().numpy(), gru.recurrent_weight.detach().numpy()
    into_bias, back_bias = gru.input_gates.bias.detach().numpy(), gru.recurrent_gates.bias.detach().numpy()
    for image, words in zip(inputs, reads, strict=True):
        hidden, state = gru.step(gru.project(image), state, words)
        assert [part.shape for part in state] == [(2, 6), (2, 0)]
        for episode in range(2):
            new = into @ image[episode].numpy() + into_bias
            old = back @ np.concatenate([slow[episode], words[episode].numpy()]) + back_bias
            reset, keep = sigmoid(new[:6] + old[:6]), sigmoid(new[6:12] + old[6:12])
            candidate = np.tanh(new[12:] + reset * old[12:])
            slow[episode] = keep * slow[episode] + (1 - keep) * candidate
        np.testing.assert_allclose(hidden.detach().numpy(), slow, atol=1e-12)


def test_the_feedforward_controller_knows_the_past_through_the_reads_alone() -> None:
    cell = small_cell(controller="feedforward")
    inputs, previous = sequence(2, 1)
    state: MemoryState = cell.start(2)
    assert [part.shape for part in state.controller] == [(2, 0), (2, 0)]
    reads = torch.randn(2, 2, 3, dtype=torch.double)
    outputs, _ = cell(state._replace(reads=reads), inputs, previous)
    controller = cell.controller
    assert isinstance(controller, FeedforwardController)
    projected = controller.input_layer(torch.cat([inputs[:, 0], previous[:, 0]], dim=1))
    expected = torch.relu(projected + controller.recurrent_layer(reads.flatten(1)))
    torch.testing.assert_close(outputs[:, 0, :7], expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, PAPER], ids=["strong", "paper"])
def test_a_sequence_in_pieces_gives_what_it_gives_whole(
    kind: ControllerKind, changes: dict[str, Any]
) -> None:
    cell = small_cell(controller=kind, **changes)
    inputs, previous = sequence(3, 8)
    whole, last = cell(cell.start(3), inputs, previous)
    state, pieces = cell.start(3), []
    for part in (slice(0, 1), slice(1, 5), slice(5, 8)):
        outputs, state = cell(state, inputs[:, part], previous[:, part])
        pieces.append(outputs)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


def test_the_control_cell_in_pieces_gives_what_it_gives_whole() -> None:
    torch.manual_seed(0)
    cell = LstmCell(4, 5, hidden_size=7).double()
    inputs, previous = sequence(3, 6)
    whole, _ = cell(cell.start(3), inputs, previous)
    first, state = cell(cell.start(3), inputs[:, :2], previous[:, :2])
    second, _ = cell(state, inputs[:, 2:], previous[:, 2:])
    assert whole.shape == (3, 6, cell.output_size)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_the_control_cell_is_its_controller_step_by_step() -> None:
    torch.manual_seed(0)
    cell = LstmCell(4, 5, hidden_size=7).double()
    inputs, previous = sequence(3, 6)
    whole, last = cell(cell.start(3), inputs, previous)
    hidden, memory_cell = cell.start(3)
    for step, gates in enumerate(cell.controller.project(torch.cat([inputs, previous], dim=-1)).unbind(1)):
        hidden, memory_cell = lstm_step(gates + hidden @ cell.controller.recurrent_weight.t(), memory_cell)
        torch.testing.assert_close(whole[:, step], hidden)
    torch.testing.assert_close(last, ControllerState(hidden, memory_cell))


def test_tied_an_image_is_looked_up_with_what_it_is_stored_under() -> None:
    """With the controller silenced, the key of the image seen again points at where it was stored."""
    cell = small_cell(read_heads=1, num_slots=8, word_size=16, strength_offset=300.0)
    assert cell.content is not None
    assert cell.label_content is not None
    with torch.no_grad():
        cell.interface.weight.zero_()
        cell.interface.bias.zero_()
        cell.interface.bias[2 * 16] = -20  # the write gate: always to the least used slot
        cell.label_content.weight.zero_()
    images = torch.randn(1, 3, 4, dtype=torch.double)
    inputs = images[:, [0, 1, 2, 0]]
    state: MemoryState = cell.start(1)
    _, state = cell(state, inputs, torch.zeros(1, 4, 5, dtype=torch.double))
    stored = torch.tanh(cell.content(images[:, 0]))
    torch.testing.assert_close(state.reads[:, 0], stored, atol=1e-3, rtol=0)


def test_paper_mode_has_neither_strength_nor_add_vector_nor_tie() -> None:
    cell = small_cell(**PAPER)
    assert cell.interface.out_features == 2 * 3 + 2  # two keys of three numbers and two write gates
    assert cell.content is None
    assert cell.label_content is None
    assert cell.start(1).content.shape == (1, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (PAPER | {"tie": True}, "tie = true joins the key to what is written, .*"),
        ({"tie": False, "intervention": "shuffle_keys"}, 'intervention "shuffle_keys" .* needs tie = true'),
        (
            {"controller": "feedforward", "intervention": "zero_controller"},
            'intervention "zero_controller" .* give controller = "lstm" or "gru"',
        ),
    ],
)
def test_a_cell_with_nothing_to_join_or_to_break_is_one_line(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerError, match=f"^{says}$"):
        small_cell(**changes)


def test_the_write_gate_starts_where_asked() -> None:
    assert small_cell(gate_bias=-3.0).interface.bias[12:14].tolist() == [-3, -3]


@pytest.mark.parametrize("changes", [{}, PAPER], ids=["strong", "paper"])
def test_gradient_through_three_steps(changes: dict[str, Any]) -> None:
    cell = small_cell(hidden_size=3, **changes)
    inputs, previous = sequence(1, 3)
    state = cell.start(1)
    # A memory that is in use: the curvature at 1e-6 is beyond finite differences.
    memory = torch.randn(1, 6, 3, dtype=torch.double)
    state = state._replace(access=state.access._replace(memory=memory))
    names = [name for name, _ in cell.named_parameters()]

    def run(inputs: Tensor, memory: Tensor, *parameters: Tensor) -> Any:
        start = state._replace(access=state.access._replace(memory=memory))
        return torch.func.functional_call(
            cell, dict(zip(names, parameters, strict=True)), (start, inputs, previous)
        )[0]

    leaves = (inputs, memory, *(parameter.detach().clone() for parameter in cell.parameters()))
    assert torch.autograd.gradcheck(run, tuple(leaf.requires_grad_() for leaf in leaves))


@pytest.mark.parametrize("kind", KINDS)
def test_watching_gives_the_same_outputs_and_what_the_heads_did(kind: ControllerKind) -> None:
    cell = small_cell(controller=kind)
    inputs, previous = sequence(3, 8)
    outputs, accesses, last = cell.step_by_step(cell.start(3), inputs, previous)
    expected, state = cell(cell.start(3), inputs, previous)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(last, state)
    assert len(accesses) == 8
    for access in accesses:
        assert access.usage is not None
        for weights in (access.read_weights, access.write_weights):
            torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, dtype=torch.double))


MEMORIES: dict[str, Callable[[], ExternalMemory]] = {
    "lrua": lambda: Lrua(num_slots=6, word_size=3, read_heads=2, add_vector="apart"),
    "ntm": lambda: Ntm(num_slots=6, word_size=3, read_heads=2),
    "dnc": lambda: Dnc(num_slots=6, word_size=3, read_heads=2),
    "dnc_links": lambda: Dnc(num_slots=6, word_size=3, read_heads=2, links=True),
    "sparse": lambda: Sparse(OwnStore(6), word_size=3, read_heads=2, slots_per_head=2),
}
every_memory = pytest.mark.parametrize("memory", MEMORIES)


def cell_with(memory: str, intervention: Intervention) -> MemoryCell:
    """With a controller that keeps nothing, so that the past is in the memory and in what is read of it."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"controller": "feedforward", "hidden_size": 7, "tie": True}
    return MemoryCell(4, 5, memory=MEMORIES[memory](), **options, intervention=intervention).double()


@every_memory
def test_without_reads_the_output_holds_zeros_and_the_past_is_the_controllers(memory: str) -> None:
    cell = cell_with(memory, "zero_reads")
    inputs, previous = sequence(2, 6)
    outputs, accesses, last = cell.step_by_step(cell.start(2), inputs, previous)
    assert outputs[..., 7:].eq(0).all()
    assert last.reads.eq(0).all()
    for access in accesses:
        assert access.reads.eq(0).all(), "nobody received them"
        assert access.read_weights.eq(0).all()
        assert access.write_weights.ne(0).any()
    projected = cell.controller.project(torch.cat([inputs, previous], dim=-1))
    torch.testing.assert_close(outputs[..., :7], projected.relu())


def test_a_wiped_memory_holds_one_step_alone() -> None:
    cell = small_cell(intervention="wipe_memory")
    inputs, previous = sequence(2, 6)
    _, accesses, _ = cell.step_by_step(cell.start(2), inputs, previous)
    for access in accesses:
        assert ((access.state.memory - 1e-6).abs() > 1e-5).any(-1).sum(-1).max() <= 3  # two heads, slot 0


@every_memory
@pytest.mark.parametrize("intervention", ["none", "wipe_memory"])
def test_in_a_wiped_memory_nothing_older_can_be_found(memory: str, intervention: Intervention) -> None:
    cell = cell_with(memory, intervention)
    inputs, previous = sequence(2, 6)
    state = cell.start(2)
    used = state._replace(access=cell(state, inputs[:, :4], previous[:, :4])[1].access)
    given, others = (cell.step_by_step(start, inputs[:, 4:], previous[:, 4:]) for start in (state, used))
    assert torch.allclose(given[0], others[0], rtol=0, atol=1e-9) == (intervention == "wipe_memory")
    found = read_amounts(visits(given[1], touched_slots(given[1])))
    assert (found[:, 1, 0] == 0).all() == (intervention == "wipe_memory")


def test_without_its_state_the_controller_knows_the_past_through_the_reads_alone() -> None:
    cell = small_cell(intervention="zero_controller")
    inputs, previous = sequence(2, 4)
    state = cell.start(2)
    other = state._replace(controller=ControllerState(*(torch.randn_like(part) for part in state.controller)))
    torch.testing.assert_close(cell(state, inputs, previous)[0], cell(other, inputs, previous)[0])


def test_shuffled_keys_change_what_is_stored_and_not_what_is_looked_up() -> None:
    cell, shuffled = small_cell(), small_cell(intervention="shuffle_keys")
    inputs, previous = sequence(2, 3)
    first, second = (c._interface_offsets(c.start(2).content, inputs, previous)[0] for c in (cell, shuffled))
    words = 2 * 3
    torch.testing.assert_close(first[..., :words], second[..., :words])
    assert not torch.allclose(first[:, 1:, words : 2 * words], second[:, 1:, words : 2 * words])
    torch.testing.assert_close(first[..., 2 * words :], second[..., 2 * words :])


@pytest.mark.parametrize(("intervention", "weight"), [("none", 1.0), ("shuffle_keys", 0.25)])
def test_what_is_stored_under_shuffled_keys_is_not_found(intervention: Intervention, weight: float) -> None:
    """Four slots for nothing and three images, whose contents are a number of the word each, four apart."""
    options = {"num_slots": 4, "word_size": 16, "read_heads": 1, "strength_offset": 30.0}
    cell = small_cell(**options, intervention=intervention)
    assert cell.content is not None
    assert cell.label_content is not None
    with torch.no_grad():
        for parameter in (cell.interface.weight, cell.interface.bias, cell.label_content.weight):
            parameter.zero_()
        cell.interface.bias[2 * 16] = -20  # the write gate: always to the least used slot
        cell.content.weight.copy_(20 * torch.eye(16)[:, ::4])
    state = cell.start(1)
    state = state._replace(access=state.access._replace(memory=torch.zeros(1, 4, 16, dtype=torch.double)))
    images = torch.eye(4, dtype=torch.double)[[0, 1, 2, 0]].unsqueeze(0)
    _, accesses, _ = cell.step_by_step(state, images, torch.zeros(1, 4, 5, dtype=torch.double))
    slot = accesses[1].write_weights.argmax(-1)  # the first image is stored when the second is seen
    assert accesses[3].read_weights[0, 0, slot].item() == pytest.approx(weight, abs=1e-6)


def test_with_a_skip_the_control_shows_its_input_as_well() -> None:
    cell = LstmCell(4, 5, hidden_size=7, skip=True).double()
    inputs, previous = sequence(3, 6)
    outputs, _ = cell(cell.start(3), inputs, previous)
    assert outputs.shape == (3, 6, cell.output_size)
    assert torch.equal(outputs[..., 7:], inputs)
