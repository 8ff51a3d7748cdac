"""A controller with a memory over a whole sequence: the plain path, and which path is taken where.

Every path is a function of the same arguments, those of `fewshot.kernels.lrua.scan`, and gives the same
numbers up to rounding. The plain one is the reference and the fall-back; on a CPU the loop in it is bound by
the number of operations, so it has few, and a kernel in C does the whole loop; on a GPU, where an operation
takes less time than it takes to ask for it, one fused kernel does.
"""

import functools
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.kernels import dnc, lrua
from fewshot.kernels.dnc import DncOptions, DncScanState
from fewshot.kernels.lrua import ScanOptions, ScanState
from fewshot.kernels.native import kernels_wanted
from fewshot.memory.controllers import feedforward_step, lstm_step
from fewshot.memory.external import Access
from fewshot.memory.lrua import LruaState, lrua_step

TOLERANCE = 1e-3
"""What the fused kernel may be off on a small case: rounding takes a hundredth of it, a mistake more."""

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, ScanState, ScanOptions], tuple[Tensor, ScanState]]


def plain_scan(
    projected: Tensor,
    offsets: Tensor,
    recurrent_weight: Tensor,
    interface_weight: Tensor,
    state: ScanState,
    options: ScanOptions,
) -> tuple[Tensor, ScanState]:
    """Step by step, in plain torch; the arguments are explained at `fewshot.kernels.lrua.scan`."""
    recurrent, cell, *memory = state
    access = LruaState(*memory)
    outputs = []
    for gates, offset in zip(projected.unbind(1), offsets.unbind(1), strict=True):
        gates = torch.addmm(gates, recurrent, recurrent_weight.t())
        hidden, cell = lstm_step(gates, cell) if options.lstm else (feedforward_step(gates), cell)
        reads, access = _access(access, torch.addmm(offset, hidden, interface_weight.t()), options)[:2]
        outputs.append(torch.cat([hidden, reads.flatten(1)], dim=-1))
        recurrent = outputs[-1] if options.lstm else reads.flatten(1)
    return torch.stack(outputs, dim=1), ScanState(recurrent, cell, *access)


def _access(access: LruaState, interface: Tensor, options: ScanOptions) -> Access:
    _, heads, _ = access.read_weights.shape
    word = access.memory.shape[2]
    split = heads * word * (2 if options.apart else 1)
    vectors, scalars = torch.tanh(interface[:, :split]), interface[:, split:]
    vectors = vectors.reshape(len(vectors), -1, word)
    strength = None
    if options.strength_offset is not None:
        strength = options.strength_offset + F.softplus(scalars[:, heads:])
    return lrua_step(
        access,
        key=vectors[:, :heads],
        add=vectors[:, -heads:],  # the key itself where there is no vector apart
        write_gate=torch.sigmoid(scalars[:, :heads]),
        strength=strength,
        usage_decay=options.usage_decay,
        least_used="shared" if options.shared else "per_head",
    )


def scan_of(
    options: ScanOptions | DncOptions | None, start: tuple[Tensor, ...], *sequences: Tensor
) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]] | None:
    """The fastest path over a whole sequence that these tensors can take; None: step by step.

    start: what the controller is fed with besides its input, its cell, and the parts of the memory's state;
    what is given back takes projected, offsets and weights, and gives the outputs and the like of start.
    """
    match options:
        case ScanOptions():
            state = ScanState(*start)
            scan: Callable[..., tuple[Tensor, ScanState]] = best_scan(options, state, *sequences)
            return partial(scan, state=state, options=options)
        case DncOptions() if dnc.can_scan(*start, *sequences):
            return partial(dnc.scan, state=DncScanState(*start), options=options)
    return None


def best_scan(options: ScanOptions, state: ScanState, *sequences: Tensor) -> Scan:
    """The fastest path that these tensors can take with a least recently used memory."""
    if lrua.can_scan(state, *sequences):
        return lrua.scan
    if state.memory.is_cuda and lrua.is_usual(state, *sequences) and kernels_wanted():
        return fused_scan(state.memory.device, options)
    return plain_scan


@functools.cache
def fused_scan(device: torch.device, options: ScanOptions) -> Scan:
    """The fused kernel, once it was held against the plain path on this device; else that, said in one line.

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
    return plain_scan


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
