"""A least recently used memory over a whole sequence in one call, forward and backward (lrua.c).

What `fewshot.memory.scan` does in some thirty operations a step, on a CPU and in float32. For the backward
pass each step of an episode keeps its memory, its weights and its activations: 4 * (slots * word +
2 * heads * slots + slots + 5 * hidden + heads * word) bytes and little more, 30 kB at 128 x 40, four heads
and 200 units; without one, an episode keeps only its state.
"""

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.kernels.native import library
from fewshot.kernels.sequence import Kept, MemoryKernel, Sequence, apply


class ScanState(NamedTuple):
    """recurrent: (batch, recurrent), what the controller is fed with besides its input: [hidden ; reads] for
    an LSTM, else the reads; cell: (batch, hidden or 0); memory: (batch, slot, word);
    read_weights: (batch, head, slot); usage: (batch, slot)."""

    recurrent: Tensor
    cell: Tensor
    memory: Tensor
    read_weights: Tensor
    usage: Tensor


@dataclass(frozen=True)
class ScanOptions:
    """What kind of cell it is.

    lstm: an LSTM, else a feedforward controller; apart: add vectors apart from the keys; shared: one mask of
    least used slots for all heads, else a slot for each; strength_offset: None for a bare cosine.
    """

    lstm: bool
    apart: bool
    shared: bool
    usage_decay: float
    strength_offset: float | None


def can_scan(state: ScanState, *sequences: Tensor) -> bool:
    """Whether `scan` is for these tensors: float32 on a CPU, a slot for every head, and a compiler there."""
    return state.memory.is_cpu and is_usual(state, *sequences) and library("lrua") is not None


def is_usual(state: ScanState, *sequences: Tensor) -> bool:
    """What every kernel asks for: float32 on one device, and a slot for every head."""
    _, heads, slots = state.read_weights.shape
    device = state.memory.device
    return heads <= slots and all(
        tensor.dtype == torch.float32 and tensor.device == device for tensor in (*state, *sequences)
    )


def scan(
    projected: Tensor,
    offsets: Tensor,
    recurrent_weight: Tensor,
    interface_weight: Tensor,
    state: ScanState,
    options: ScanOptions,
) -> tuple[Tensor, ScanState]:
    """Run the cell over a sequence of one step or more.

    projected: (batch, step, gate), the inputs' share of the controller's gates (lstm: keep, write, show,
    candidate); offsets: (batch, step, interface), what is added to the interface's map of the hidden state
    (keys, add vectors if apart, write gates, strengths); recurrent_weight: (gate, recurrent);
    interface_weight: (interface, hidden). Returns [hidden ; reads], (batch, step, hidden + words), and the
    state after the last step. All but usage pass gradients, of first order.
    """
    tensors = (projected, offsets, recurrent_weight, interface_weight, *state)
    outputs, *last = apply(Sequence, tensors, _memory(state, options))
    return outputs, ScanState(*last)


def _memory(state: ScanState, options: ScanOptions) -> MemoryKernel:
    _, heads, slots = state.read_weights.shape
    word = state.memory.shape[-1]
    sharp = options.strength_offset is not None
    # What the kernel pads, it says itself.
    sizes = [ctypes.c_int64() for _ in range(3)]
    kernels = library("lrua")
    assert kernels is not None, "can_scan says whether there is one"
    kernels.lrua_padded(*(ctypes.c_int64(size) for size in (heads, word, slots)), *map(ctypes.byref, sizes))
    padded_memory, padded_weights, padded_slots = (size.value for size in sizes)
    interface = heads * word * (1 + options.apart) + heads * (1 + sharp)
    return MemoryKernel(
        name="lrua",
        numbers={
            "heads": heads,
            "word": word,
            "slots": slots,
            "apart": options.apart,
            "sharp": sharp,
            "shared": options.shared,
            "usage_decay": options.usage_decay,
            "strength_offset": options.strength_offset or 0.0,
        },
        state=("memory", "read_weights", "usage"),
        constant=frozenset({"usage"}),
        kept={
            "memories": Kept(padded_memory, start=True),
            "read_weights": Kept(padded_weights, start=True),
            "interfaces": Kept(interface + heads * sharp),
            "cosines": Kept(padded_weights),
            "inverses": Kept(padded_slots),
            "chosen": Kept(heads, dtype=torch.int32),
        },
    )
