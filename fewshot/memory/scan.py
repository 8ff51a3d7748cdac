"""A controller with a memory over a whole sequence: the plain path, and which path is taken where.

Every path is a function of the same arguments, those of `fewshot.kernels.lrua.scan`, and gives the same
numbers up to rounding. The plain one is the reference and the fall-back; on a CPU the loop in it is bound by
the number of operations, so it has few, and a kernel in C does the whole loop; on a GPU, where an operation
takes less time than it takes to ask for it, one fused kernel does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.kernels import lrua
from fewshot.kernels.lrua import ScanOptions, ScanState
from fewshot.memory.controllers import feedforward_step, lstm_step
from fewshot.memory.lrua import LruaState, lrua_step

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
        reads, access = _access(access, torch.addmm(offset, hidden, interface_weight.t()), options)
        outputs.append(torch.cat([hidden, reads.flatten(1)], dim=-1))
        recurrent = outputs[-1] if options.lstm else reads.flatten(1)
    return torch.stack(outputs, dim=1), ScanState(recurrent, cell, *access)


def _access(access: LruaState, interface: Tensor, options: ScanOptions) -> tuple[Tensor, LruaState]:
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


def best_scan(state: ScanState, *sequences: Tensor) -> Scan:
    """The fastest path that these tensors can take."""
    if lrua.can_scan(state, *sequences):
        return lrua.scan
    return plain_scan
