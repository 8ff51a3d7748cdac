"""What is read is shared out among what was written: a slow twin, planted weights, sparse memories, LRUA."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fewshot.memory.attribution import amounts, read_amounts, touched_slots, visits
from fewshot.memory.external import Access
from fewshot.memory.lrua import initial_state, lrua_step
from tests.memory.cells import lrua_cell

Array = NDArray[np.float64]


def access(read: Any, write: Any, **others: Any) -> Access:
    """A step of one episode; read, write: (head, slot)."""
    weights = [torch.as_tensor(part, dtype=torch.double).unsqueeze(0) for part in (read, write)]
    return Access(torch.zeros(1, 1, 1), None, *weights, **others)


def of(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.double)


def found(accesses: list[Access]) -> Tensor:
    return read_amounts(visits(accesses, touched_slots(accesses)))


def slow_read_amounts(read: Array, write: Array, kept: Array) -> Array:
    """(step, step) for one episode: every vector that was ever added is followed through every erasing.

    read, write: (step, head, slot); kept: (step, slot).
    """
    steps, heads, slots = read.shape
    amount = np.zeros((steps, steps))
    for now in range(steps):
        for then in range(now + 1):
            for slot in range(slots):
                left = sum(write[then, head, slot] for head in range(heads))
                for between in range(then + 1, now + 1):
                    left *= kept[between, slot]
                for head in range(heads):
                    amount[now, then] += read[now, head, slot] * left
    return amount


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
def test_amounts_are_those_of_a_slow_twin(seed: int, steps: int, heads: int) -> None:
    random = np.random.default_rng(seed)
    read, write = random.random((2, 2, steps, heads, 4))
    kept = random.random((2, steps, 4)) * random.integers(0, 2, (2, steps, 4))
    tensors = [torch.from_numpy(part).unbind(1) for part in (read, write, kept)]
    accesses = [Access(torch.zeros(2, 1, 1), None, r, w, kept=k) for r, w, k in zip(*tensors, strict=True)]
    for episode, amount in enumerate(found(accesses)):
        np.testing.assert_allclose(amount, slow_read_amounts(read[episode], write[episode], kept[episode]))


def test_amounts_worked_out_by_hand() -> None:
    accesses = [
        access([[0.0, 0.0]], [[1.0, 0.0]]),
        access([[0.5, 0.5]], [[0.25, 0.75]]),  # beside what step 0 left in slot 0
        access([[1.0, 0.0]], [[0.0, 1.0]], kept=of(1.0, 0.0)),  # slot 1 is emptied, then written
        access([[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0]], kept=of(0.5, 1.0)),  # half of slot 0 is gone
    ]
    expected = [
        [0.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0, 0.0],  # 0.5 x 1; 0.5 x 0.25 + 0.5 x 0.75
        [1.0, 0.25, 0.0, 0.0],  # slot 0 alone
        [0.5, 0.125, 1.0, 0.0],  # slot 1 holds step 2 alone; half of slot 0
    ]
    torch.testing.assert_close(found(accesses)[0], torch.tensor(expected, dtype=torch.double))


def test_erasing_forgets() -> None:
    uniform = [[0.5, 0.5]]
    written = [access(uniform, uniform), access(uniform, [[0.0, 0.0]], kept=of(0.0, 0.0))]
    assert found(written)[0, 0, 0] == 0.5
    assert found(written)[0, 1].eq(0).all()


def test_what_is_read_is_what_was_written_in_these_amounts() -> None:
    """Of a least recently used memory whose heads all write the same vector, the reads follow exactly."""
    generator = torch.Generator().manual_seed(0)
    state = initial_state(3, num_slots=5, word_size=4, read_heads=2, like=torch.zeros((), dtype=torch.double))
    state = state._replace(memory=torch.zeros_like(state.memory))
    accesses, written = [], []
    for _ in range(8):
        add = torch.randn(3, 1, 4, dtype=torch.double, generator=generator)
        made = lrua_step(
            state,
            key=torch.randn(3, 2, 4, dtype=torch.double, generator=generator),
            add=add.expand(3, 2, 4),
            write_gate=torch.rand(3, 2, dtype=torch.double, generator=generator),
            strength=torch.full((3, 2), 4.0, dtype=torch.double),
        )
        state = made.state
        accesses.append(made)
        written.append(add[:, 0])
    reads = torch.stack([made.reads.sum(dim=1) for made in accesses], dim=1)
    torch.testing.assert_close(found(accesses) @ torch.stack(written, dim=1), reads)


def sparse(weights: Array, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(head, slot), mostly zero, as weights and slots (1, head, count), in any order."""
    slots = np.stack([random.permutation(np.argsort(-row)[:count]) for row in weights])
    kept = np.take_along_axis(weights, slots, axis=1)
    return torch.from_numpy(kept).unsqueeze(0), torch.from_numpy(slots).unsqueeze(0)


def test_a_sparse_memory_is_seen_through_the_slots_that_it_touches() -> None:
    random = np.random.default_rng(0)
    read, write = random.random((2, 6, 2, 30))
    read[:, :, 12:] = write[:, :, 12:] = 0  # so that slots beyond are not touched
    read *= random.random(read.shape) > 0.8
    write *= random.random(write.shape) > 0.8
    erased = random.random((6, 2, 30))
    usage = torch.from_numpy(random.random((6, 1, 30)))
    dense, thin = [], []
    for step in range(6):
        read_weights, read_slots = sparse(read[step], 6, random)
        write_weights, write_slots = sparse(write[step], 6, random)
        by_head = torch.from_numpy(erased[step]).unsqueeze(0).gather(2, write_slots)
        kept = torch.ones(1, 30, dtype=torch.double)
        for head in range(2):
            for place, slot in enumerate(write_slots[0, head]):
                kept[0, slot] *= by_head[0, head, place]
        dense.append(access(read[step], write[step], usage=usage[step], kept=kept))
        slots = {"read_slots": read_slots, "write_slots": write_slots}
        thin.append(
            Access(torch.zeros(1), None, read_weights, write_weights, usage[step], **slots, kept=by_head)
        )
    touched = touched_slots(thin)
    assert touched.tolist() == sorted(
        {int(s) for a in thin for s in [*a.read_slots.flatten(), *a.write_slots.flatten()]}
    )
    assert len(touched) < 30
    assert touched_slots(dense).tolist() == list(range(30))
    torch.testing.assert_close(found(thin), found(dense))
    for one, other in zip(visits(thin, touched), visits(dense, touched_slots(dense)), strict=True):
        for seen, whole in zip(one, other, strict=True):
            torch.testing.assert_close(seen, whole[:, touched])


@pytest.mark.parametrize("kept", [None, torch.full((1, 3), 0.5)])
def test_a_memory_that_says_nothing_of_erasing_keeps_everything(kept: Tensor | None) -> None:
    third = [[1 / 3] * 3]
    steps = [access(third, [[1.0, 0.0, 0.0]]), access(third, [[0.0, 0.0, 0.0]], kept=kept)]
    last = list(amounts(visits(steps, touched_slots(steps))))[-1]
    assert last[0, :, 0].tolist() == [1.0 if kept is None else 0.5, 0.0, 0.0]


def watched(**changes: Any) -> list[Access]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"controller": "lstm", "hidden_size": 7, "num_slots": 6, "word_size": 3}
    options |= {"read_heads": 2, "add_vector": "apart", "strength_offset": 5.0, "tie": True}
    cell = lrua_cell(4, 5, **(options | changes))
    with torch.no_grad():
        return cell.step_by_step(cell.start(2), torch.randn(2, 5, 4), torch.zeros(2, 5, 5))[1]


def test_the_least_used_slot_keeps_nothing() -> None:
    for made in watched():
        assert made.kept is not None
        assert made.kept.sum(dim=1).tolist() == [5.0, 5.0]
        assert made.kept.unique().tolist() == [0.0, 1.0]


def test_a_memory_that_is_wiped_holds_the_last_step_alone() -> None:
    amount = found(watched(intervention="wipe_memory"))
    assert amount.diagonal(dim1=1, dim2=2).gt(0).all()
    assert amount.sub(amount.diagonal(dim1=1, dim2=2).diag_embed()).eq(0).all()
