"""Controllers: what decides, step by step, what the memory does.

What depends on the input alone is a projection of its own, so that a whole sequence is projected at once,
outside the loop over steps. In the loop the recurrent share is added, and a step is a function of the two.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

ControllerKind = Literal["lstm", "gru", "feedforward"]


class ControllerState(NamedTuple):
    """What a controller keeps between steps, (batch, hidden) each; width 0 for what a kind does not keep."""

    hidden: Tensor
    cell: Tensor


class Controller(nn.Module, ABC):
    """What every controller is to the cell around it."""

    kind: ClassVar[ControllerKind]

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    @property
    @abstractmethod
    def recurrent_weight(self) -> Tensor:
        """The map of what is fed back to the gates: (gate, [hidden +] reads)."""

    @abstractmethod
    def start(self, batch: int) -> ControllerState:
        """The state before the first step."""

    @abstractmethod
    def project(self, inputs: Tensor) -> Tensor:
        """(..., input) -> (..., gate): the inputs' share of the gates, for any number of steps at once."""

    @abstractmethod
    def step(
        self, projected: Tensor, state: ControllerState, reads: Tensor
    ) -> tuple[Tensor, ControllerState]:
        """projected: (batch, gate); reads: (batch, words), the last ones -> (batch, hidden), new state."""


class GatedController(Controller):
    """A recurrent controller: its gates are a map of the inputs, and one of the last hidden state and reads.

    parts: how many numbers the gates have for each of the hidden state; bias: of the latter map.
    """

    def __init__(self, sizes: tuple[int, int, int], parts: int, *, bias: bool) -> None:
        """sizes: of the input, the reads and the hidden state."""
        input_size, reads_size, hidden_size = sizes
        super().__init__(hidden_size)
        self.input_gates = nn.Linear(input_size, parts * hidden_size)
        self.recurrent_gates = nn.Linear(hidden_size + reads_size, parts * hidden_size, bias=bias)

    @property
    def recurrent_weight(self) -> Tensor:
        return self.recurrent_gates.weight

    def project(self, inputs: Tensor) -> Tensor:
        gates: Tensor = self.input_gates(inputs)
        return gates


class LstmController(GatedController):
    """The weights of an LSTM without peepholes (Gers et al. 2000), fed with the reads as well."""

    kind = "lstm"

    def __init__(self, input_size: int, reads_size: int, hidden_size: int) -> None:
        super().__init__((input_size, reads_size, hidden_size), 4, bias=False)

    def start(self, batch: int) -> ControllerState:
        zeros = self.recurrent_gates.weight.new_zeros(batch, self.hidden_size)
        return ControllerState(zeros, zeros)

    def library_weights(self) -> list[Tensor]:
        """As `torch.lstm` takes them, for a controller without reads, which the library runs whole.

        The library's gates are write, keep, candidate, show. The parts lie in one piece, as a GPU wants it.
        """
        size = self.hidden_size
        parts = [self.input_gates.weight, self.recurrent_gates.weight, self.input_gates.bias]
        reordered = [part.view(4, size, -1)[[1, 0, 3, 2]].flatten() for part in parts]
        whole = torch.cat([*reordered, self.input_gates.bias.new_zeros(4 * size)])
        places = [*parts, self.input_gates.bias]
        flat = torch.split(whole, [part.numel() for part in places])
        return [numbers.view(part.shape) for numbers, part in zip(flat, places, strict=True)]

    def step(
        self, projected: Tensor, state: ControllerState, reads: Tensor
    ) -> tuple[Tensor, ControllerState]:
        fed_back = torch.cat([state.hidden, reads], dim=-1)
        hidden, cell = lstm_step(torch.addmm(projected, fed_back, self.recurrent_weight.t()), state.cell)
        return hidden, ControllerState(hidden, cell)


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """gates: (batch, 4 * hidden), keep, write, show, candidate; cell: (batch, hidden) -> hidden, new cell."""
    size = cell.shape[1]
    # One sigmoid for the three gates, which lie side by side before the candidate.
    keep, write, show = torch.sigmoid(gates[:, : 3 * size]).chunk(3, dim=-1)
    cell = torch.addcmul(keep * cell, write, torch.tanh(gates[:, 3 * size :]))
    return show * torch.tanh(cell), cell


class GruController(GatedController):
    """A gated recurrent unit (Cho et al. 2014), fed with the reads as well.

    The reset gate acts on what is fed back after its product with the weights, as in the usual libraries.
    """

    kind = "gru"

    def __init__(self, input_size: int, reads_size: int, hidden_size: int) -> None:
        super().__init__((input_size, reads_size, hidden_size), 3, bias=True)

    def start(self, batch: int) -> ControllerState:
        like = self.recurrent_gates.weight
        return ControllerState(like.new_zeros(batch, self.hidden_size), like.new_zeros(batch, 0))

    def step(
        self, projected: Tensor, state: ControllerState, reads: Tensor
    ) -> tuple[Tensor, ControllerState]:
        fed_back: Tensor = self.recurrent_gates(torch.cat([state.hidden, reads], dim=-1))
        split = 2 * self.hidden_size
        reset, keep = torch.sigmoid(projected[:, :split] + fed_back[:, :split]).chunk(2, dim=-1)
        candidate = torch.tanh(projected[:, split:] + reset * fed_back[:, split:])
        hidden = torch.lerp(candidate, state.hidden, keep)
        return hidden, ControllerState(hidden, state.cell)


class FeedforwardController(Controller):
    """One hidden layer with ReLU: all it knows of the past comes from the memory's reads."""

    kind = "feedforward"

    def __init__(self, input_size: int, reads_size: int, hidden_size: int) -> None:
        super().__init__(hidden_size)
        self.input_layer = nn.Linear(input_size, hidden_size)
        self.recurrent_layer = nn.Linear(reads_size, hidden_size, bias=False)

    def start(self, batch: int) -> ControllerState:
        empty = self.recurrent_layer.weight.new_zeros(batch, 0)
        return ControllerState(empty, empty)

    @property
    def recurrent_weight(self) -> Tensor:
        return self.recurrent_layer.weight

    def project(self, inputs: Tensor) -> Tensor:
        projected: Tensor = self.input_layer(inputs)
        return projected

    def step(
        self, projected: Tensor, state: ControllerState, reads: Tensor
    ) -> tuple[Tensor, ControllerState]:
        return feedforward_step(torch.addmm(projected, reads, self.recurrent_weight.t())), state


def feedforward_step(gates: Tensor) -> Tensor:
    """(batch, hidden) -> (batch, hidden)."""
    return torch.relu(gates)


CONTROLLERS: dict[
    ControllerKind, type[LstmController] | type[GruController] | type[FeedforwardController]
] = {
    "lstm": LstmController,
    "gru": GruController,
    "feedforward": FeedforwardController,
}
