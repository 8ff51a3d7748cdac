"""Attention over stored pairs: an append-only memory, read by a transformer (Vaswani et al. 2017).

An input is stored together with its label as a pair, as soon as the label is known, and nothing is
overwritten. (SNAIL, Mishra et al. 2018, is the older relative.) A question is an input without a label. Each
layer lets a question read all pairs there are, and a pair those before it:

| name       | equation                                                  | shape                      |
|------------|-----------------------------------------------------------|----------------------------|
| token      | A input + B label; A input for a question                 | (batch, token, hidden)     |
| key        | K norm(token), in each head divided by its length         | (batch, head, pair, word)  |
| value      | V norm(token)                                             | (batch, head, pair, word)  |
| query      | as the key; where they are not tied, by a map Q           | (batch, head, token, word) |
| sharpness  | learned                                                   | (head, 1, 1)               |
| weights    | softmax over pairs of sharpness query . key               | (batch, head, token, pair) |
| read       | token + O (sum over pairs of weights value)               | (batch, token, hidden)     |
| next token | read + feedforward(norm(read))                            | (batch, token, hidden)     |

The first pair is one of zeros, an input that never was without a label: it is read where nothing stored is
alike. Positions are not coded: in which order pairs were stored says nothing about a label.

Sharpened cosines, and queries tied to keys, are there for the start of training: alike inputs find each other
from the first update on, as by the tied content path of `fewshot.memory.cell`; with a query map of its own it
learned Omniglot's streams far more slowly.

The microscope sees the reads of the first layer's heads: in it a slot holds its own pair and nothing else, in
later ones a pair that has itself read those before it. That is also where answers come from: without what
the first of two layers reads a trained network guesses, without what the second reads it hardly changes.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.memory.attribution import Watch, append_only
from fewshot.memory.cell import WatchedCell

FIRST_SHARPNESS = 10.0
"""Of every head before training."""


class AttentionState(NamedTuple):
    """What is stored, and what is not yet.

    keys, values: (batch, layer, head, pair, word), what each layer reads; last: (batch, input), the last
    input, which is stored when its label arrives.
    """

    keys: Tensor
    values: Tensor
    last: Tensor


class AttentionCell(WatchedCell):
    """The memory and the layers that read it; the output is the last layer's.

    hidden_size: of a token, shared out among the heads; tie: whether the query of an input is its key.
    """

    def __init__(
        self,
        input_size: int,
        label_size: int,
        *,
        hidden_size: int,
        num_layers: int,
        read_heads: int,
        tie: bool,
    ) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.input = nn.Linear(input_size, hidden_size)
        self.label = nn.Linear(label_size, hidden_size, bias=False)
        nn.init.normal_(self.label.weight)  # by the library, the more labels there are, the smaller
        self.layers = nn.ModuleList(_Layer(hidden_size, read_heads, tie=tie) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.nothing_stored = num_layers, read_heads, 0, hidden_size // read_heads

    def start(self, batch: int) -> AttentionState:
        like = self.norm.weight
        nothing = like.new_zeros(batch, *self.nothing_stored)
        return AttentionState(nothing, nothing, like.new_zeros(batch, self.input.in_features))

    def forward(
        self, state: AttentionState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, AttentionState]:
        after = self._store(state, inputs, previous_labels)
        return self._read(after, inputs, _seen(inputs, after.keys, of_own_step=True)), after

    def ask(self, state: AttentionState, inputs: Tensor, previous_label: Tensor) -> Tensor:
        """Of one memory, which questions leave as it is: no copies of it are needed."""
        after = self._store(state, inputs[:, :1], previous_label.unsqueeze(1))
        return self._read(after, inputs, seen=None)

    def watch(self, state: AttentionState, inputs: Tensor, previous_labels: Tensor) -> tuple[Tensor, Watch]:
        """A slot is a pair; the reads are those of the heads of the first layer, see the module."""
        after = self._store(state, inputs, previous_labels)
        seen = _seen(inputs, after.keys, of_own_step=True)
        first, key, _ = next(self._by_layer(after))
        read = first.weights(self.input(inputs), key, seen).sum(dim=1)
        return self._read(after, inputs, seen), append_only(read, offset=state.keys.shape[3])

    def _store(self, state: AttentionState, inputs: Tensor, previous_labels: Tensor) -> AttentionState:
        """Store the pairs that these previous labels complete; what waits for its label is the last input."""
        paired = torch.cat([state.last.unsqueeze(1), inputs[:, :-1]], dim=1)
        tokens = self.input(paired) + self.label(previous_labels)
        keys, values = [], []
        for layer, *stored in self._by_layer(state):
            key, value = (torch.cat(both, dim=2) for both in zip(stored, layer.store(tokens), strict=True))
            keys.append(key)
            values.append(value)
            if layer is not self.layers[-1]:  # what the last one makes of pairs, none would store
                tokens = layer(tokens, key, value, _seen(tokens, key, of_own_step=False))
        return AttentionState(torch.stack(keys, dim=1), torch.stack(values, dim=1), inputs[:, -1])

    def _read(self, state: AttentionState, inputs: Tensor, seen: Tensor | None) -> Tensor:
        tokens = self.input(inputs)
        for layer, key, value in self._by_layer(state):
            tokens = layer(tokens, key, value, seen)
        outputs: Tensor = self.norm(tokens)
        return outputs

    def _by_layer(self, state: AttentionState) -> Iterator[tuple["_Layer", Tensor, Tensor]]:
        """Each layer with the keys and values that it reads, (batch, head, pair, word)."""
        for layer, key, value in zip(self.layers, state.keys.unbind(1), state.values.unbind(1), strict=True):
            assert isinstance(layer, _Layer)
            yield layer, key, value


class _Layer(nn.Module):
    """One layer: the module's table, from key to next token."""

    def __init__(self, hidden_size: int, read_heads: int, *, tie: bool) -> None:
        super().__init__()
        self.read_heads = read_heads
        self.norm = nn.LayerNorm(hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.query = None if tie else nn.Linear(hidden_size, hidden_size, bias=False)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.log_sharpness = nn.Parameter(torch.full((read_heads, 1, 1), math.log(FIRST_SHARPNESS)))
        self.output = nn.Linear(hidden_size, hidden_size)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, 2 * hidden_size),
            nn.GELU(),
            nn.Linear(2 * hidden_size, hidden_size),
        )

    def store(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of pairs: (batch, pair, hidden) -> (batch, head, pair, word) each."""
        tokens = self.norm(tokens)
        return F.normalize(self._split(self.key(tokens)), dim=-1), self._split(self.value(tokens))

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        """The next tokens: (batch, token, hidden). seen: (token, pair) bool, None where all pairs are."""
        query = self._sharpened_query(tokens)
        reads = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=1.0)
        tokens = tokens + self.output(reads.transpose(1, 2).flatten(2))
        after: Tensor = tokens + self.feedforward(tokens)
        return after

    def weights(self, tokens: Tensor, key: Tensor, seen: Tensor) -> Tensor:
        """Where the heads read: (batch, head, token, pair)."""
        return (self._sharpened_query(tokens) @ key.mT).masked_fill(~seen, -torch.inf).softmax(-1)

    def _sharpened_query(self, tokens: Tensor) -> Tensor:
        projection = self.key if self.query is None else self.query
        return self.log_sharpness.exp() * F.normalize(self._split(projection(self.norm(tokens))), dim=-1)

    def _split(self, tokens: Tensor) -> Tensor:
        """(batch, token, hidden) -> (batch, head, token, word)."""
        batch, count, hidden_size = tokens.shape
        return tokens.view(batch, count, self.read_heads, hidden_size // self.read_heads).transpose(1, 2)


def _seen(tokens: Tensor, keys: Tensor, *, of_own_step: bool) -> Tensor:
    """The pairs that the tokens of the last steps see, each of which has added one pair: (token, pair) bool.

    of_own_step: whether a token sees the pair of its own step, as questions do, or only those before, as
    pairs do; the very first pair, which has none before it, sees itself.
    tokens: (batch, token, ...); keys: (..., pair, word).
    """
    count, pairs = tokens.shape[1], keys.shape[-2]
    seen = torch.ones(count, pairs, dtype=torch.bool, device=keys.device)
    seen = seen.tril(pairs - count if of_own_step else pairs - count - 1)
    seen[0, 0] = True
    return seen
