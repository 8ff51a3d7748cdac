"""Cells: a controller, with or without an external memory, run over a sequence.

A cell maps a state, inputs (batch, step, input) and previous labels (batch, step, way; one-hot, or zeros
where there is none) to outputs (batch, step, output_size) and the state after the last step. Whatever does
not depend on the step before is computed for the whole sequence at once; the loop that remains is
`fewshot.memory.scan`'s.

The tied content path (measured in this project; not in Santoro et al.): the key that an image reads with
and the vector under which it is stored one step later, when its label is known, contain the same projection
of that image. The network then need not discover how to carry an image across a step and how to align two
projections, which is what keeps the original at chance for tens of thousands of episodes.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.kernels.lrua import ScanOptions, ScanState
from fewshot.memory.controllers import CONTROLLERS, ControllerKind, ControllerState, LstmController
from fewshot.memory.lrua import LeastUsed, LruaState, initial_state
from fewshot.memory.scan import best_scan

AddVector = Literal["key", "apart"]
"""What a head writes: its key (the paper) or a vector of its own (most public code)."""


class LstmCell(nn.Module):
    """The LSTM controller alone, without a memory: the control experiment."""

    def __init__(self, input_size: int, way: int, *, hidden_size: int) -> None:
        super().__init__()
        self.controller = LstmController(input_size + way, 0, hidden_size)
        self.output_size = hidden_size

    def start(self, batch: int) -> ControllerState:
        return self.controller.start(batch)

    def forward(
        self, state: ControllerState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, ControllerState]:
        outputs, hidden, cell = torch.lstm(
            torch.cat([inputs, previous_labels], dim=-1),
            [part.unsqueeze(0) for part in state],
            self.controller.library_weights(),
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=self.training,
            bidirectional=False,
            batch_first=True,
        )
        return outputs, ControllerState(hidden.squeeze(0), cell.squeeze(0))


class MemoryState(NamedTuple):
    """What a `MemoryCell` knows after a step.

    reads: (batch, read_head, word); content: (batch, read_head * word), the tied projection of the last
    input, of width 0 where the path is not tied.
    """

    controller: ControllerState
    access: LruaState
    reads: Tensor
    content: Tensor


class MemoryCell(nn.Module):
    """A controller with a least recently used memory; the output is [hidden ; reads] (Santoro et al. 2016).

    strength_offset: None reads with a bare cosine, as the paper does; a number reads with the strength
        offset + softplus(learned).
    gate_bias: the write gate's logit at the start; below 0 prefers the least used slots to those just read.
    tie: whether to add the tied content path (needs add_vector="apart").
    """

    def __init__(
        self,
        input_size: int,
        way: int,
        *,
        controller: ControllerKind,
        hidden_size: int,
        num_slots: int,
        word_size: int,
        read_heads: int,
        usage_decay: float,
        least_used: LeastUsed,
        add_vector: AddVector,
        strength_offset: float | None,
        gate_bias: float,
        tie: bool,
    ) -> None:
        super().__init__()
        self.num_slots, self.word_size, self.read_heads = num_slots, word_size, read_heads
        self.options = ScanOptions(
            lstm=controller == "lstm",
            apart=add_vector == "apart",
            shared=least_used == "shared",
            usage_decay=usage_decay,
            strength_offset=strength_offset,
        )
        words = read_heads * word_size
        self.output_size = hidden_size + words
        self.controller = CONTROLLERS[controller](input_size + way, words, hidden_size)
        # All that the heads need comes from one linear map: keys, add vectors, write gates, strengths.
        self.vector_size = words if add_vector == "key" else 2 * words
        scalars = read_heads if strength_offset is None else 2 * read_heads
        self.interface = nn.Linear(hidden_size, self.vector_size + scalars)
        with torch.no_grad():
            self.interface.bias[self.vector_size : self.vector_size + read_heads] = gate_bias
        self.content = nn.Linear(input_size, words, bias=False) if tie else None
        self.label_content = nn.Linear(way, words, bias=False) if tie else None

    def start(self, batch: int) -> MemoryState:
        like = self.interface.bias
        access = initial_state(
            batch,
            num_slots=self.num_slots,
            word_size=self.word_size,
            read_heads=self.read_heads,
            like=like,
        )
        return MemoryState(
            controller=self.controller.start(batch),
            access=access,
            reads=like.new_zeros(batch, self.read_heads, self.word_size),
            content=like.new_zeros(batch, 0 if self.content is None else self.read_heads * self.word_size),
        )

    def forward(
        self, state: MemoryState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, MemoryState]:
        projected = self.controller.project(torch.cat([inputs, previous_labels], dim=-1))
        offsets, content = self._interface_offsets(state.content, inputs, previous_labels)
        recurrent = torch.cat([state.controller.hidden, state.reads.flatten(1)], dim=-1)
        start = ScanState(recurrent, state.controller.cell, *state.access)
        weights = self.controller.recurrent_weight, self.interface.weight
        scan = best_scan(self.options, start, projected, offsets)
        outputs, last = scan(projected, offsets, *weights, start, self.options)
        hidden, reads = last.recurrent.tensor_split([state.controller.hidden.shape[1]], dim=1)
        return outputs, MemoryState(
            controller=ControllerState(hidden, last.cell),
            access=LruaState(last.memory, last.read_weights, last.usage),
            reads=reads.reshape(state.reads.shape),
            content=content,
        )

    def _interface_offsets(
        self, last_content: Tensor, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the interface adds to its map of the hidden state, by step; and the last input's content."""
        bias = self.interface.bias
        if self.content is None or self.label_content is None:
            return bias.expand(*inputs.shape[:2], -1), last_content
        content: Tensor = self.content(inputs)
        previous = torch.cat([last_content.unsqueeze(1), content[:, :-1]], dim=1)
        tied = torch.cat([content, previous + self.label_content(previous_labels)], dim=-1)
        return F.pad(tied, (0, len(bias) - self.vector_size)) + bias, content[:, -1]
