"""Kernels are compiled once, and where they cannot be, plain torch takes over and one line says so."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewshot.kernels import native
from fewshot.kernels.native import call, empty, empty_maps, library, plain_torch
from fewshot.kernels.winograd import convolve, fits

needs_compiler = pytest.mark.skipif(library("winograd") is None, reason="no C compiler here")
NAMES = sorted(path.stem for path in Path(native.__file__).parent.glob("*.c"))


@pytest.fixture(autouse=True)
def nothing_loaded(own_cache: Path) -> Iterator[None]:
    caches = (native._load, native._say)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "No such file"),
        ("echo 'no such option' >&2; echo more >&2; exit 1", "no such option"),
        ("exit 1", "compiler fails and does not say why"),
        ("exit 0", "No such file"),
        (
            'while [ "$1" != -o ]; do shift; done; echo no library > "$2"',
            "invalid ELF|too short|not a mach-o",
        ),
    ],
    ids=["not there", "complains", "fails in silence", "makes nothing", "makes rubbish"],
)
def test_a_broken_compiler_is_said_in_one_line(
    script: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = "/nowhere/cc" if script is None else compiler(tmp_path, script)
    monkeypatch.setenv("CC", broken)
    assert library("winograd") is None
    assert library("winograd") is None
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("fewshot: plain torch in place of kernels in C (")
    assert re.search(reason, said)
    with pytest.raises(AssertionError, match="before it was asked for"):
        call("winograd", "convolve")


def test_without_a_compiler_all_kernels_share_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert [library(name) for name in NAMES] == [None] * len(NAMES)
    assert capfd.readouterr().err == (
        "fewshot: plain torch in place of kernels in C (there is no C compiler): slower, same figures\n"
    )


@needs_compiler
def test_a_kernel_is_compiled_once_for_all_processes(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert library("draw") is not None
    native._load.cache_clear()
    monkeypatch.setattr(native, "_compile", None)
    assert library("draw") is not None
    assert len(list((own_cache / "kernels").iterdir())) == 1, "nothing temporary is left"


@needs_compiler
def test_a_library_is_that_of_its_source_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was built from others is not loaded."""
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    source, header = tmp_path / "answer.c", tmp_path / "answer.h"

    def answer() -> int:
        native._load.cache_clear()
        kernels = library("answer")
        assert kernels is not None
        return int(kernels.answer())

    header.write_text("#define NUMBER 1\n")
    source.write_text('#include "answer.h"\nint answer(void) { return NUMBER; }\n')
    assert answer() == 1
    header.write_text("#define NUMBER 2\n")
    assert answer() == 2
    source.write_text('#include "answer.h"\nint answer(void) { return NUMBER + 1; }\n')
    assert answer() == 3


@needs_compiler
def test_what_began_with_a_kernel_ends_with_it_though_new_work_does_not() -> None:
    weights = torch.randn(32, 32, 3, 3).requires_grad_()
    maps = torch.randn(2, 32, 6, 6)
    begun = convolve(maps, weights).sum()
    with plain_torch():
        with plain_torch():
            assert not fits(maps, weights)
        assert not fits(maps, weights)
        (gradient,) = torch.autograd.grad(begun, weights, retain_graph=True)
    assert fits(maps, weights)
    assert torch.equal(gradient, torch.autograd.grad(begun, weights)[0])


@needs_compiler
@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(4, 4, device="meta"), torch.zeros(4, 4).T[1:], torch.zeros(2, 3, 4, 5).transpose(0, 1)],
    ids=["elsewhere", "part of a matrix", "axes in another order"],
)
def test_only_whole_tensors_of_the_cpu_are_handed_over(tensor: Tensor) -> None:
    assert library("winograd") is not None
    with pytest.raises(AssertionError):
        call("winograd", "convolve", tensor)


def test_room_does_not_depend_on_the_defaults_of_torch() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            rooms = (empty(2, 3), empty_maps(1, 2, 3, 4))
    finally:
        torch.set_default_dtype(torch.float32)
    for room in rooms:
        assert (room.dtype, room.device.type) == (torch.float32, "cpu")
    assert rooms[1].is_contiguous(memory_format=torch.channels_last)
