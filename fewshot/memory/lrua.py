"""Least recently used access, one step of it: Santoro et al. 2016 (arXiv:1605.06065), equations 2 to 8.

| name          | symbol | equation, at step t                              | shape                    |
|---------------|--------|--------------------------------------------------|--------------------------|
| memory        | M      | M_{t-1}(i) + w^w_t(i) a_t, for all heads         | (batch, slot, word)      |
| key           | k      | from the controller                              | (batch, read_head, word) |
| add           | a      | k_t in the paper                                 | (batch, read_head, word) |
| write_gate    | g      | sigmoid(alpha_t), from the controller            | (batch, read_head)       |
| usage_decay   | gamma  | 0.99; 0.95 in most public code                   | number                   |
| read_weights  | w^r    | softmax over i of cosine(k_t, M_t(i))            | (batch, read_head, slot) |
| least_used    | w^lu   | 1 at the n smallest of w^u_{t-1}, n = read heads | (batch, read_head, slot) |
| write_weights | w^w    | g w^r_{t-1} + (1 - g) w^lu_{t-1}                 | (batch, read_head, slot) |
| usage         | w^u    | gamma w^u_{t-1} + w^r_t + w^w_t, for all heads   | (batch, slot)            |
| reads         | r      | sum over i of w^r_t(i) M_t(i)                    | (batch, read_head, word) |

The order is the paper's: the least used slot is set to zero, then all heads write, then they address and
read what is there now. Every function is pure: the state goes in and a new one comes out.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewshot.memory.addressing import content_weights

LeastUsed = Literal["shared", "per_head"]
"""Which least used slots a write head may take: "shared" gives all heads the one mask of n slots (the paper),
so that the n slots receive the same blend; "per_head" gives head j the j-th least used slot for itself."""

INITIAL_WORD = 1e-6
"""What fills an empty memory: a constant trains best (Collier and Beel 2018), and zero has no direction."""


class LruaState(NamedTuple):
    """What lies in memory between two steps; the module's table gives the shapes."""

    memory: Tensor
    read_weights: Tensor
    usage: Tensor


def initial_state(
    batch: int, *, num_slots: int, word_size: int, read_heads: int, like: Tensor | None = None
) -> LruaState:
    """An empty memory; all heads look at slot 0, which alone counts as used.

    like: a tensor whose device and data type the state takes.
    """
    like = torch.zeros(()) if like is None else like
    read_weights = like.new_zeros(batch, read_heads, num_slots)
    read_weights[:, :, 0] = 1
    usage = like.new_zeros(batch, num_slots)
    usage[:, 0] = 1
    return LruaState(like.new_full((batch, num_slots, word_size), INITIAL_WORD), read_weights, usage)


def least_used_slots(usage: Tensor, count: int) -> Tensor:
    """The `count` slots of smallest usage, least used first, (batch, count) int64; ties go to the lower slot.

    At the start nearly all usages are equal, so an order left to the library would decide the first writes.
    """
    return torch.sort(usage, dim=-1, stable=True).indices[:, :count]


def least_used_mask(slots: Tensor, num_slots: int, mode: LeastUsed) -> Tensor:
    """The least_used of the table: (batch, 1, slot) of n ones if shared, else one per head."""
    per_head = torch.nn.functional.one_hot(slots, num_slots)
    return per_head.sum(dim=1, keepdim=True) if mode == "shared" else per_head


def lrua_step(
    state: LruaState,
    *,
    key: Tensor,
    add: Tensor,
    write_gate: Tensor,
    strength: Tensor | None = None,
    usage_decay: float = 0.99,
    least_used: LeastUsed = "shared",
) -> tuple[Tensor, LruaState]:
    """Write, then read: the reads, (batch, read_head, word), and the state after the step.

    strength: (batch, read_head), how sharply to read; None is the paper's bare cosine.
    Usage passes no gradient, as choosing slots by it could use none.
    """
    memory, read_weights, usage = state
    slots = least_used_slots(usage, key.shape[1])
    mask = least_used_mask(slots, memory.shape[1], least_used).to(memory.dtype)
    write_weights = torch.lerp(mask, read_weights, write_gate.unsqueeze(-1))
    kept = torch.ones_like(usage).scatter_(1, slots[:, :1], 0.0)
    memory = torch.baddbmm(memory * kept.unsqueeze(-1), write_weights.mT, add)
    read_weights = content_weights(key, memory, strength)
    with torch.no_grad():
        usage = usage_decay * usage + (read_weights + write_weights).sum(dim=1)
    return torch.bmm(read_weights, memory), LruaState(memory, read_weights, usage)
