"""What tests of kernels that run a cell over a sequence share: states, runs, and how far they may be off."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import assume
from torch import Tensor

from fewshot.kernels import dnc, lrua
from fewshot.kernels.native import plain_torch
from fewshot.memory.cell import MemoryCell, MemoryState
from fewshot.memory.dnc import Dnc, DncState
from fewshot.memory.lrua import LruaState
from tests.memory.cells import lrua_cell

INPUT, WAY = 6, 3


def dnc_cell(**options: Any) -> MemoryCell:
    of_cell = {name: options.pop(name) for name in ("controller", "hidden_size", "tie") if name in options}
    whole: dict[str, Any] = {"controller": "lstm", "hidden_size": 200, "tie": True} | of_cell
    return MemoryCell(INPUT, WAY, **whole, memory=Dnc(**options))


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


def used_state(cell: MemoryCell, batch: int) -> MemoryState:
    """A state from the middle of a sequence: no two slots alike, links that sum to less than 1."""
    start = cell.start(batch)
    access = used_dnc(start.access) if isinstance(start.access, DncState) else used_lrua(start.access)
    others = start._replace(access=torch.zeros(()))
    return rebuilt(others, (torch.randn_like(part) / 2 for part in parts(others)))._replace(access=access)


def used_lrua(start: LruaState) -> LruaState:
    return LruaState(
        torch.randn_like(start.memory) / 2,
        torch.randn_like(start.read_weights).softmax(-1),
        2 * torch.rand_like(start.usage),
    )


def used_dnc(start: DncState) -> DncState:
    slots = start.usage.shape[1]
    return DncState(
        memory=torch.randn_like(start.memory) / 2,
        usage=torch.rand_like(start.usage),
        read_weights=torch.randn_like(start.read_weights).softmax(-1),
        write_weights=torch.randn_like(start.write_weights).softmax(-1) / 2,
        precedence=torch.rand_like(start.precedence) / slots,
        links=torch.rand_like(start.links) / slots * (1 - torch.eye(start.links.shape[1])),
    )


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


def nearest_usages(cell: MemoryCell, state: MemoryState, inputs: Tensor, labels: Tensor, least: int) -> float:
    """How near two of so many least used slots come: where rounding decides between them, paths may part."""
    usages = [state.access.usage]
    with torch.no_grad():
        for step in range(inputs.shape[1]):
            _, state = cell(state, inputs[:, step : step + 1], labels[:, step : step + 1])
            usages.append(state.access.usage)
    gaps = torch.stack(usages).sort(-1).values[..., :least].diff(dim=-1)
    return gaps.amin().item() if gaps.numel() else 1.0


def assert_equal_to_plain(cell: MemoryCell, batch: int, steps: int, *, least: int, apart: float) -> None:
    """From a used state. What hypothesis drew is given up if so many least usages come nearer than that."""
    state, (inputs, labels) = used_state(cell, batch), sequences(batch, steps)
    with plain_torch():
        assume(nearest_usages(cell, state, inputs, labels, least) > apart)
        plain = run(cell, state, inputs, labels, [steps])
        exact = run(copy.deepcopy(cell).double(), double(state), inputs.double(), labels.double(), [steps])
    assert_equal(run(cell, state, inputs, labels, [steps]), plain, exact)


def assert_equal_from_the_start(cell: MemoryCell, batch: int, steps: int, *, slack: float = 0.0) -> None:
    """Slots that nothing told apart may be swapped, so outputs are compared, and gradients.

    slack: of a gradient, beside 1 in 10,000 of its largest number.
    """
    inputs, labels = sequences(batch, steps)

    def outputs_and_gradients() -> tuple[Tensor, ...]:
        outputs, _ = cell(cell.start(batch), inputs, labels)
        weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3))
        return outputs, *torch.autograd.grad((outputs * weights).sum(), list(cell.parameters()))

    fast = outputs_and_gradients()
    with plain_torch():
        plain = outputs_and_gradients()
    torch.testing.assert_close(fast[0], plain[0], atol=1e-5, rtol=0)
    for ours, theirs in zip(fast[1:], plain[1:], strict=True):
        off = 1e-4 * theirs.abs().amax().item() + slack
        torch.testing.assert_close(ours, theirs, atol=off, rtol=0)


class KernelCall(NamedTuple):
    """What goes straight into a kernel, so that no product of torch stands between.

    sequences: projected and offsets, (batch, step, ...); weights: the recurrent and the interface's.
    """

    scan: Callable[..., tuple[Tensor, Any]]
    sequences: list[Tensor]
    weights: list[Tensor]
    state: Any
    options: Any

    def __call__(self) -> tuple[Tensor, Any]:
        return self.scan(*self.sequences, *self.weights, self.state, self.options)


def kernel_call(kernel: str, batch: int, steps: int) -> KernelCall:
    """3 heads, 21 slots of 5 numbers, an LSTM of 7 units."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 7, "num_slots": 21, "word_size": 5, "read_heads": 3}
    if kernel == "lrua":
        apart: dict[str, Any] = {"add_vector": "apart", "strength_offset": 2.0}
        cell = lrua_cell(INPUT, WAY, **sizes, **apart, controller="lstm", tie=False)
        scan, of_kind, options = lrua.scan, lrua.ScanState, lrua.ScanOptions(True, True, False, 0.95, 2.0)
    else:
        whole: dict[str, Any] = {"masked": True, "erase_on_free": True, "links": True, "sharp_links": True}
        cell = dnc_cell(**sizes, **whole, tie=False)
        scan, of_kind, options = dnc.scan, dnc.DncScanState, dnc.DncOptions(**whole, strength_offset=1.0)
    state = of_kind(torch.randn(batch, 22), torch.randn(batch, 7), *used_state(cell, batch).access)
    size = cell.memory.interface_size
    shapes = [(batch, steps, 28), (batch, steps, size), (28, 22), (size, 7)]
    tensors = [torch.randn(shape) for shape in shapes]
    return KernelCall(scan, tensors[:2], tensors[2:], state, options)
