"""Sparse access memory, one step of it: Rae et al. 2016 (arXiv:1610.09027), equations 4 to 6.

| name          | symbol | equation, at step t                                    | shape                    |
|---------------|--------|--------------------------------------------------------|--------------------------|
| words         | M      | M_{t-1}, 0 at least_used; plus w^W_t a_t of all heads  | (batch, row, word)       |
| key           | q      | from the controller                                    | (batch, read_head, word) |
| add           | a      | from the controller                                    | (batch, read_head, word) |
| read_rows     | s      | the k rows of largest cosine(q_t, M_t(i))              | (batch, read_head, k)    |
| read_weights  | w^R    | softmax over those k of strength * cosine(q_t, M_t(s)) | (batch, read_head, k)    |
| reads         | r      | sum over those k of w^R_t M_t(s)                       | (batch, read_head, word) |
| write_gate    | alpha  | sigmoid, from the controller                           | (batch, read_head)       |
| interpolation | gamma  | sigmoid, from the controller                           | (batch, read_head)       |
| least_used    | I^U    | the rows of smallest usage, one for each head          | (batch, read_head)       |
| write_weights | w^W    | alpha_t [gamma_t w^R_{t-1}, 1 - gamma_t at least_used] | (batch, read_head, k+1)  |
| usage         | T - U  | the last step with w^R + w^W > delta, all heads summed | (batch, row)             |

As in the least recently used memory (`fewshot.memory.lrua`), a step writes and then reads what is there now.
Gradients go through the k rows that a head reads, and none through the choice of them. Departures from the
paper: the strength is learned, and each head has its own least recently used slot. Rows are those that an
episode holds itself, of all slots that there are: see `fewshot.memory.store`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.errors import LearnerError
from fewshot.memory.addressing import content_weights
from fewshot.memory.external import Access, ExternalMemory
from fewshot.memory.store import Rows, Store


class SparseState(NamedTuple):
    """What lies in memory between two steps; the module's table gives the shapes.

    steps: (batch, 1), how many there were.
    """

    held: Rows
    read_rows: Tensor
    read_weights: Tensor
    steps: Tensor


class Sparse(ExternalMemory):
    """The memory of this module, fed by a controller's interface (see `fewshot.memory.external`).

    store: where the slots lie; slots_per_head: k, how many of them a head reads; access_threshold: delta, the
        weight above which a slot counts as used;
    strength_offset: reads with the strength offset + softplus(learned);
    gate_bias: the write gate's logit at the start.
    """

    def __init__(
        self,
        store: Store,
        *,
        word_size: int = 40,
        read_heads: int = 4,
        slots_per_head: int = 4,
        access_threshold: float = 0.005,
        strength_offset: float = 5.0,
        gate_bias: float = 0.0,
    ) -> None:
        if store.num_slots < max(read_heads, slots_per_head):
            raise LearnerError(
                "num_slots must be at least read_heads (each has a least used slot) and slots_per_head; "
                f"got {store.num_slots}, {read_heads} and {slots_per_head}"
            )
        super().__init__(
            num_slots=store.num_slots,
            word_size=word_size,
            read_heads=read_heads,
            add_heads=read_heads,
            controls=3 * read_heads,
        )
        self.store = store
        self.slots_per_head, self.access_threshold = slots_per_head, access_threshold
        self.strength_offset, self.gate_bias = strength_offset, gate_bias

    def start(self, batch: int, like: Tensor) -> SparseState:
        """Nothing was read yet: all heads look at slot 0, with no weight."""
        read_weights = like.new_zeros(batch, self.read_heads, self.slots_per_head)
        return SparseState(
            held=self.store.start(batch, self.word_size, like),
            read_rows=torch.zeros_like(read_weights, dtype=torch.int64),
            read_weights=read_weights,
            steps=like.new_zeros(batch, 1),
        )

    def step(self, state: SparseState, interface: Tensor) -> Access:
        keys, adds, controls = self.split(interface)
        key, add = torch.tanh(keys), torch.tanh(adds)
        gates, strengths = controls.tensor_split([2 * self.read_heads], dim=1)
        write_gate, interpolation = torch.sigmoid(gates).unsqueeze(-1).chunk(2, dim=1)
        each = torch.arange(len(key), device=key.device).unsqueeze(1)

        held, least_used = self.store.least_used(state.held, self.read_heads)
        write_rows = torch.cat([state.read_rows, least_used.unsqueeze(-1)], dim=-1)
        shares = torch.cat([interpolation * state.read_weights, 1 - interpolation], dim=-1)
        write_weights = write_gate * shares
        written = (write_weights.unsqueeze(-1) * add.unsqueeze(2)).flatten(1, 2)
        words = held.words.index_put((each, least_used), torch.zeros_like(written[0, 0]))
        words = words.index_put_((each, write_rows.flatten(1)), written, accumulate=True)

        held, read_rows = self.store.nearest(held._replace(words=words), key, self.slots_per_head)
        # As a memory of k slots for each head.
        found = held.words[each, read_rows.flatten(1)].view(-1, self.slots_per_head, self.word_size)
        strength = self.strength_offset + F.softplus(strengths)
        read_weights = content_weights(key.view(-1, 1, self.word_size), found, strength.view(-1, 1))
        reads = torch.bmm(read_weights, found).view(key.shape)
        read_weights = read_weights.view(read_rows.shape)

        steps = state.steps + 1
        with torch.no_grad():
            rows = torch.cat([read_rows, write_rows], dim=-1).flatten(1)
            weights = torch.cat([read_weights, write_weights], dim=-1).flatten(1)
            accessed = torch.zeros_like(held.usage).scatter_add_(1, rows, weights) > self.access_threshold
            held = held._replace(usage=torch.where(accessed, steps, held.usage))
        return Access(
            reads=reads,
            state=SparseState(held, read_rows, read_weights, steps),
            read_weights=read_weights,
            write_weights=write_weights,
            usage=self.store.usage_by_slot(held),
            read_slots=held.slots[each.unsqueeze(2), read_rows],
            write_slots=held.slots[each.unsqueeze(2), write_rows],
            kept=F.pad(torch.ones_like(state.read_weights), (0, 1)),
        )

    def first_controls(self) -> Tensor:
        """The write gates' logits; the others start where the library draws them (NaN says so)."""
        first = torch.full((self.controls,), torch.nan)
        first[: self.read_heads] = self.gate_bias
        return first
