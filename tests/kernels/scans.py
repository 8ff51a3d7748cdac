"""What holds for every kernel that runs a cell over a sequence: it is the plain cell, gradients included."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewshot.memory.cell import MemoryCell, MemoryState

INPUT, WAY = 6, 3


class Run(NamedTuple):
    outputs: Tensor
    state: MemoryState
    gradients: list[Tensor]


def sequences(batch: int, steps: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(WAY, (batch, steps))
    return torch.randn(batch, steps, INPUT), torch.nn.functional.one_hot(labels, WAY).float()


def double(state: Any) -> Any:
    return rebuilt(state, (part.double() for part in parts(state)))


def parts(state: Any) -> list[Tensor]:
    """The tensors of a nested named tuple, in order."""
    if isinstance(state, Tensor):
        return [state]
    return [part for branch in state for part in parts(branch)]


def rebuilt(state: Any, tensors: Iterator[Tensor]) -> Any:
    """A nested named tuple of the same form with other tensors."""
    if isinstance(state, Tensor):
        return next(tensors)
    return type(state)(*[rebuilt(branch, tensors) for branch in state])


def used_state(cell: MemoryCell, access: Any) -> MemoryState:
    """A state from the middle of a sequence, around that of the memory."""
    start = cell.start(len(access[0]))
    others = start._replace(access=torch.zeros(()))
    return rebuilt(others, (torch.randn_like(part) / 2 for part in parts(others)))._replace(access=access)


def run(cell: MemoryCell, state: MemoryState, inputs: Tensor, labels: Tensor, pieces: list[int]) -> Run:
    """In pieces of so many steps; gradients to parameters, inputs and start of a random sum of the ends."""
    given = [part.detach().requires_grad_() for part in (inputs, labels, *parts(state))]
    leaves = [*cell.parameters(), *given]
    inputs, labels, *start = given
    state = rebuilt(state, iter(start))
    outputs = []
    for some, shown in zip(inputs.split(pieces, 1), labels.split(pieces, 1), strict=True):
        output, state = cell(state, some, shown)
        outputs.append(output)
    whole = torch.cat(outputs, dim=1)
    generator = torch.Generator().manual_seed(7)
    ends = [whole, *parts(state)]
    total = sum((end * torch.randn(end.shape, generator=generator)).sum() for end in ends)
    assert isinstance(total, Tensor)
    gradients = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return Run(whole.detach(), state, list(gradients))


def assert_equal(fast: Run, plain: Run, exact: Run | None = None) -> None:
    """exact: in double precision; where the plain gradient is off it, as much is allowed to the fast one."""
    torch.testing.assert_close(fast.outputs, plain.outputs, atol=1e-5, rtol=0)
    for ours, theirs in zip(parts(fast.state), parts(plain.state), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)
    for ours, theirs, true in zip(fast.gradients, plain.gradients, (exact or plain).gradients, strict=True):
        if ours.numel():
            off = 1e-4 * theirs.abs().amax().item() + 4 * (theirs - true).abs().amax().item()
            torch.testing.assert_close(ours, theirs, atol=off + 1e-6, rtol=0)
