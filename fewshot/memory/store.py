"""Where the words of a memory's slots lie, for a memory that reads and writes a few slots at a step.

An `OwnStore` begins empty, and an episode holds every slot. An `OverlayStore` lies over a *base*: rows that
were written before the episode, say a million, that all episodes share and that stay as they are. An episode
holds copies of the slots that it has read or written, and changes those. What it holds is searched exactly
and hidden in the base, whose index is built once. So a step copies some tens of rows however many slots there
are; what lies in memory between two steps stays a small value; and no index has to be changed back for the
next episode, query or gradient. (Rae et al. 2016 change one index in place and roll it back; episodes side by
side would need one each.) The price is the search among the rows held, a thousand after 50 steps of four
heads.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot.memory.addressing import cosine_similarity
from fewshot.memory.external import INITIAL_WORD
from fewshot.memory.lrua import least_used_slots
from fewshot.memory.search import Nearest, Search, best


class Rows(NamedTuple):
    """The rows that an episode holds.

    words: (batch, row, word); usage: (batch, row), at which step each was used last, 0 for none; slots:
    (batch, row) int64, which slot each row is, -1 where it is none: episodes hold different numbers of them.
    """

    words: Tensor
    usage: Tensor
    slots: Tensor


class Store(nn.Module, ABC):
    """The slots of a memory. To find some gives the rows held from then on, and which of them they are."""

    def __init__(self, num_slots: int) -> None:
        super().__init__()
        self.num_slots = num_slots

    @abstractmethod
    def start(self, batch: int, word_size: int, like: Tensor) -> Rows:
        """What `batch` episodes hold before their first step; slot 0 is in row 0.

        Of the device and data type of `like`; rows are (batch, row, word).
        """

    @abstractmethod
    def least_used(self, held: Rows, count: int) -> tuple[Rows, Tensor]:
        """The slots used least recently, (batch, count), least used first; ties go to the lower slot."""

    @abstractmethod
    def nearest(self, held: Rows, key: Tensor, count: int) -> tuple[Rows, Tensor]:
        """The slots of largest cosine with each key: (batch, head, word) -> (batch, head, count)."""

    @abstractmethod
    def usage_by_slot(self, held: Rows) -> Tensor | None:
        """(batch, slot), None where there are too many to list."""


class OwnStore(Store):
    """Slots that are empty at first, each episode's own: row i is slot i.

    Empty slots are all alike, and of equals a search may find any: here it finds them last, lower ones first.
    """

    def start(self, batch: int, word_size: int, like: Tensor) -> Rows:
        size = (batch, self.num_slots)
        slots = torch.arange(self.num_slots, device=like.device).expand(size)
        return Rows(like.new_full((*size, word_size), INITIAL_WORD), like.new_zeros(size), slots)

    def least_used(self, held: Rows, count: int) -> tuple[Rows, Tensor]:
        return held, least_used_slots(held.usage, count)

    @torch.no_grad()
    def nearest(self, held: Rows, key: Tensor, count: int) -> tuple[Rows, Tensor]:
        empty = held.words[..., 0] == INITIAL_WORD
        last = -2.0 - torch.arange(self.num_slots, device=key.device)
        cosines = torch.where(empty.unsqueeze(1), last.to(key), cosine_similarity(key, held.words))
        return held, cosines.topk(count).indices

    def usage_by_slot(self, held: Rows) -> Tensor:
        return held.usage


class OverlayStore(Store):
    """Slots filled before the episode: slot i is row i of the base, the lowest the one used longest ago."""

    def __init__(self, base: Search) -> None:
        super().__init__(len(base.rows))
        self.base = base

    def start(self, batch: int, word_size: int, like: Tensor) -> Rows:
        words = self.base.rows[:1].to(like).expand(batch, 1, word_size)
        return Rows(words, like.new_zeros(batch, 1), like.new_zeros(batch, 1, dtype=torch.int64))

    def least_used(self, held: Rows, count: int) -> tuple[Rows, Tensor]:
        # What is not held was not used yet. Of the first slots, `count` more than rows are held, at least
        # `count` are not held; or these are all the slots that there are.
        first = min(held.slots.shape[1] + count, self.num_slots)
        slots = torch.where((held.slots >= 0) & (held.slots < first), held.slots, first)
        usage = held.usage.new_zeros(len(slots), first + 1).scatter(1, slots, held.usage)
        return self._hold(held, least_used_slots(usage[:, :first], count))

    def nearest(self, held: Rows, key: Tensor, count: int) -> tuple[Rows, Tensor]:
        with torch.no_grad():
            cosines = cosine_similarity(key, held.words).masked_fill(held.slots.unsqueeze(1) < 0, -torch.inf)
            slots = held.slots.unsqueeze(1).expand_as(cosines)
            others = self._not_held(held, key, count)
            both = Nearest(torch.cat([slots, others.rows], -1), torch.cat([cosines, others.cosines], -1))
            slots = best(both, count).rows
        held, rows = self._hold(held, slots.flatten(1))
        return held, rows.view(slots.shape)

    def usage_by_slot(self, held: Rows) -> None:
        return None

    def _not_held(self, held: Rows, key: Tensor, count: int) -> Nearest:
        """The nearest rows of the base, (batch, head, any), `count` or more of which the episode does not
        hold, if there are so many; the others' cosines are -inf.
        """
        asked = 4 * count
        while True:
            found = self.base.nearest(key.flatten(0, 1), asked)
            rows, cosines = (part.view(*key.shape[:2], asked) for part in found)
            hidden = (rows.flatten(1).unsqueeze(2) == held.slots.unsqueeze(1)).any(2).view(rows.shape)
            enough = (~hidden).sum(-1) >= count
            if (enough | (rows[..., -1] < 0)).all():
                return Nearest(rows, cosines.masked_fill(hidden, -torch.inf))
            asked *= 2

    def _hold(self, held: Rows, slots: Tensor) -> tuple[Rows, Tensor]:
        """The rows held once copies of these slots, (batch, any), are among them; and where they are."""
        earlier = (slots.unsqueeze(2) == slots.unsqueeze(1)).tril(-1).any(2)
        new = ~(earlier | (slots.unsqueeze(2) == held.slots.unsqueeze(1)).any(2))
        added, order = new.sort(dim=1, descending=True, stable=True)
        copied = torch.where(added, slots.gather(1, order), -1)[:, : int(new.sum(1).max())]
        held = Rows(
            words=torch.cat([held.words, self.base.rows[copied].to(held.words)], dim=1),
            usage=torch.cat([held.usage, held.usage.new_zeros(copied.shape)], dim=1),
            slots=torch.cat([held.slots, copied], dim=1),
        )
        return held, (slots.unsqueeze(2) == held.slots.unsqueeze(1)).int().argmax(2)


def distractors(count: int, word_size: int) -> Tensor:
    """(count, word): words that nobody wrote, to fill a base with; the same ones at every call.

    Their numbers are spread evenly from -1 to 1, where a write vector's lie.
    """
    return torch.empty(count, word_size).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
