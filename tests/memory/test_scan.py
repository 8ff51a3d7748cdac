"""Which path the memory's scan takes, and that a fused kernel is not trusted before it was tried."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot.kernels import lrua
from fewshot.kernels.lrua import ScanOptions, ScanState
from fewshot.kernels.native import library, plain_torch
from fewshot.memory.controllers import ControllerKind
from fewshot.memory.dnc import Dnc
from fewshot.memory.external import ExternalMemory
from fewshot.memory.lrua import Lrua
from fewshot.memory.ntm import Ntm
from fewshot.memory.scan import fused_scan, lrua_scan, plain_scan, scan_of

CPU = torch.device("cpu")
OPTIONS = ScanOptions(lstm=True, apart=True, shared=False, usage_decay=0.9, strength_offset=2.0)


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    fused_scan.cache_clear()
    yield
    fused_scan.cache_clear()


def state(dtype: torch.dtype = torch.float32) -> ScanState:
    shapes = [(1, 5), (1, 3), (1, 4, 2), (1, 1, 4), (1, 4)]
    return ScanState(*(torch.zeros(shape, dtype=dtype) for shape in shapes))


@pytest.mark.skipif(library("lrua") is None, reason="the lrua kernel does not compile here")
def test_on_a_cpu_the_kernel_in_c_is_taken_where_it_can_be() -> None:
    assert lrua_scan(OPTIONS, state()) is lrua.scan
    assert lrua_scan(OPTIONS, state(torch.double)) is None
    with plain_torch():
        assert lrua_scan(OPTIONS, state()) is None


@pytest.mark.skipif(
    library("lrua") is None or library("dnc") is None, reason="the kernels do not compile here"
)
@pytest.mark.parametrize(
    ("memory", "controller", "there_is_one"),
    [
        (Lrua(), "lstm", True),
        (Lrua(), "feedforward", True),
        (Lrua(), "gru", False),
        (Lrua(order="address_first"), "lstm", False),
        (Dnc(), "lstm", True),
        (Dnc(), "gru", False),
        (Ntm(), "lstm", False),
    ],
)
def test_kernels_are_for_two_memories_in_their_papers_order_and_two_controllers(
    memory: ExternalMemory, controller: ControllerKind, there_is_one: bool
) -> None:
    like = torch.zeros(1, 1)
    start: tuple[Tensor, ...] = (like, like, *memory.start(1, like))
    assert (scan_of(memory, controller, start) is not None) == there_is_one


def test_a_fused_kernel_that_agrees_is_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def agreeing(*arguments: Any) -> Any:
        return plain_scan(*arguments)

    monkeypatch.setitem(sys.modules, "fewshot.kernels.lrua_triton", SimpleNamespace(scan=agreeing))
    with torch.inference_mode():
        assert fused_scan(CPU, OPTIONS) is agreeing
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", ["output", "gradient", "nan", "error", "missing"])
def test_one_that_fails_or_differs_is_not_and_that_is_said_once(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(projected: Any, *others: Any) -> Any:
        if fault == "error":
            raise RuntimeError("no such instruction\nand a long story")
        if fault == "gradient":  # the same numbers, another slope
            projected = projected.detach() + 1.01 * (projected - projected.detach())
        outputs, last = plain_scan(projected, *others)
        outputs = outputs * {"output": 1.01, "nan": float("nan")}.get(fault, 1)
        return outputs, last

    module = None if fault == "missing" else SimpleNamespace(scan=faulty)
    monkeypatch.setitem(sys.modules, "fewshot.kernels.lrua_triton", module)
    assert fused_scan(CPU, OPTIONS) is None
    assert fused_scan(CPU, OPTIONS) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fewshot: plain torch in place of the fused memory kernel on cpu (")
    assert {"error": "no such instruction", "nan": "off by nan"}.get(fault, "") in line
