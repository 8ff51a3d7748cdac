"""Least recently used access, one step of it: Santoro et al. 2016 (arXiv:1605.06065), equations 2 to 8.

| name          | symbol | equation, at step t                              | shape                    |
|---------------|--------|--------------------------------------------------|--------------------------|
| memory        | M      | M_{t-1}(i) + w^w_t(i) a_t, for all heads         | (batch, slot, word)      |
| key           | k      | from the controller                              | (batch, read_head, word) |
| add           | a      | k_t in the paper                                 | (batch, read_head, word) |
| write_gate    | g      | sigmoid(alpha_t), from the controller            | (batch, read_head)       |
| usage_decay   | gamma  | 0.99; 0.95 in most public code                   | number                   |
| read_weights  | w^r    | softmax over i of cosine(k_t, M_t(i)); `Order`   | (batch, read_head, slot) |
| least_used    | w^lu   | 1 at the n smallest of w^u_{t-1}, n = read heads | (batch, read_head, slot) |
| write_weights | w^w    | g w^r_{t-1} + (1 - g) w^lu_{t-1}                 | (batch, read_head, slot) |
| usage         | w^u    | gamma w^u_{t-1} + w^r_t + w^w_t, for all heads   | (batch, slot)            |
| reads         | r      | sum over i of w^r_t(i) M_t(i)                    | (batch, read_head, word) |

The order is the paper's, unless another is asked for (`Order`): the least used slot is set to zero, then all
heads write, then they address and read what is there now. Every function is pure: the state goes in and a new
one comes out.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.memory.addressing import content_weights
from fewshot.memory.external import INITIAL_WORD, Access, ExternalMemory

LeastUsed = Literal["shared", "per_head"]
"""Which least used slots a write head may take: "shared" gives all heads the one mask of n slots (the paper),
so that the n slots receive the same blend; "per_head" gives head j the j-th least used slot for itself."""

AddVector = Literal["key", "apart"]
"""What a head writes: its key (the paper) or a vector of its own (most public code)."""

Order = Literal["write_first", "address_first"]
"""Where read heads look: "write_first" in what was just written (the paper); "address_first" in the memory
before, whose weights then read the new words (snowkylin/ntm and Leputa/MANN-meta-learning, the public codes
with the best figures): what is stored at a step is found from the next one on."""


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
    order: Order = "write_first",
) -> Access:
    """Write, then read: the reads, (batch, read_head, word), and the state after the step, an `LruaState`.

    strength: (batch, read_head), how sharply to read; None is the paper's bare cosine.
    Usage passes no gradient, as choosing slots by it could use none.
    """
    memory, read_weights, usage = state
    slots = least_used_slots(usage, key.shape[1])
    mask = least_used_mask(slots, memory.shape[1], least_used).to(memory.dtype)
    write_weights = torch.lerp(mask, read_weights, write_gate.unsqueeze(-1))
    kept = torch.ones_like(usage).scatter_(1, slots[:, :1], 0.0)
    written = torch.baddbmm(memory * kept.unsqueeze(-1), write_weights.mT, add)
    read_weights = content_weights(key, written if order == "write_first" else memory, strength)
    with torch.no_grad():
        usage = usage_decay * usage + (read_weights + write_weights).sum(dim=1)
    reads = torch.bmm(read_weights, written)
    state = LruaState(written, read_weights, usage)
    return Access(reads, state, read_weights, write_weights, usage, kept=kept)


class Lrua(ExternalMemory):
    """The memory of this module, fed by a controller's interface (see `fewshot.memory.external`).

    least_used, add_vector, order: see `LeastUsed`, `AddVector` and `Order`; by default as in the paper;
    strength_offset: None reads with a bare cosine, as the paper does; a number reads with the strength
        offset + softplus(learned);
    gate_bias: the write gate's logit at the start; below 0 prefers the least used slots to those just read.
    """

    def __init__(
        self,
        *,
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 4,
        usage_decay: float = 0.99,
        least_used: LeastUsed = "shared",
        add_vector: AddVector = "key",
        strength_offset: float | None = None,
        gate_bias: float = 0.0,
        order: Order = "write_first",
    ) -> None:
        if num_slots < read_heads:
            raise LearnerError(
                f"num_slots must be at least read_heads, as each head has a least used slot; got {num_slots} "
                f"and {read_heads}"
            )
        super().__init__(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            add_heads=read_heads if add_vector == "apart" else 0,
            controls=read_heads if strength_offset is None else 2 * read_heads,
        )
        self.usage_decay, self.least_used, self.gate_bias = usage_decay, least_used, gate_bias
        self.strength_offset, self.order = strength_offset, order

    def start(self, batch: int, like: Tensor) -> LruaState:
        return initial_state(
            batch, num_slots=self.num_slots, word_size=self.word_size, read_heads=self.read_heads, like=like
        )

    def step(self, state: LruaState, interface: Tensor) -> Access:
        keys, adds, controls = self.split(interface)
        key = torch.tanh(keys)
        strength = None
        if self.strength_offset is not None:
            strength = self.strength_offset + F.softplus(controls[:, self.read_heads :])
        return lrua_step(
            state,
            key=key,
            add=torch.tanh(adds) if self.add_heads else key,
            write_gate=torch.sigmoid(controls[:, : self.read_heads]),
            strength=strength,
            usage_decay=self.usage_decay,
            least_used=self.least_used,
            order=self.order,
        )

    def first_controls(self) -> Tensor:
        """The write gates' logits; the strengths start where the library draws them (NaN says so)."""
        first = torch.full((self.controls,), math.nan)
        first[: self.read_heads] = self.gate_bias
        return first
