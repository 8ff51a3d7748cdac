"""The memory of a differentiable neural computer over a whole sequence in one call, both ways (dnc.c).

What `fewshot.memory.dnc` does in a hundred operations a step, on a CPU and in float32. One by one they pass
over the links, slots squared numbers of every episode, a dozen times a step; here a row of links is made and
used while it is near. For the backward pass each step of an episode keeps its state and what it made: 4 *
slots * (slots + word + 8 * heads + 7) bytes and little more, 110 kB at 128 x 40 with four heads, 40 kB
without links.
"""

import ctypes
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.kernels.native import library
from fewshot.kernels.sequence import Kept, MemoryKernel, Sequence, apply


class DncScanState(NamedTuple):
    """recurrent, cell: as in `fewshot.kernels.lrua.ScanState`; then the parts of a `memory.dnc.DncState`."""

    recurrent: Tensor
    cell: Tensor
    memory: Tensor
    usage: Tensor
    read_weights: Tensor
    write_weights: Tensor
    precedence: Tensor
    links: Tensor


@dataclass(frozen=True)
class DncOptions:
    """What kind of memory it is, see `fewshot.memory.dnc.Dnc`."""

    masked: bool
    erase_on_free: bool
    links: bool
    sharp_links: bool
    strength_offset: float


def can_scan(*tensors: Tensor) -> bool:
    """Whether `scan` is for these tensors: float32 on a CPU, and a compiler there."""
    usual = all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
    return usual and library("dnc") is not None


def scan(
    projected: Tensor,
    offsets: Tensor,
    recurrent_weight: Tensor,
    interface_weight: Tensor,
    state: DncScanState,
    options: DncOptions,
) -> tuple[Tensor, DncScanState]:
    """Run the cell over a sequence of one step or more, as `fewshot.kernels.lrua.scan` does.

    interface: in the order of `fewshot.memory.dnc.Dnc`. The whole state passes gradients.
    """
    tensors = (projected, offsets, recurrent_weight, interface_weight, *state)
    outputs, *last = apply(Sequence, tensors, _memory(state, len(interface_weight), options))
    return outputs, DncScanState(*last)


def _memory(state: DncScanState, interface: int, options: DncOptions) -> MemoryKernel:
    (_, heads, slots), word = state.read_weights.shape, state.memory.shape[-1]
    kernels = library("dnc")
    assert kernels is not None, "can_scan says whether there is one"
    row = kernels.dnc_padded(ctypes.c_int64(slots))  # what the kernel pads, it says itself
    strengths = heads + 1 + 2 * heads * options.sharp_links
    sizes = {
        "memory": word * row,
        "usage": row,
        "read_weights": heads * row,
        "write_weights": row,
        "precedence": row * options.links,
        "links": slots * row * options.links,
    }
    return MemoryKernel(
        name="dnc",
        numbers={
            "heads": heads,
            "word": word,
            "slots": slots,
            "masked": options.masked,
            "erase_on_free": options.erase_on_free,
            "linked": options.links,
            "sharp": options.sharp_links,
            "strength_offset": options.strength_offset,
        },
        state=tuple(sizes),
        constant=frozenset(),
        kept={
            **{f"kept_{name}": Kept(size, start=True) for name, size in sizes.items()},
            "interfaces": Kept(interface + strengths),
            "cosines": Kept((1 + heads) * row),
            "inverses": Kept((1 + heads) * row),
            "contents": Kept((1 + heads) * row),
            "followed": Kept(2 * heads * row * options.links),
            "sharpened": Kept(2 * heads * row * options.sharp_links),
            "free_lists": Kept(slots, dtype=torch.int32),
        },
    )
