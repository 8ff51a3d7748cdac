"""The neural Turing machine's memory, one step of it: Graves et al. 2014 (arXiv:1410.5401), equations 2 to 9.

| name          | symbol | equation, at step t                               | shape                     |
|---------------|--------|---------------------------------------------------|---------------------------|
| erase         | e      | sigmoid, from the controller                      | (batch, write_head, word) |
| add           | a      | tanh, from the controller                         | (batch, write_head, word) |
| write_weights | w^w    | addressed in M_{t-1} (`memory.addressing`)        | (batch, write_head, slot) |
| erased        | M~     | M_{t-1}(i) (1 - w^w_t(i) e_t), for all heads      | (batch, slot, word)       |
| memory        | M      | M~_t(i) + w^w_t(i) a_t, for all heads             | (batch, slot, word)       |
| read_weights  | w^r    | addressed in M_t                                  | (batch, read_head, slot)  |
| reads         | r      | sum over i of w^r_t(i) M_t(i)                     | (batch, read_head, word)  |

The order is that of the equations: what is read, and looked into for it, is M_t, the memory that the step has
written (as in Santoro et al. and the DNC); a write head finds its place before, in M_{t-1}. Most public code
lets all heads look into M_{t-1}, reads there, and writes last: then the image of the step before, whose label
has just come, cannot be found yet.

Nothing counts what is in use. A write head finds a free slot by going on to the next one. Every function is
pure: the state goes in and a new one comes out.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.memory.addressing import content_weights, interpolate, sharpen, shift
from fewshot.memory.external import INITIAL_WORD, Access, ExternalMemory


class NtmState(NamedTuple):
    """What lies in memory between two steps; the module's table gives the shapes."""

    memory: Tensor
    read_weights: Tensor
    write_weights: Tensor


class Aim(NamedTuple):
    """What moves heads: key (batch, head, word), shift_kernel (batch, head, shift), else (batch, head)."""

    key: Tensor
    strength: Tensor
    gate: Tensor
    shift_kernel: Tensor
    sharpening: Tensor


def address(previous: Tensor, memory: Tensor, aim: Aim) -> Tensor:
    """From where heads were to where they go, (batch, head, slot) both; each head's weights sum to 1."""
    content = content_weights(aim.key, memory, aim.strength)
    return sharpen(shift(interpolate(content, previous, aim.gate), aim.shift_kernel), aim.sharpening)


def ntm_step(state: NtmState, *, read: Aim, write: Aim, erase: Tensor, add: Tensor) -> Access:
    """Write, then read: the reads, (batch, read_head, word), and the state after the step, an `NtmState`."""
    memory = state.memory
    write_weights = address(state.write_weights, memory, write)
    # Head by head, of which there are few: torch's product over a dimension takes twice as long.
    kept = functools.reduce(torch.mul, (1 - write_weights.unsqueeze(-1) @ erase.unsqueeze(-2)).unbind(1))
    memory = torch.baddbmm(memory * kept, write_weights.mT, add)
    read_weights = address(state.read_weights, memory, read)
    reads = torch.bmm(read_weights, memory)
    after = NtmState(memory, read_weights, write_weights)
    return Access(reads, after, read_weights, write_weights, kept=kept.detach().mean(-1))


class Ntm(ExternalMemory):
    """The memory of this module, fed by a controller's interface (see `fewshot.memory.external`).

    The controls are the write heads' keys and erase vectors, then the gates, strengths, sharpenings and shift
    kernels of all heads, read heads first.

    shift_range: how many slots a head can shift by in a step, either way;
    strength_offset: the strength is offset + softplus(learned); 0 in the paper;
    role_bias: how firmly heads start as readers and writers, in logits of gate and shift: a read head goes
        where its key is found and stays there, a write head goes on to the next slot whatever is in it. At 0,
        as in the paper, they have to discover that.
    """

    def __init__(
        self,
        *,
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 1,
        write_heads: int = 1,
        shift_range: int = 1,
        strength_offset: float = 0.0,
        role_bias: float = 0.0,
    ) -> None:
        heads, words = read_heads + write_heads, write_heads * word_size
        parts = [words, words, heads, heads, heads, heads * (2 * shift_range + 1)]
        super().__init__(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            add_heads=write_heads,
            controls=sum(parts),
        )
        self.shift_range, self.strength_offset, self.role_bias = shift_range, strength_offset, role_bias
        self._heads, self._parts = [read_heads, write_heads], parts

    def start(self, batch: int, like: Tensor) -> NtmState:
        """An empty memory; read heads are at slot 0, write heads spread over the slots."""
        readers, writers = self._heads
        slots = [0] * readers + [head * self.num_slots // writers for head in range(writers)]
        weights = F.one_hot(torch.tensor(slots, device=like.device), self.num_slots).to(like)
        memory = like.new_full((batch, self.num_slots, self.word_size), INITIAL_WORD)
        return NtmState(memory, *torch.split(weights.expand(batch, -1, -1), self._heads, dim=1))

    def step(self, state: NtmState, interface: Tensor) -> Access:
        read_key, add, controls = self.split(interface)
        write_key, erase, gate, strength, sharpening, shifts = torch.split(controls, self._parts, dim=1)
        moved_by = (
            self.strength_offset + F.softplus(strength),
            torch.sigmoid(gate),
            torch.softmax(shifts.reshape(*gate.shape, -1), dim=-1),
            1 + F.softplus(sharpening),
        )
        readers, writers = zip(*(torch.split(part, self._heads, dim=1) for part in moved_by), strict=True)
        return ntm_step(
            state,
            read=Aim(torch.tanh(read_key), *readers),
            write=Aim(torch.tanh(write_key.reshape(add.shape)), *writers),
            erase=torch.sigmoid(erase.reshape(add.shape)),
            add=torch.tanh(add),
        )

    def first_controls(self) -> Tensor:
        """The heads' roles; all else starts where the library draws it (NaN says so)."""
        readers, writers = self._heads
        first = torch.full((self.controls,), math.nan)
        _, _, gate, _, _, shifts = torch.split(first, self._parts)  # views: what is set in them is set there
        gate[:readers], gate[readers:] = self.role_bias, -self.role_bias
        kernels = shifts.view(readers + writers, -1).zero_()
        kernels[:readers, self.shift_range] = kernels[readers:, self.shift_range + 1] = self.role_bias
        return first
