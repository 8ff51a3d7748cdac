"""The memory of the differentiable neural computer: Graves et al. 2016, Nature 538, 471-476, Methods.

| name              | symbol | equation, at step t                                | shape                    |
|-------------------|--------|----------------------------------------------------|--------------------------|
| read_keys         | k^r    | tanh                                               | (batch, read_head, word) |
| write_vector      | v      | tanh                                               | (batch, 1, word)         |
| write_key         | k^w    | tanh                                               | (batch, 1, word)         |
| erase             | e      | sigmoid                                            | (batch, 1, word)         |
| free_gates        | f      | sigmoid                                            | (batch, read_head)       |
| allocation_gate   | g^a    | sigmoid                                            | (batch, 1)               |
| write_gate        | g^w    | sigmoid                                            | (batch, 1)               |
| read_strengths    | beta^r | strength_offset + softplus; the paper's offset is 1| (batch, read_head)       |
| write_strength    | beta^w | likewise                                           | (batch, 1)               |
| read_modes        | pi     | softmax over backward, content and forward         | (batch, read_head, 3)    |
| retained, usage   | psi, u | `fewshot.memory.allocation`, and a                 | (batch, slot)            |
| write_weights     | w^w    | g^w (g^a a + (1 - g^a) C(M_{t-1}, k^w, beta^w))    | (batch, slot)            |
| memory            | M      | M_{t-1}(i) (1 - w^w(i) e) + w^w(i) v               | (batch, slot, word)      |
| precedence, links | p, L   | `fewshot.memory.links`, and b, f                   | (batch, slot [, slot])   |
| read_weights      | w^r    | pi_1 b + pi_2 C(M_t, k^r, beta^r) + pi_3 f         | (batch, read_head, slot) |
| reads             | r      | sum over i of w^r(i) M(i)                          | (batch, read_head, word) |

What is squashed comes from the controller; C is `fewshot.memory.addressing.content_weights`. The order is
the paper's: usage, then write weights, which look at the memory as it was, the write, the links, and last the
reading of what is there now. An empty memory is zero. tanh is ours: the paper leaves keys and vectors free.

Csordas and Schmidhuber 2019 (arXiv:1904.10278) found three faults and mended them, each an option here. What
a key is compared with holds values too: with `masked`, every head covers what is not to count. What is freed
is still found: with `erase_on_free`, M_{t-1}(i) psi(i) stands for M_{t-1}(i). Links blur: `sharp_links`.

Measured: a training step in plain torch is 1.3 times as fast as the public package `dnc`, as both pass over
all links a dozen times; in one kernel (`fewshot.kernels.dnc`), 6 times. (One core, 128 x 40, 4 read
heads, LSTM 200, 16 sequences of 50 steps: `dnc_step` of `fewshot bench`.)
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.kernels.dnc import DncOptions
from fewshot.memory.addressing import content_weights
from fewshot.memory.allocation import allocation_weights, retention, usage_after
from fewshot.memory.external import Access, ExternalMemory
from fewshot.memory.links import follow, links_after, precedence_after, sharpen_links


class DncState(NamedTuple):
    """What lies in memory between two steps; the module's table gives the shapes.

    Without links, precedence and links are of width 0.
    """

    memory: Tensor
    usage: Tensor
    read_weights: Tensor
    write_weights: Tensor
    precedence: Tensor
    links: Tensor


class DncInterface(NamedTuple):
    """What the controller asks for; the module's table gives the shapes.

    read_masks: (batch, read_head, word), and write_mask: (batch, 1, word), sigmoids; None: all counts;
    read_modes: None where there are no links; sharpness: (batch, 2, read_head), see `fewshot.memory.links`;
    None: links as they are.
    """

    read_keys: Tensor
    write_vector: Tensor
    write_key: Tensor
    erase: Tensor
    read_masks: Tensor | None
    write_mask: Tensor | None
    free_gates: Tensor
    allocation_gate: Tensor
    write_gate: Tensor
    read_strengths: Tensor
    write_strength: Tensor
    read_modes: Tensor | None
    sharpness: Tensor | None


def dnc_step(state: DncState, asked: DncInterface, *, erase_on_free: bool) -> Access:
    """Write, then read: the reads, (batch, read_head, word), and the state after the step, a `DncState`."""
    memory, usage, read_weights, write_weights, precedence, links = state
    retained = retention(asked.free_gates, read_weights)
    usage = usage_after(usage, write_weights, retained)
    found = content_weights(asked.write_key, memory, asked.write_strength, asked.write_mask).squeeze(1)
    write_weights = asked.write_gate * torch.lerp(found, allocation_weights(usage), asked.allocation_gate)

    written = write_weights.unsqueeze(2)
    kept = 1 - written * asked.erase
    if erase_on_free:
        kept = kept * retained.unsqueeze(2)
    memory = torch.addcmul(written * asked.write_vector, kept, memory)

    looked_up = content_weights(asked.read_keys, memory, asked.read_strengths, asked.read_masks)
    if asked.read_modes is None:
        read_weights = looked_up
    else:
        links = links_after(links, precedence, write_weights)
        precedence = precedence_after(precedence, write_weights)
        followed = follow(links, read_weights)
        if asked.sharpness is not None:
            followed = sharpen_links(followed, asked.sharpness)
        ways = torch.stack([followed[:, 0], looked_up, followed[:, 1]], dim=2)
        read_weights = (asked.read_modes.unsqueeze(-1) * ways).sum(2)
    reads = torch.bmm(read_weights, memory)
    state = DncState(memory, usage, read_weights, write_weights, precedence, links)
    return Access(reads, state, read_weights, write_weights.unsqueeze(1), usage, kept=kept.detach().mean(-1))


class Dnc(ExternalMemory):
    """The memory of this module, fed by a controller's interface (see `fewshot.memory.external`).

    One head writes, as in the paper. The controls are, in this order: write key, erase vector, masks of the
    read heads and of the write head, free gates, allocation gate, write gate, strengths of the read heads and
    of the write head, sharpness backward and forward, read modes.

    masked: whether every head has a mask for key and memory;
    erase_on_free: whether a slot that is freed loses its content as well;
    links: whether heads can follow the order of writing; it costs num_slots squared numbers an episode and
        step, and is of little use where questions are answered by content;
    sharp_links: whether what links lead to is sharpened; without links it changes nothing;
    strength_offset: strengths are offset + softplus(learned); 1 in the paper.
    """

    def __init__(
        self,
        *,
        num_slots: int = 128,
        word_size: int = 40,
        read_heads: int = 4,
        masked: bool = True,
        erase_on_free: bool = True,
        links: bool = True,
        sharp_links: bool = True,
        strength_offset: float = 1.0,
    ) -> None:
        sharp_links = links and sharp_links
        heads = read_heads + 1
        parts = [
            (heads + 1) * word_size,  # keys of all heads and the write vector: tanh
            (1 + masked * heads) * word_size + heads + 1,  # erase vector, masks and gates: sigmoid
            heads + sharp_links * 2 * read_heads,  # strengths and sharpness: softplus
            links * 3 * read_heads,  # read modes: softmax
        ]
        super().__init__(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            add_heads=1,
            controls=sum(parts) - heads * word_size,
        )
        self.options = DncOptions(
            masked=masked,
            erase_on_free=erase_on_free,
            links=links,
            sharp_links=sharp_links,
            strength_offset=strength_offset,
        )
        self._parts = parts

    def start(self, batch: int, like: Tensor) -> DncState:
        slots, linked = self.num_slots, self.num_slots * self.options.links
        return DncState(
            memory=like.new_zeros(batch, slots, self.word_size),
            usage=like.new_zeros(batch, slots),
            read_weights=like.new_zeros(batch, self.read_heads, slots),
            write_weights=like.new_zeros(batch, slots),
            precedence=like.new_zeros(batch, linked),
            links=like.new_zeros(batch, linked, linked),
        )

    def step(self, state: DncState, interface: Tensor) -> Access:
        return dnc_step(state, self.asked(interface), erase_on_free=self.options.erase_on_free)

    def asked(self, interface: Tensor) -> DncInterface:
        """What a raw interface, (batch, interface), asks for."""
        options, heads, word = self.options, self.read_heads, self.word_size
        vectors, gates, strengths, modes = torch.split(interface, self._parts, dim=1)
        vectors = torch.tanh(vectors).reshape(len(interface), -1, word)
        covered = (heads + 1) * word * options.masked
        erase, masks, free_gates, allocation_gate, write_gate = torch.split(
            torch.sigmoid(gates), [word, covered, heads, 1, 1], dim=1
        )
        masks = masks.reshape(len(interface), -1, word)
        strengths, sharpness = F.softplus(strengths).tensor_split([heads + 1], dim=1)
        strengths = options.strength_offset + strengths
        return DncInterface(
            read_keys=vectors[:, :heads],
            write_vector=vectors[:, heads : heads + 1],
            write_key=vectors[:, heads + 1 :],
            erase=erase.unsqueeze(1),
            read_masks=masks[:, :heads] if options.masked else None,
            write_mask=masks[:, heads:] if options.masked else None,
            free_gates=free_gates,
            allocation_gate=allocation_gate,
            write_gate=write_gate,
            read_strengths=strengths[:, :heads],
            write_strength=strengths[:, heads:],
            read_modes=torch.softmax(modes.reshape(-1, heads, 3), dim=-1) if options.links else None,
            sharpness=1 + sharpness.reshape(-1, 2, heads) if options.sharp_links else None,
        )
