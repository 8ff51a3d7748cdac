"""`dnc_step`: a training step of a differentiable neural computer as published, with its temporal links.

A memory of 128 words of 40, 4 read heads, an LSTM of 200, 16 sequences of 50 vectors of 64 numbers that are
to be given back as they are. The peer is the class `DNC` of the package `dnc` (pytorch-dnc), with one layer
of one LSTM; ours goes without the corrections of 2019. The peer never feeds its controller with what was read
(it makes the inputs of all steps before the first): for the same loss, our weights of the reads are zero at
the start. Their gradients are taken all the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.lrua_step import library_gates
from benchmarks.speed.measure import Row
from benchmarks.speed.peers import Worker
from benchmarks.speed.setting import Place, Setting
from benchmarks.speed.steps import compare_step, operations, update
from fewshot.memory.cell import MemoryCell
from fewshot.memory.dnc import Dnc

HIDDEN, SLOTS, WORD, READ_HEADS = 200, 128, 40, 4
BATCH, LENGTH, WIDTH = 16, 50, 64
TOLERANCE = 1e-5


class Network(nn.Module):
    """A cell that sees vectors and no labels, and a linear read-out as wide as they are: the peer's shape."""

    def __init__(
        self,
        width: int = WIDTH,
        *,
        hidden_size: int = HIDDEN,
        num_slots: int = SLOTS,
        word_size: int = WORD,
        read_heads: int = READ_HEADS,
    ) -> None:
        super().__init__()
        memory = Dnc(
            num_slots=num_slots,
            word_size=word_size,
            read_heads=read_heads,
            masked=False,
            erase_on_free=False,
            sharp_links=False,
            strength_offset=0.0,
        )
        self.cell = MemoryCell(width, 0, controller="lstm", hidden_size=hidden_size, memory=memory, tie=False)
        self.output = nn.Linear(self.cell.output_size, width)
        with torch.no_grad():
            self.cell.controller.recurrent_weight[:, hidden_size:] = 0

    def forward(self, vectors: Tensor) -> Tensor:
        """(batch, step, width), in and out."""
        outputs, _ = self.cell(self.cell.start(len(vectors)), vectors, vectors[..., :0])
        given: Tensor = self.output(outputs)
        return given


def measure(setting: Setting) -> list[Row]:
    return [_measure(setting, place) for place in setting.places if place.device == "cpu"]


def _measure(setting: Setting, place: Place) -> Row:
    place.prepare()
    torch.manual_seed(0)
    network, vectors = Network(), torch.randn(BATCH, LENGTH, WIDTH)

    def loss() -> Tensor:
        return F.mse_loss(network(vectors), vectors)

    path = setting.folder / "dnc.pt"
    torch.save({"weights": peer_weights(network), "vectors": vectors}, path)
    sizes = {"nr_cells": SLOTS, "cell_size": WORD, "read_heads": READ_HEADS}
    return compare_step(
        setting,
        "dnc_step",
        place,
        update(network, loss),
        operations(lambda: loss().backward()),  # type: ignore[no-untyped-call]
        "dnc",
        lambda: Worker(
            setting.peers.interpreter("dnc"),
            "dnc_memory",
            {"step": str(path), "threads": place.threads, "sizes": sizes},
        ),
        TOLERANCE,
    )


def peer_weights(network: Network) -> dict[str, Tensor]:
    """Our weights under the names and in the order of the peer's `DNC`."""
    ours = {name: value.clone() for name, value in network.state_dict().items()}
    memory = network.cell.memory
    recurrent = ours["cell.controller.recurrent_gates.weight"]
    hidden = recurrent.shape[0] // 4
    bias = ours["cell.controller.input_gates.bias"]
    inputs = torch.cat([ours["cell.controller.input_gates.weight"], recurrent[:, hidden:]], dim=1)
    rows = interface_rows(memory.read_heads, memory.word_size)
    return {
        "lstm_layer_0.weight_ih_l0": library_gates(inputs),
        "lstm_layer_0.weight_hh_l0": library_gates(recurrent[:, :hidden]),
        "lstm_layer_0.bias_ih_l0": library_gates(bias),
        "lstm_layer_0.bias_hh_l0": torch.zeros_like(bias),
        "rnn_layer_memory_shared.interface_weights.weight": ours["cell.interface.weight"][rows],
        "rnn_layer_memory_shared.interface_weights.bias": ours["cell.interface.bias"][rows],
        "output.weight": ours["output.weight"],
        "output.bias": ours["output.bias"],
    }


def interface_rows(read_heads: int, word_size: int) -> Tensor:
    """Which row of our interface each of the peer's is.

    Ours: read keys, write vector, write key, erase vector, free gates, allocation gate, write gate, strengths
    of the read heads and of the write head, read modes (backward, content, forward).
    """
    sizes = [read_heads * word_size, *[word_size] * 3, read_heads, 1, 1, read_heads, 1, 3 * read_heads]
    parts = torch.split(torch.arange(sum(sizes)), sizes)
    keys, vector, write_key, erase, free, allocation, write, strengths, write_strength, modes = parts
    modes = modes.view(read_heads, 3)[:, [0, 2, 1]].flatten()
    return torch.cat(
        [keys, strengths, write_key, write_strength, erase, vector, free, allocation, write, modes]
    )
