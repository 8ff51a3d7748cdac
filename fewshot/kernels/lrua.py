"""A least recently used memory over a whole sequence in one call, forward and backward (lrua.c).

What `fewshot.memory.scan` does in some thirty operations a step, on a CPU and in float32.
Weight gradients are two products over all steps at once, here; everything else is in C. For the backward pass
each step of an episode keeps its memory, its weights and its activations: 4 * (slots * word +
2 * heads * slots + slots + 5 * hidden + heads * word) bytes and little more, 30 kB at 128 x 40, four heads
and 200 units; without one, an episode keeps only its state.
"""

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot.kernels.native import address, empty, library


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


class ScanState(NamedTuple):
    """recurrent: (batch, recurrent), what the controller is fed with besides its input: [hidden ; reads] for
    an LSTM, else the reads; cell: (batch, hidden or 0); memory: (batch, slot, word);
    read_weights: (batch, head, slot); usage: (batch, slot)."""

    recurrent: Tensor
    cell: Tensor
    memory: Tensor
    read_weights: Tensor
    usage: Tensor


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
    return apply(_Scan, (projected, offsets, recurrent_weight, interface_weight, *state), options)


def apply(
    function: type[torch.autograd.Function], tensors: tuple[Tensor, ...], options: ScanOptions
) -> tuple[Tensor, ScanState]:
    """Call a kernel: (outputs, cell, memory, read_weights, usage) from the tensors; steps kept if needed."""
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    outputs, cell, memory, read_weights, usage = function.apply(*tensors, options, keep)
    recurrent = outputs[:, -1, outputs.shape[-1] - tensors[2].shape[1] :]
    return outputs, ScanState(recurrent, cell, memory, read_weights, usage)


_NUMBERS = {
    ctypes.c_int64: (
        "batch steps hidden heads word slots lstm apart sharp shared keep threads offset_episode offset_step"
    ),
    ctypes.c_float: "usage_decay strength_offset",
}
_SEQUENCES = "projected offsets"
_INPUTS = "recurrent_weight interface_weight first first_cell first_memory first_read_weights"
_OUTPUTS = "usage outputs last_cell last_memory last_read_weights"
_KEPT = "memories read_weights cells gates interfaces cosines inverses chosen"
_GRADIENTS_IN = "outputs_gradient last_cell_gradient last_memory_gradient last_read_weights_gradient"
_GRADIENTS_OUT = (
    "projected_gradient offsets_gradient "
    "first_gradient first_cell_gradient first_memory_gradient first_read_weights_gradient"
)
_ARRAYS = " ".join((_SEQUENCES, _INPUTS, _OUTPUTS, _KEPT, _GRADIENTS_IN, _GRADIENTS_OUT, "scratch"))


_FIELDS: list[tuple[str, Any]] = [
    *((name, kind) for kind, names in _NUMBERS.items() for name in names.split()),
    *((name, ctypes.c_void_p) for name in _ARRAYS.split()),
]


class _Arguments(ctypes.Structure):
    """Scan of lrua.c, field by field."""

    _fields_ = _FIELDS


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        projected: Tensor,
        offsets: Tensor,
        recurrent_weight: Tensor,
        interface_weight: Tensor,
        recurrent: Tensor,
        cell: Tensor,
        memory: Tensor,
        read_weights: Tensor,
        usage: Tensor,
        options: ScanOptions,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        batch, steps, gates = projected.shape
        (_, heads, slots), word, hidden = read_weights.shape, memory.shape[-1], interface_weight.shape[-1]
        sharp = options.strength_offset is not None
        # Without a tied path the offsets are one bias, expanded: the kernel takes their strides as they are.
        offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
        numbers = {
            "batch": batch,
            "steps": steps,
            "hidden": hidden,
            "heads": heads,
            "word": word,
            "slots": slots,
            "lstm": options.lstm,
            "apart": options.apart,
            "sharp": sharp,
            "shared": options.shared,
            "keep": keep,
            "usage_decay": options.usage_decay,
            "strength_offset": options.strength_offset or 0.0,
            "offset_episode": offsets.stride(0),
            "offset_step": offsets.stride(1),
        }
        tensors = (recurrent_weight, interface_weight, recurrent, cell, memory, read_weights)
        inputs = _named(_INPUTS, (tensor.contiguous() for tensor in tensors))
        outputs = {
            "usage": usage.clone(memory_format=torch.contiguous_format),
            "outputs": memory.new_empty(batch, steps, hidden + heads * word),
            "last_cell": cell.new_empty(cell.shape),
            "last_memory": memory.new_empty(memory.shape),
            "last_read_weights": read_weights.new_empty(read_weights.shape),
        }
        kernels = library("lrua")
        assert kernels is not None, "can_scan says whether there is one"
        padded_memory, padded_weights, padded_slots = _padded_sizes(kernels, numbers)
        places = steps if keep else 1
        kept = {
            "memories": memory.new_empty(batch, places + keep, padded_memory),
            "read_weights": memory.new_empty(batch, places + keep, padded_weights),
            "cells": memory.new_empty(batch, places + keep, cell.shape[1]),
            "gates": memory.new_empty(batch, places, gates),
            "interfaces": memory.new_empty(batch, places, offsets.shape[-1] + heads * sharp),
            "cosines": memory.new_empty(batch, places, padded_weights),
            "inverses": memory.new_empty(batch, places, padded_slots),
            "chosen": empty(batch, places, heads, dtype=torch.int32),
        }
        sequences = {"projected": projected.contiguous(), "offsets": offsets}
        _call(kernels, "lrua_forward", numbers, sequences | inputs | outputs | kept)
        if keep:
            ctx.kernels, ctx.numbers = kernels, numbers
            ctx.save_for_backward(*list(inputs.values())[:3], outputs["outputs"], *kept.values())
        ctx.mark_non_differentiable(outputs["usage"])
        last = (outputs["last_cell"], outputs["last_memory"], outputs["last_read_weights"])
        return (outputs["outputs"], *last, outputs["usage"])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        recurrent_weight, interface_weight, first, outputs, *kept = ctx.saved_tensors
        batch, steps, width = outputs.shape
        received = _named(_GRADIENTS_IN, (tensor.contiguous() for tensor in gradients[:4]))
        _, cell, memory, read_weights = received.values()
        found = {
            "projected_gradient": outputs.new_empty(batch, steps, len(recurrent_weight)),
            "offsets_gradient": outputs.new_empty(batch, steps, len(interface_weight)),
            "first_gradient": torch.empty_like(first),
            "first_cell_gradient": torch.empty_like(cell),
            "first_memory_gradient": torch.empty_like(memory),
            "first_read_weights_gradient": torch.empty_like(read_weights),
        }
        weights = {"recurrent_weight": recurrent_weight, "interface_weight": interface_weight}
        _call(ctx.kernels, "lrua_backward", ctx.numbers, weights | _named(_KEPT, kept) | received | found)
        projected, offsets, *start = found.values()
        # The controller was fed with the start, then with its own outputs: one product for all steps.
        fed = torch.cat([first.unsqueeze(1), outputs[:, :-1, width - first.shape[1] :]], dim=1)
        recurrent_gradient = projected.flatten(0, 1).t() @ fed.flatten(0, 1)
        interface_gradient = offsets.flatten(0, 1).t() @ outputs.flatten(0, 1)[:, : interface_weight.shape[1]]
        return (projected, offsets, recurrent_gradient, interface_gradient, *start, None, None, None)


def _named(names: str, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return dict(zip(names.split(), tensors, strict=True))


def _padded_sizes(kernels: ctypes.CDLL, numbers: dict[str, Any]) -> list[int]:
    """Floats that an episode's memory, the weights of its heads and a number per slot take in the kernel."""
    sizes = [ctypes.c_int64() for _ in range(3)]
    kernels.lrua_padded(ctypes.byref(_Arguments(**numbers)), *(ctypes.byref(size) for size in sizes))
    return [size.value for size in sizes]


def _call(kernels: ctypes.CDLL, name: str, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    addresses = {field: address(tensor) for field, tensor in tensors.items()}
    arguments = _Arguments(**numbers, **addresses, threads=torch.get_num_threads())
    kernels.lrua_scratch.restype = ctypes.c_int64
    scratch = empty(kernels.lrua_scratch(ctypes.byref(arguments)))
    arguments.scratch = address(scratch)
    getattr(kernels, name)(ctypes.byref(arguments))
