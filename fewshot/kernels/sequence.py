"""A controller with a memory over a whole sequence in one call, forward and backward (sequence.h).

On a CPU and in float32. A kernel gives sequence.h its memory, and a `MemoryKernel` says what that takes.
Weight gradients are two products over all steps at once, here; everything else is in C.
"""

import ctypes
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fewshot.kernels.native import address, empty, library


class Kept(NamedTuple):
    """What a memory keeps of a step of an episode for the backward pass.

    numbers: how many; start: whether it has a place for the start of the sequence too.
    """

    numbers: int
    start: bool = False
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class MemoryKernel:
    """A memory as `<name>.c` describes it, which also is the prefix of its functions.

    numbers: its own, in the order of its struct;
    state: the parts of a state, likewise; constant: those of them that pass no gradient;
    kept: what it keeps, likewise.
    """

    name: str
    numbers: Mapping[str, int | float]
    state: tuple[str, ...]
    constant: frozenset[str]
    kept: Mapping[str, Kept]

    @property
    def first(self) -> list[str]:
        """The fields of the state at the start."""
        return [f"first_{part}" for part in self.state]

    @property
    def last(self) -> list[str]:
        """The fields of the state at the end."""
        return [f"last_{part}" for part in self.state]

    def structure(self) -> type[ctypes.Structure]:
        """Sequence of sequence.h, then what is the memory's own."""
        kinds = {name: type(number) for name, number in self.numbers.items()}
        gradients = [
            f"{end}_{part}_gradient"
            for end in ("last", "first")
            for part in self.state
            if part not in self.constant
        ]
        arrays = (*self.first, *self.last, *self.kept, *gradients)
        return _structure(tuple(kinds.items()), arrays)


_NUMBERS = "batch steps hidden words interface lstm keep threads offset_episode offset_step"
_SEQUENCES = "projected offsets"
_INPUTS = "recurrent_weight interface_weight first first_cell"
_OUTPUTS = "outputs last_cell"
_KEPT = "cells gates"
_GRADIENTS = (
    "outputs_gradient last_cell_gradient "
    "projected_gradient offsets_gradient first_gradient first_cell_gradient"
)
_ARRAYS = " ".join((_SEQUENCES, _INPUTS, _OUTPUTS, _KEPT, _GRADIENTS, "scratch"))


@functools.cache
def _structure(numbers: tuple[tuple[str, type], ...], arrays: tuple[str, ...]) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [
        *((name, ctypes.c_int64) for name in _NUMBERS.split()),
        *((name, ctypes.c_void_p) for name in _ARRAYS.split()),
        *((name, ctypes.c_float if kind is float else ctypes.c_int64) for name, kind in numbers),
        *((name, ctypes.c_void_p) for name in arrays),
    ]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


def apply(
    function: type[torch.autograd.Function], tensors: tuple[Tensor, ...], options: Any
) -> tuple[Tensor, ...]:
    """Call a kernel: outputs, recurrent, cell and the memory's state; steps are kept if they are needed.

    tensors: projected, offsets, recurrent_weight, interface_weight, recurrent, cell, the memory's state.
    """
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    outputs, *last = function.apply(*tensors, options, keep)
    return outputs, outputs[:, -1, outputs.shape[-1] - tensors[2].shape[1] :], *last


class Sequence(torch.autograd.Function):
    """For `apply`, its options a `MemoryKernel`: gives outputs, the last cell and the memory's last state."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, offsets: Tensor, *given: Any) -> tuple[Tensor, ...]:
        recurrent_weight, interface_weight, first, cell, *state, memory, keep = given
        batch, steps, gates = projected.shape
        interface, hidden = interface_weight.shape
        assert offsets.shape == (batch, steps, interface), "each step's interface has its offsets"
        lstm = gates != hidden
        words = recurrent_weight.shape[1] - hidden * lstm
        # Without a tied path the offsets are one bias, expanded: the kernel takes their strides as they are.
        offsets = offsets if offsets.stride(-1) == 1 else offsets.contiguous()
        numbers = {
            "batch": batch,
            "steps": steps,
            "hidden": hidden,
            "words": words,
            "interface": interface,
            "lstm": lstm,
            "keep": keep,
            "offset_episode": offsets.stride(0),
            "offset_step": offsets.stride(1),
            **memory.numbers,
        }
        tensors = (recurrent_weight, interface_weight, first, cell)
        inputs = _named(_INPUTS.split(), (tensor.contiguous() for tensor in tensors))
        start = _named(memory.first, (part.contiguous() for part in state))
        outputs = {
            "outputs": empty(batch, steps, hidden + words),
            "last_cell": empty(*cell.shape),
            **_named(memory.last, (empty(*part.shape) for part in state)),
        }
        places = steps if keep else 1
        kept = {
            "cells": empty(batch, places + keep, cell.shape[1]),
            "gates": empty(batch, places, gates),
            **{
                name: empty(batch, places + (keep and part.start), part.numbers, dtype=part.dtype)
                for name, part in memory.kept.items()
            },
        }
        sequences = {"projected": projected.contiguous(), "offsets": offsets}
        kernels = library(memory.name)
        assert kernels is not None, "who takes this path has asked for it"
        _call(kernels, memory, "forward", numbers, sequences | inputs | start | outputs | kept)
        if keep:
            ctx.kernels, ctx.memory, ctx.numbers = kernels, memory, numbers
            ctx.save_for_backward(*list(inputs.values())[:3], outputs["outputs"], *kept.values())
        ctx.mark_non_differentiable(*(outputs[f"last_{part}"] for part in memory.constant))
        return tuple(outputs.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        memory: MemoryKernel = ctx.memory
        recurrent_weight, interface_weight, first, outputs, *kept = ctx.saved_tensors
        batch, steps, width = outputs.shape
        received = _named(
            ["outputs_gradient", *(f"{end}_gradient" for end in ("last_cell", *memory.last))],
            (gradient.contiguous() for gradient in gradients),
        )
        for part in memory.constant:
            del received[f"last_{part}_gradient"]
        found = {
            "projected_gradient": empty(batch, steps, len(recurrent_weight)),
            "offsets_gradient": empty(batch, steps, len(interface_weight)),
            "first_gradient": torch.empty_like(first),
            **{
                name.replace("last", "first", 1): torch.empty_like(gradient)
                for name, gradient in received.items()
                if name != "outputs_gradient"
            },
        }
        weights = {"recurrent_weight": recurrent_weight, "interface_weight": interface_weight}
        made = _named([*_KEPT.split(), *memory.kept], kept)
        _call(ctx.kernels, memory, "backward", ctx.numbers, weights | made | received | found)
        projected, offsets = found["projected_gradient"], found["offsets_gradient"]
        start = (found.get(f"{name}_gradient") for name in ("first", "first_cell", *memory.first))
        # The controller was fed with the start, then with its own outputs: one product for all steps.
        fed = torch.cat([first.unsqueeze(1), outputs[:, :-1, width - first.shape[1] :]], dim=1)
        recurrent_gradient = projected.flatten(0, 1).t() @ fed.flatten(0, 1)
        interface_gradient = offsets.flatten(0, 1).t() @ outputs.flatten(0, 1)[:, : interface_weight.shape[1]]
        return (projected, offsets, recurrent_gradient, interface_gradient, *start, None, None)


def _named(names: Iterable[str], tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return dict(zip(names, tensors, strict=True))


def _call(
    kernels: ctypes.CDLL,
    memory: MemoryKernel,
    function: str,
    numbers: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    addresses = {field: address(tensor) for field, tensor in tensors.items()}
    arguments = memory.structure()(**numbers, **addresses, threads=torch.get_num_threads())

    def size(of: str) -> int:
        tells = getattr(kernels, f"{memory.name}_{of}")
        tells.restype = ctypes.c_int64
        return int(tells(ctypes.byref(arguments)))

    assert arguments.interface == size("interface"), f"{memory.name} reads {size('interface')} numbers a step"
    scratch = empty(size("scratch"))
    arguments.scratch = address(scratch)
    getattr(kernels, f"{memory.name}_{function}")(ctypes.byref(arguments))
