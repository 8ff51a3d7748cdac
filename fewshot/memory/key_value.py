"""A key-value memory with ages: Kaiser, Nachum, Roy and Bengio 2017, "Learning to Remember Rare Events".

| name       | symbol | equation                                                | shape                |
|------------|--------|---------------------------------------------------------|----------------------|
| query      | q      | of length 1                                             | (batch, key)         |
| value      | v      | what the query is to be answered with, one-hot          | (batch, value)       |
| keys       | K      | of length 1, zeros where nothing is stored              | (batch, slot, key)   |
| values     | V      | one-hot, zeros where nothing is stored                  | (batch, slot, value) |
| ages       | A      | updates since the slot was last written                 | (batch, slot) int64  |
| similarity |        | q . K[i]                                                | (batch, slot)        |
| nearest    | n_1    | the slot of greatest similarity                         | (batch,)             |
| slot       |        | n_1 if V[n_1] = v (right), else that of greatest age    | (batch,)             |
| written    |        | 1 / |q + K[n_1]| if right, else 1                       | (batch,)             |
| kept       |        | 1 / |q + K[n_1]| if right, else 0                       | (batch,)             |
| key after  |        | in the slot: written q + kept K[slot]; its value is v   | (batch, key)         |
| ages after |        | 0 for the slot written, A[i] + 1 for all others         |                      |
| usage      |        | greatest age - A[i]; 0 where nothing is stored          | (batch, slot)        |
| loss       |        | max(0, best wrong similarity - best right one + margin) | number               |

So a key is a sum of the queries that were ever put there. Usage is for the microscope: a slot of none is the
next to give way.

Two departures. The paper looks at the 256 nearest slots only, and adds noise to the ages lest many processes
that share one memory overwrite the same slot; here all slots are looked at and one process writes, so the
memory is exact and deterministic. Ages are never equal: one slot is written at a time, and an empty memory
starts with ages that fill it in the order of its slots.

The memory is bounded: when it is full, the slot not renewed for longest gives way. Nothing is wiped in
between, so a stream may be of any length (the paper's lifelong learning). No gradient enters stored keys.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SHORTEST = 1e-12
"""Of a query and a key that point away from each other, the sum is divided by this, and stays zero."""


class KeyValueState(NamedTuple):
    """What lies in memory between two updates; the module's table gives the shapes."""

    keys: Tensor
    values: Tensor
    ages: Tensor


def initial_state(
    batch: int, *, num_slots: int, key_size: int, value_size: int, like: Tensor
) -> KeyValueState:
    """An empty memory, on the device and of the data type of `like`."""
    ages = torch.arange(num_slots, 0, -1, device=like.device)
    return KeyValueState(
        like.new_zeros(batch, num_slots, key_size),
        like.new_zeros(batch, num_slots, value_size),
        ages.repeat(batch, 1),
    )


def similarity(state: KeyValueState, queries: Tensor) -> Tensor:
    """(batch, query, key) -> (batch, query, slot); -inf where nothing is stored."""
    empty = (state.values == 0).all(-1)
    return (queries @ state.keys.mT).masked_fill(empty.unsqueeze(1), -torch.inf)


class Change(NamedTuple):
    """What an update makes of one key: written times the query and kept times what it was; (batch,) each."""

    slot: Tensor
    written: Tensor
    kept: Tensor


@torch.no_grad()
def change(state: KeyValueState, query: Tensor, value: Tensor) -> Change:
    """What it does to the memory to be told the value of a query: (batch, key), (batch, value)."""
    nearest = similarity(state, query.unsqueeze(1)).squeeze(1).argmax(-1)
    right = (at(state.values, nearest) == value).all(-1)
    share = 1 / (query + at(state.keys, nearest)).norm(dim=-1).clamp(min=SHORTEST)
    return Change(
        slot=torch.where(right, nearest, state.ages.argmax(-1)),
        written=torch.where(right, share, 1),
        kept=torch.where(right, share, 0),
    )


@torch.no_grad()
def update(state: KeyValueState, query: Tensor, value: Tensor) -> KeyValueState:
    """The memory after it was told the value of a query: (batch, key), (batch, value)."""
    keys, values, ages = state
    slot, written, kept = change(state, query, value)
    key = written.unsqueeze(-1) * query + kept.unsqueeze(-1) * at(keys, slot)
    is_slot = F.one_hot(slot, ages.shape[1]).bool().unsqueeze(-1)
    return KeyValueState(
        torch.where(is_slot, key.unsqueeze(1), keys),
        torch.where(is_slot, value.unsqueeze(1), values),
        torch.where(is_slot.squeeze(-1), 0, ages + 1),
    )


def usage(state: KeyValueState) -> Tensor:
    """By how many updates each slot is younger than the oldest, 0 where nothing is stored: (batch, slot)."""
    younger = state.ages.amax(dim=-1, keepdim=True) - state.ages
    return younger * state.values.any(-1).to(state.values.dtype)


def at(stored: Tensor, slot: Tensor) -> Tensor:
    """(batch, slot, word), (batch,) -> (batch, word)."""
    return stored[torch.arange(len(slot), device=slot.device), slot]


def margin_loss(scores: Tensor, labels: Tensor, margin: float) -> Tensor:
    """The paper's loss, averaged over the queries that have both a right and a wrong slot; 0 if none has.

    scores: (batch, query, value), the best similarity among the slots of each value, -inf for a value not
    stored; labels: (batch, query), the right one.
    """
    is_right = F.one_hot(labels, scores.shape[-1]).bool()
    right = scores.masked_fill(~is_right, -torch.inf).amax(-1)
    wrong = scores.masked_fill(is_right, -torch.inf).amax(-1)
    both = (right > -torch.inf) & (wrong > -torch.inf)
    return F.relu(wrong[both] - right[both] + margin).sum() / both.sum().clamp(min=1)
