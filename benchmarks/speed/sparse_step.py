"""`sparse_step`: a step of a memory that was filled beforehand, with 10,000 rows and with a million.

The rows are what a trained network wrote: the memories that streams over training classes leave, one beside
the other. The step is that of the same network with sparse access in the place of its own memory, halfway
through streams over test classes: controller, writes, and four heads that read four slots each, with the
search and all that keeps it up. The peer is the same step with an exact search. Recall is the share, of the
slots that the exact search reads, that are read; what an episode holds itself, which both search exactly, is
left out of it.
"""

import copy
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.measure import Row, Side, interleave
from benchmarks.speed.setting import ONE_CORE, Setting
from benchmarks.speed.steps import timed
from fewshot.data.split import ClassPool
from fewshot.episodes.batch import StreamBatch, Support
from fewshot.episodes.protocol import Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import LearnerError
from fewshot.harness.checkpoint import load_learner
from fewshot.learners.mann import Mann
from fewshot.memory.cell import MemoryCell, MemoryState
from fewshot.memory.external import Access
from fewshot.memory.lrua import Lrua
from fewshot.memory.search import ExactSearch, FaissSearch, Search
from fewshot.memory.sparse import Sparse
from fewshot.memory.store import OverlayStore

SIZES = {"sparse_step_10k": 10_000, "sparse_step_1m": 1_000_000}
PEER = "exact search"
STREAM, BATCH = Stream(5, 50), 16
MIDDLE, EVERY = STREAM.length // 2, 5
"""The step that is timed, and every how many steps the recall is taken."""
WRITERS = 64
"""Streams side by side whose memories become rows."""
OPEN = 10.0
"""The logit of a write gate, which the network that was trained has not."""


def measure(setting: Setting) -> list[Row]:
    """Both sizes in the same rounds, so that one can be told from the other."""
    ONE_CORE.prepare()
    learner = load_learner(setting.checkpoint("mann"), "mann").requires_grad_(False)
    assert isinstance(learner, Mann)
    rows = written_rows(learner, setting.train, max(SIZES.values()))
    streams = cell_inputs(learner, setting.test)
    sides: dict[str, Side] = {}
    notes = {}
    for name, size in SIZES.items():
        began = time.perf_counter()
        try:
            index = FaissSearch(rows[:size])
        except LearnerError as error:
            return [Row(name, str(ONE_CORE), "ms", peer=PEER, note=str(error)) for name in SIZES]
        built = time.perf_counter() - began
        cell, exact = (sparse_cell(learner, base) for base in (index, ExactSearch(rows[:size])))
        state, recall = follow(cell, exact, *streams)
        step = (state, *(part[:, MIDDLE : MIDDLE + 1] for part in streams))
        sides |= {name: timed(partial(cell, *step)), f"{name} {PEER}": timed(partial(exact, *step))}
        held = state.access.held.words
        notes[name] = (
            f"{BATCH} episodes share {size:,} rows ({_megabytes(rows[:size].nbytes)}) and their index "
            f"({_megabytes(index.index_bytes)}, built in {built:.1f} s), and hold {held.shape[1]} of their "
            f"own ({_megabytes(held.nbytes)} in all); recall@{cell.memory.slots_per_head} {recall:.3f}"
        )
    seconds = interleave(sides, setting.rounds)
    small, large = SIZES
    notes[large] += f"; {seconds[large] / seconds[small]:.2f} times as long as with {SIZES[small]:,}"
    return [
        Row(
            name,
            str(ONE_CORE),
            "ms",
            ours=1e3 * seconds[name],
            peer=PEER,
            peer_value=1e3 * seconds[f"{name} {PEER}"],
            note=notes[name],
        )
        for name in SIZES
    ]


def written_rows(learner: Mann, pool: ClassPool, count: int) -> Tensor:
    """(count, word): the memories that a learner has after streams over a pool's classes, turned ones too."""
    sampler = EpisodeSampler(pool.with_rotations(), STREAM, episode_seed=0)
    rows: list[Tensor] = []
    while sum(map(len, rows)) < count:
        batch = sampler.batch(WRITERS * len(rows), WRITERS)
        assert isinstance(batch, StreamBatch)
        state = learner.adapt(Support(batch.images, batch.labels, batch.way))
        rows.append(state.cell.access.memory.flatten(0, 1))
    return torch.cat(rows)[:count]


def cell_inputs(learner: Mann, pool: ClassPool) -> tuple[Tensor, Tensor]:
    """What a cell is given in streams over a pool's classes: features and previous labels, step by step."""
    batch = EpisodeSampler(pool, STREAM, episode_seed=0).batch(0, BATCH)
    assert isinstance(batch, StreamBatch)
    shown = F.one_hot(batch.labels[:, :-1], batch.way).to(batch.images.dtype)
    return learner.embed(batch.images), F.pad(shown, (0, 0, 1, 0))


def sparse_cell(learner: Mann, base: Search) -> MemoryCell:
    """The learner's cell with sparse access over a base; its write gates are open, all else is as trained."""
    cell = copy.deepcopy(learner.cell)
    assert isinstance(cell, MemoryCell)
    assert isinstance(cell.memory, Lrua)
    assert cell.memory.strength_offset is not None
    heads, vectors, old = cell.memory.read_heads, cell.memory.vector_size, cell.interface
    cell.memory = Sparse(
        OverlayStore(base),
        word_size=cell.memory.word_size,
        read_heads=heads,
        strength_offset=cell.memory.strength_offset,
    )
    cell.interface = nn.Linear(old.in_features, cell.memory.interface_size).requires_grad_(False)
    gates = old.weight.new_zeros(heads, old.in_features), old.bias.new_full((heads,), OPEN)
    for new, trained, gate in zip(cell.interface.parameters(), old.parameters(), gates, strict=True):
        new.copy_(torch.cat([trained[:vectors], gate, trained[vectors:]]))
    return cell


def follow(
    cell: MemoryCell, exact: MemoryCell, inputs: Tensor, previous_labels: Tensor
) -> tuple[MemoryState, float]:
    """The state before the middle of the streams, and the recall over all of them."""
    state = middle = cell.start(len(inputs))
    found = []
    for step in range(STREAM.length):
        given = inputs[:, step : step + 1], previous_labels[:, step : step + 1]
        if step == MIDDLE:
            middle = state
        _, (access,), after = cell.step_by_step(state, *given)
        if step % EVERY == 0:
            _, (truth,), _ = exact.step_by_step(state, *given)
            found.append(found_in_base(access, truth, state))
        state = after
    return middle, float(torch.cat(found).float().mean())


def found_in_base(access: Access, truth: Access, before: MemoryState) -> Tensor:
    """Of each slot that should be read and that the episode does not hold itself, whether it is: bool."""
    assert access.read_slots is not None
    assert truth.read_slots is not None
    assert truth.write_slots is not None
    own = torch.cat([before.access.held.slots, truth.write_slots.flatten(1)], dim=1)
    hit = (truth.read_slots.unsqueeze(3) == access.read_slots.unsqueeze(2)).any(3)
    held = (truth.read_slots.flatten(1).unsqueeze(2) == own.unsqueeze(1)).any(2).view(hit.shape)
    return hit[~held]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
