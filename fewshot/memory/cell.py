"""Cells: a controller, with or without an external memory, run over a sequence.

A cell maps a state, inputs (batch, step, input) and previous labels (batch, step, label; as units, or zeros
where there is none) to outputs (batch, step, output_size) and the state after the last step. Whatever does
not depend on the step before is computed for the whole sequence at once; the loop that remains is short, or
a kernel's (`fewshot.memory.scan`).

The tied content path (measured in this project; not in Santoro et al.): the key that an image reads with
and the vector under which it is stored one step later, when its label is known, contain the same projection
of that image. The network then need not discover how to carry an image across a step and how to align two
projections, which is what keeps the original at chance for tens of thousands of episodes.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.errors import LearnerError
from fewshot.memory.attribution import Watch, watched
from fewshot.memory.controllers import (
    CONTROLLERS,
    Controller,
    ControllerKind,
    ControllerState,
    LstmController,
)
from fewshot.memory.external import Access, ExternalMemory
from fewshot.memory.scan import scan_of

Intervention = Literal["none", "zero_reads", "wipe_memory", "zero_controller", "shuffle_keys"]
"""What is broken on purpose at every step, to see what the answers owe to it: the words that the heads read
are zeros; the memory is emptied before the step, so that nothing older can be found; the controller's state
is zeros; what is written of an image goes to other places within the word, so that no key finds it."""


class Cell(nn.Module, ABC):
    """What turns a sequence of inputs and previous labels into outputs; state in, state out."""

    output_size: int

    @abstractmethod
    def start(self, batch: int) -> Any:
        """The state before the first step: a (nested) named tuple of tensors with the batch first."""

    @abstractmethod
    def forward(self, state: Any, inputs: Tensor, previous_labels: Tensor) -> tuple[Tensor, Any]:
        """Outputs (batch, step, output_size), and the state after the last step."""

    def ask(self, state: Any, inputs: Tensor, previous_label: Tensor) -> Tensor:
        """Outputs (batch, question, output_size) for inputs each by itself, by default of its own copy of
        the state: (batch, question, input), (batch, label).
        """
        batch, count = inputs.shape[:2]
        labels = _repeat(previous_label.unsqueeze(1), count)
        outputs: Tensor = self(_repeat(state, count), inputs.reshape(batch * count, 1, -1), labels)[0]
        return outputs.reshape(batch, count, self.output_size)


class WatchedCell(Cell):
    """A cell with an external memory, which can be looked into while it works."""

    @abstractmethod
    def watch(self, state: Any, inputs: Tensor, previous_labels: Tensor) -> tuple[Tensor, Watch]:
        """The outputs of `forward`, (batch, step, output_size), and what the memory did at each step.

        inputs: (batch, step, input); previous_labels: (batch, step, label).
        """


class LstmCell(Cell):
    """The LSTM controller alone, without a memory: the control experiment.

    skip: whether the output is [hidden ; input] in place of the hidden state alone.
    """

    def __init__(self, input_size: int, label_size: int, *, hidden_size: int, skip: bool = False) -> None:
        super().__init__()
        self.controller = LstmController(input_size + label_size, 0, hidden_size)
        self.skip = skip
        self.output_size = hidden_size + input_size if skip else hidden_size

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
        if self.skip:
            outputs = torch.cat([outputs, inputs], dim=-1)
        return outputs, ControllerState(hidden.squeeze(0), cell.squeeze(0))


class FeedforwardCell(Cell):
    """One hidden layer with ReLU, and nothing kept between steps: what can be had without any memory."""

    def __init__(self, input_size: int, label_size: int, *, hidden_size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_size + label_size, hidden_size)
        self.output_size = hidden_size

    def start(self, batch: int) -> ControllerState:
        empty = self.layer.weight.new_zeros(batch, 0)
        return ControllerState(empty, empty)

    def forward(
        self, state: ControllerState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, ControllerState]:
        return torch.relu(self.layer(torch.cat([inputs, previous_labels], dim=-1))), state


class MemoryState(NamedTuple):
    """What a `MemoryCell` knows after a step.

    access: the memory's own state; reads: (batch, read_head, word); content: (batch, tied), the tied
    projection of the last input, of width 0 where the path is not tied.
    """

    controller: ControllerState
    access: Any
    reads: Tensor
    content: Tensor


class MemoryCell(WatchedCell):
    """A controller with an external memory; the output is [hidden ; reads] (Santoro et al. 2016).

    tie: whether to add the tied content path (needs a memory that writes vectors apart from its keys).
    intervention: what is broken on purpose, see `Intervention`.
    LearnerError where a tied path has nothing to join, or an intervention has nothing to break.
    """

    def __init__(
        self,
        input_size: int,
        label_size: int,
        *,
        controller: ControllerKind,
        hidden_size: int,
        memory: ExternalMemory,
        tie: bool,
        intervention: Intervention = "none",
    ) -> None:
        if tie and memory.add_heads == 0:
            raise LearnerError(
                "tie = true joins the key to what is written, and this memory writes its key itself: give "
                'add_vector = "apart" or tie = false'
            )
        if intervention == "shuffle_keys" and not tie:
            raise LearnerError('intervention "shuffle_keys" shuffles the tied content: it needs tie = true')
        if intervention == "zero_controller" and controller == "feedforward":
            raise LearnerError(
                'intervention "zero_controller" clears what the controller keeps between steps, and '
                '"feedforward" keeps nothing: give controller = "lstm" or "gru"'
            )
        super().__init__()
        self.memory, self.intervention = memory, intervention
        words = memory.read_heads * memory.word_size
        self.output_size = hidden_size + words
        self.controller: Controller = CONTROLLERS[controller](input_size + label_size, words, hidden_size)
        # All that the heads need comes from one linear map.
        self.interface = nn.Linear(hidden_size, memory.interface_size)
        first = memory.first_controls()
        if first is not None:
            with torch.no_grad():
                bias = self.interface.bias[memory.vector_size :]
                bias.copy_(torch.where(first.isnan(), bias, first))
        # One projection for each write head; read heads beyond their number begin again at the first.
        tied = memory.add_heads * memory.word_size
        self.content = nn.Linear(input_size, tied, bias=False) if tie else None
        self.label_content = nn.Linear(label_size, tied, bias=False) if tie else None

    def start(self, batch: int) -> MemoryState:
        like, memory = self.interface.bias, self.memory
        return MemoryState(
            controller=self.controller.start(batch),
            access=memory.start(batch, like),
            reads=like.new_zeros(batch, memory.read_heads, memory.word_size),
            content=like.new_zeros(batch, 0 if self.content is None else self.content.out_features),
        )

    def forward(
        self, state: MemoryState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, MemoryState]:
        projected, offsets, content = self._ahead(state, inputs, previous_labels)
        recurrent = torch.cat([state.controller.hidden, state.reads.flatten(1)], dim=-1)
        start = (recurrent, state.controller.cell, *state.access)
        scan = None
        if self.intervention == "none":
            scan = scan_of(self.memory, self.controller.kind, start, projected, offsets)
        if scan is None:
            return self._walk(state, projected, offsets, content)
        weights = self.controller.recurrent_weight, self.interface.weight
        outputs, (recurrent, cell, *access) = scan(projected, offsets, *weights)
        hidden, reads = recurrent.tensor_split([state.controller.hidden.shape[1]], dim=1)
        return outputs, MemoryState(
            controller=ControllerState(hidden, cell),
            access=type(state.access)(*access),
            reads=reads.reshape(state.reads.shape),
            content=content,
        )

    def watch(self, state: MemoryState, inputs: Tensor, previous_labels: Tensor) -> tuple[Tensor, Watch]:
        outputs, accesses, _ = self.step_by_step(state, inputs, previous_labels)
        return outputs, watched(accesses, self.memory.num_slots)

    def step_by_step(
        self, state: MemoryState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, list[Access], MemoryState]:
        """`forward` without a kernel, which also gives each step's access.

        inputs: (batch, step, input); previous_labels: (batch, step, label) -> (batch, step, output_size).
        """
        accesses: list[Access] = []
        outputs, state = self._walk(state, *self._ahead(state, inputs, previous_labels), accesses)
        return outputs, accesses, state

    def _walk(
        self,
        state: MemoryState,
        projected: Tensor,
        offsets: Tensor,
        last_content: Tensor,
        accesses: list[Access] | None = None,
    ) -> tuple[Tensor, MemoryState]:
        """Step by step, with any controller and memory. accesses: takes what the memory did at each step."""
        controller, memory, reads, _ = state
        outputs, batch = [], len(projected)
        for gates, offset in zip(projected.unbind(1), offsets.unbind(1), strict=True):
            if self.intervention == "zero_controller":
                controller = self.controller.start(batch)
            if self.intervention == "wipe_memory":
                memory = self.memory.start(batch, self.interface.bias)
            hidden, controller = self.controller.step(gates, controller, reads.flatten(1))
            interface = torch.addmm(offset, hidden, self.interface.weight.t())
            access = self.memory.step(memory, interface)
            if self.intervention == "wipe_memory":
                access = access._replace(kept=hidden.new_zeros(()).expand(batch, self.memory.num_slots))
            if self.intervention == "zero_reads":
                access = access._replace(
                    reads=torch.zeros_like(access.reads), read_weights=torch.zeros_like(access.read_weights)
                )
            memory, reads = access.state, access.reads
            outputs.append(torch.cat([hidden, reads.flatten(1)], dim=-1))
            if accesses is not None:
                accesses.append(access)
        return torch.stack(outputs, dim=1), MemoryState(controller, memory, reads, last_content)

    def _ahead(
        self, state: MemoryState, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What no step waits for: the controller's gates and the interface so far, and the last content."""
        projected = self.controller.project(torch.cat([inputs, previous_labels], dim=-1))
        return projected, *self._interface_offsets(state.content, inputs, previous_labels)

    def _interface_offsets(
        self, last_content: Tensor, inputs: Tensor, previous_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the interface adds to its map of the hidden state, by step; and the last input's content."""
        bias = self.interface.bias
        if self.content is None or self.label_content is None:
            return bias.expand(*inputs.shape[:2], -1), last_content
        content: Tensor = self.content(inputs)
        previous = torch.cat([last_content.unsqueeze(1), content[:, :-1]], dim=1)
        if self.intervention == "shuffle_keys":
            previous = previous.roll(1, dims=-1)
        words = self.memory.read_heads * self.memory.word_size
        looked_up = content[..., torch.arange(words) % content.shape[-1]] if self._heads_differ else content
        tied = torch.cat([looked_up, previous + self.label_content(previous_labels)], dim=-1)
        return F.pad(tied, (0, len(bias) - self.memory.vector_size)) + bias, content[:, -1]

    @property
    def _heads_differ(self) -> bool:
        return self.memory.read_heads != self.memory.add_heads


def _repeat(state: Any, count: int) -> Any:
    """Every tensor of a nested named tuple with each episode `count` times, side by side."""
    if isinstance(state, Tensor):
        return state.repeat_interleave(count, dim=0)
    return type(state)(*(_repeat(part, count) for part in state))
