"""Attribution: which of the vectors that were once written the words are made of that a memory reads.

Memories write by erasing and adding. So what lies in a slot is a sum of all that was ever added to it, each
vector in some amount, and so is what the heads find there:

| name         | symbol | equation, at step t                                        | shape                |
|--------------|--------|------------------------------------------------------------|----------------------|
| kept         | k      | share of a slot's content that the step leaves             | (batch, slot)        |
| written      | w^w    | write weights, summed over heads                           | (batch, slot)        |
| read         | w^r    | read weights, summed over heads                            | (batch, slot)        |
| amounts      | A      | k_t(i) A_{t-1}(i, j), and w^w_t(i) for j = t               | (batch, slot, step)  |
| read_amounts | c      | sum over slots i of w^r_t(i) A_t(i, j)                     | (batch, step, step)  |

c_t(j) is how much of what was written at step j is in the words read at step t. It is exact, r_t = sum over
j of c_t(j) a_j, where a slot is erased as a whole and all heads write one vector; otherwise it takes the mean
over a word for the word, and the heads' vectors for equally long. A memory writes before it reads.

An amount, not a slot's shares in per cent: every slot holds traces of everything, as weights are never quite
zero, and reading where there are only traces finds nothing.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.memory.external import Access


class Visit(NamedTuple):
    """What one step did to the slots of `touched_slots`, summed over heads; (batch, slot) each."""

    read: Tensor
    written: Tensor
    kept: Tensor
    usage: Tensor | None


class Watch(NamedTuple):
    """A memory at work over a sequence.

    slots: (slot,) int64, ascending: those that any step touched, of num_slots in all; visits: of these slots,
    one a step.
    """

    slots: Tensor
    num_slots: int
    visits: list[Visit]


def watched(accesses: Sequence[Access], num_slots: int) -> Watch:
    """What the accesses of each step did to the slots that they touched."""
    touched = touched_slots(accesses)
    return Watch(touched, num_slots, visits(accesses, touched))


def append_only(read: Tensor, offset: int) -> Watch:
    """A memory that overwrites nothing: step t fills a slot of its own, slot t + offset, if there is one.

    read: (batch, step, slot), summed over heads.
    """
    written, kept = torch.ones_like(read).triu(offset).tril(offset), torch.ones_like(read)
    steps = zip(read.unbind(1), written.unbind(1), kept.unbind(1), strict=True)
    slots = torch.arange(read.shape[2], device=read.device)
    return Watch(slots, len(slots), [Visit(*step, usage=None) for step in steps])


def touched_slots(accesses: Sequence[Access]) -> Tensor:
    """(slot,) int64, ascending: those that any step reads or writes; all, where a memory is not sparse."""
    used = []
    for access in accesses:
        for slots, weights in (
            (access.read_slots, access.read_weights),
            (access.write_slots, access.write_weights),
        ):
            if slots is None:
                return torch.arange(weights.shape[-1], device=weights.device)
            used.append(slots.flatten())
    unique: Tensor = torch.cat(used).unique()  # type: ignore[no-untyped-call]
    return unique


def visits(accesses: Sequence[Access], touched: Tensor) -> list[Visit]:
    """Each step over the touched slots, whether the memory is sparse or not.

    touched: (slot,), their numbers; each `Visit` has (batch, slot) tensors.
    """
    return [
        Visit(
            _sum_over_heads(access.read_weights, access.read_slots, touched),
            _sum_over_heads(access.write_weights, access.write_slots, touched),
            _kept(access, touched),
            None if access.usage is None else access.usage[:, touched],
        )
        for access in accesses
    ]


def amounts(steps: Sequence[Visit]) -> Iterator[Tensor]:
    """After each step: how much of what each step wrote lies in each slot, (batch, slot, step)."""
    held = steps[0].written.new_zeros(*steps[0].written.shape, len(steps))
    for number, step in enumerate(steps):
        held = held * step.kept.unsqueeze(-1)
        held[..., number] += step.written
        yield held


def read_amounts(steps: Sequence[Visit]) -> Tensor:
    """How much of what step j wrote is in what step t read, (batch, t, j)."""
    return torch.stack(
        [
            torch.einsum("bs,bsj->bj", step.read, held)
            for step, held in zip(steps, amounts(steps), strict=True)
        ],
        dim=1,
    )


def _sum_over_heads(weights: Tensor, slots: Tensor | None, touched: Tensor) -> Tensor:
    """(batch, head, slot) or, with their slots, (batch, head, k) -> (batch, touched slot)."""
    if slots is None:
        return weights.sum(dim=1)
    summed = weights.new_zeros(len(weights), len(touched))
    return summed.scatter_add_(1, _place(slots, touched), weights.flatten(1))


def _kept(access: Access, touched: Tensor) -> Tensor:
    """(batch, touched slot); where several heads erase one slot, each takes its share of what is left."""
    everything = access.write_weights.new_ones(len(access.write_weights), len(touched))
    if access.kept is None:
        return everything
    if access.kept.dim() == 2:
        return access.kept[:, touched]
    assert access.write_slots is not None, "kept by head belongs to write_slots"
    place = _place(access.write_slots, touched)
    return everything.scatter_reduce_(1, place, access.kept.flatten(1), "prod")


def _place(slots: Tensor, touched: Tensor) -> Tensor:
    """(batch, head, k) numbers of slots -> (batch, head * k) places among the touched."""
    return torch.searchsorted(touched, slots.flatten(1))
