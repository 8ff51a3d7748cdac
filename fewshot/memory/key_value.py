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
| if right   |        | V[n_1] = v: K[n_1] becomes (q + K[n_1]) / |q + K[n_1]|  |                      |
| if wrong   | n'     | the slot of greatest age: K[n'] becomes q, V[n'] v      | (batch,)             |
| ages after |        | 0 for the slot written, A[i] + 1 for all others         |                      |
| loss       |        | max(0, best wrong similarity - best right one + margin) | number               |

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


@torch.no_grad()
def update(state: KeyValueState, query: Tensor, value: Tensor) -> KeyValueState:
    """The memory after it was told the value of a query: (batch, key), (batch, value)."""
    keys, values, ages = state
    nearest = similarity(state, query.unsqueeze(1)).squeeze(1).argmax(-1)
    found = torch.arange(len(nearest), device=nearest.device), nearest
    right = (values[found] == value).all(-1)
    key = torch.where(right.unsqueeze(-1), F.normalize(query + keys[found], dim=-1), query)
    slot = torch.where(right, nearest, ages.argmax(-1))
    written = F.one_hot(slot, ages.shape[1]).bool().unsqueeze(-1)
    return KeyValueState(
        torch.where(written, key.unsqueeze(1), keys),
        torch.where(written, value.unsqueeze(1), values),
        torch.where(written.squeeze(-1), 0, ages + 1),
    )


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
