"""A controller with a memory over a whole sequence in one call: which kernel runs it, if any.

Without one the cell goes step by step (`fewshot.memory.cell`), which on a CPU is bound by the number of
operations: a kernel in C does the whole loop. On a GPU, where an operation takes less time than it takes to
ask for it, one fused kernel does. Each gives the numbers of the cell's own steps up to rounding.
"""

import functools
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fewshot.kernels import dnc, lrua
from fewshot.kernels.dnc import DncScanState
from fewshot.kernels.lrua import ScanOptions, ScanState
from fewshot.kernels.native import kernels_wanted
from fewshot.memory.controllers import ControllerKind, feedforward_step, lstm_step
from fewshot.memory.dnc import Dnc
from fewshot.memory.external import ExternalMemory
from fewshot.memory.lrua import Lrua, LruaState

TOLERANCE = 1e-3
"""What the fused kernel may be off on a small case: rounding takes a hundredth of it, a mistake more."""

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, ScanState, ScanOptions], tuple[Tensor, ScanState]]


def scan_of(
    memory: ExternalMemory, controller: ControllerKind, start: tuple[Tensor, ...], *sequences: Tensor
) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]] | None:
    """The kernel that runs this kind of controller with this memory over these tensors; None: step by step.

    start: what the controller is fed with besides its input, its cell, and the parts of the memory's state;
    what is given back takes projected, offsets and weights, and gives the outputs and the like of start.
    """
    if controller not in ("lstm", "feedforward"):
        return None
    match memory:
        case Lrua(order="write_first"):
            options = ScanOptions(
                lstm=controller == "lstm",
                apart=memory.add_heads > 0,
                shared=memory.least_used == "shared",
                usage_decay=memory.usage_decay,
                strength_offset=memory.strength_offset,
            )
            state = ScanState(*start)
            scan: Callable[..., tuple[Tensor, ScanState]] | None = lrua_scan(options, state, *sequences)
            return None if scan is None else partial(scan, state=state, options=options)
        case Dnc() if dnc.can_scan(*start, *sequences):
            return partial(dnc.scan, state=DncScanState(*start), options=memory.options)
    return None


def lrua_scan(options: ScanOptions, state: ScanState, *sequences: Tensor) -> Scan | None:
    """The kernel that these tensors can take with a least recently used memory."""
    if lrua.can_scan(state, *sequences):
        return lrua.scan
    if state.memory.is_cuda and lrua.is_usual(state, *sequences) and kernels_wanted():
        return fused_scan(state.memory.device, options)
    return None


@functools.cache
def fused_scan(device: torch.device, options: ScanOptions) -> Scan | None:
    """The fused kernel, once it was held against `plain_scan` on this device; else None, said in one line.

    It comes out of a compiler and onto devices that it was not tried on.
    """
    try:
        # Here, because Triton takes a while to import and is not everywhere.
        from fewshot.kernels.lrua_triton import scan

        off = largest_difference(scan, device, options)
        if off <= TOLERANCE:
            return scan
        reason = f"it is off by {off:.1g}"
    except Exception as error:  # whatever a compiler, a driver or a missing package raises
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    print(
        f"fewshot: plain torch in place of the fused memory kernel on {device} ({reason}): "
        "slower, same figures",
        file=sys.stderr,
    )
    return None


@torch.inference_mode(False)
@torch.enable_grad()
def largest_difference(scan: Scan, device: torch.device, options: ScanOptions) -> float:
    """Between a path in single and the plain one in double precision, on a small case, gradients included.

    Of each result's largest number.
    """
    batch, steps, hidden, heads, word, slots = 3, 4, 19, 4, 7, 21
    words = heads * word
    gates, recurrent = (4 * hidden, hidden + words) if options.lstm else (hidden, words)
    interface = words * (1 + options.apart) + heads * (1 + (options.strength_offset is not None))
    random = torch.Generator().manual_seed(0)
    shapes = [(batch, steps, gates), (batch, steps, interface), (gates, recurrent), (interface, hidden)]
    shapes += [(batch, recurrent), (batch, gates // 4 if options.lstm else 0), (batch, slots, word)]
    given = [torch.randn(shape, generator=random, dtype=torch.double) / 2 for shape in shapes]
    given += [torch.randn(batch, heads, slots, generator=random, dtype=torch.double).softmax(-1)]
    usage = torch.rand(batch, slots, generator=random, dtype=torch.double)

    def results(path: Scan, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in given]
        projected, offsets, recurrent_weight, interface_weight, *start = leaves
        state = ScanState._make([*start, usage.to(device, dtype)])
        outputs, last = path(projected, offsets, recurrent_weight, interface_weight, state, options)
        total = outputs.sin().sum() + sum(part.square().sum() for part in last[:4])
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        return [part.detach().double() for part in (outputs, *last, *gradients) if part.numel()]

    pairs = zip(results(scan, torch.float32), results(plain_scan, torch.double), strict=True)
    return float(torch.stack([(ours - true).abs().amax() / true.abs().amax() for ours, true in pairs]).amax())


def plain_scan(
    projected: Tensor,
    offsets: Tensor,
    recurrent_weight: Tensor,
    interface_weight: Tensor,
    state: ScanState,
    options: ScanOptions,
) -> tuple[Tensor, ScanState]:
    """Step by step, what a fused kernel is tried against; the arguments are those of
    `fewshot.kernels.lrua.scan`.

    The steps are those of the cell's controller and memory. Only the loop is another one, as at a trial there
    are tensors and no cell.
    """
    recurrent, cell, *parts = state
    access, memory = LruaState(*parts), _memory(state, options)
    outputs = []
    for gates, offset in zip(projected.unbind(1), offsets.unbind(1), strict=True):
        gates = torch.addmm(gates, recurrent, recurrent_weight.t())
        hidden, cell = lstm_step(gates, cell) if options.lstm else (feedforward_step(gates), cell)
        reads, access = memory.step(access, torch.addmm(offset, hidden, interface_weight.t()))[:2]
        outputs.append(torch.cat([hidden, reads.flatten(1)], dim=-1))
        recurrent = outputs[-1] if options.lstm else reads.flatten(1)
    return torch.stack(outputs, dim=1), ScanState(recurrent, cell, *access)


def _memory(state: ScanState, options: ScanOptions) -> Lrua:
    _, read_heads, num_slots = state.read_weights.shape
    return Lrua(
        num_slots=num_slots,
        word_size=state.memory.shape[2],
        read_heads=read_heads,
        usage_decay=options.usage_decay,
        least_used="shared" if options.shared else "per_head",
        add_vector="apart" if options.apart else "key",
        strength_offset=options.strength_offset,
    )
