"""Controllers: what decides, step by step, what the memory does.

What depends on the input alone is a projection of its own, so that a whole sequence is projected at once,
outside the loop over steps. In the loop (`fewshot.memory.scan`) the recurrent share is added, and a step is
a function of the sum.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

ControllerKind = Literal["lstm", "feedforward"]


class ControllerState(NamedTuple):
    """What a controller keeps between steps, (batch, hidden) each; a feedforward one keeps width 0."""

    hidden: Tensor
    cell: Tensor


class LstmController(nn.Module):
    """The weights of an LSTM without peepholes (Gers et al. 2000), fed with the reads as well."""

    def __init__(self, input_size: int, reads_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input_gates = nn.Linear(input_size, 4 * hidden_size)
        self.recurrent_gates = nn.Linear(hidden_size + reads_size, 4 * hidden_size, bias=False)

    def start(self, batch: int) -> ControllerState:
        zeros = self.recurrent_gates.weight.new_zeros(batch, self.hidden_size)
        return ControllerState(zeros, zeros)

    @property
    def recurrent_weight(self) -> Tensor:
        """(4 * hidden, hidden + reads): the map of [hidden ; reads] to the gates."""
        return self.recurrent_gates.weight

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

    def project(self, inputs: Tensor) -> Tensor:
        """(..., input) -> (..., 4 * hidden): the inputs' share of the gates."""
        gates: Tensor = self.input_gates(inputs)
        return gates


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """gates: (batch, 4 * hidden), keep, write, show, candidate; cell: (batch, hidden) -> hidden, new cell."""
    size = cell.shape[1]
    # One sigmoid for the three gates, which lie side by side before the candidate.
    keep, write, show = torch.sigmoid(gates[:, : 3 * size]).chunk(3, dim=-1)
    cell = torch.addcmul(keep * cell, write, torch.tanh(gates[:, 3 * size :]))
    return show * torch.tanh(cell), cell


class FeedforwardController(nn.Module):
    """One hidden layer with ReLU: all it knows of the past comes from the memory's reads."""

    def __init__(self, input_size: int, reads_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_layer = nn.Linear(input_size, hidden_size)
        self.recurrent_layer = nn.Linear(reads_size, hidden_size, bias=False)

    def start(self, batch: int) -> ControllerState:
        empty = self.recurrent_layer.weight.new_zeros(batch, 0)
        return ControllerState(empty, empty)

    @property
    def recurrent_weight(self) -> Tensor:
        """(hidden, reads): the map of the reads to the hidden layer."""
        return self.recurrent_layer.weight

    def project(self, inputs: Tensor) -> Tensor:
        """(..., input) -> (..., hidden)."""
        projected: Tensor = self.input_layer(inputs)
        return projected


def feedforward_step(gates: Tensor) -> Tensor:
    """(batch, hidden) -> (batch, hidden)."""
    return torch.relu(gates)


CONTROLLERS: dict[ControllerKind, type[LstmController] | type[FeedforwardController]] = {
    "lstm": LstmController,
    "feedforward": FeedforwardController,
}
