"""Kernels of our own in C, for a CPU: compiled on first use by the machine's compiler, kept in the cache.

A kernel is never needed: what it computes, plain torch computes too, and the callers take that path where
`library` gives None. Why C at all: an episode's images, a normalised convolution layer or a step of the
memory are a handful of cheap operations each; done one by one, they spend their time between operations or
moving intermediate results through memory. Why not an extension module: a shared object called through
ctypes needs no headers of Python or torch, so it compiles in a second and the wheel stays pure Python.

Threads are OpenMP's, and as many as torch's: what gcc compiles takes the very runtime that torch has loaded.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fewshot.data.locations import cache_root

SWITCH_VARIABLE = "FEWSHOT_NATIVE"
"""Set it to 0 to compute everything with plain torch."""

_FLAGS = (
    *("-O3", "-march=native", "-std=c11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math"),
    "-ffp-contract=off",
)
"""The last: a product and a sum are rounded one by one, as torch's separate operations round them. A kernel
that does not promise torch's very bits allows itself otherwise, at its head."""
_COMPILE_SECONDS = 120

_switched_off = 0


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside it no kernel is used: how the tests and the benchmarks compare the two paths."""
    global _switched_off
    _switched_off += 1
    try:
        yield
    finally:
        _switched_off -= 1


def kernels_wanted() -> bool:
    """Whether kernels of our own, in C or not, are to be used at all."""
    return not _switched_off and os.environ.get(SWITCH_VARIABLE) != "0"


def library(name: str) -> ctypes.CDLL | None:
    """The kernels of `<name>.c`, or None where they are switched off or cannot be compiled (said once)."""
    return _load(name) if kernels_wanted() else None


def call(name: str, function: str, *arguments: int | Tensor | None) -> None:
    """Call a function of `<name>.c`, once `library` has given it.

    A pass that began with a kernel ends with it, also where kernels were switched off meanwhile. Numbers
    arrive as int64_t, a tensor as the address of its first number, None as NULL. Tensors are on the CPU and
    contiguous, with their channels last or not. The function returns 0, or 1 for a MemoryError.
    """
    kernels = _load(name)
    assert kernels is not None, f"{name} is called before it was asked for"
    if getattr(kernels, function)(*map(_argument, arguments)):
        raise MemoryError(f"no memory for what {name} works on meanwhile: lower the batch")


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room for a kernel to write in: on the CPU and of this type, whatever torch's defaults are."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def empty_maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`empty`, for (image, channel, height, width) with the channels last in memory."""
    return torch.empty(shape, dtype=dtype, device="cpu", memory_format=torch.channels_last)


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous tensor's numbers begin; the caller keeps the tensor alive during the call."""
    return ctypes.c_void_p(tensor.data_ptr())


def _argument(value: int | Tensor | None) -> ctypes.c_int64 | ctypes.c_void_p | None:
    if not isinstance(value, Tensor):
        return value if value is None else ctypes.c_int64(value)
    assert value.is_cpu, "a kernel reads the CPU's memory"
    assert value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
    return address(value)


@functools.cache
def _load(name: str) -> ctypes.CDLL | None:
    source = Path(__file__).with_name(f"{name}.c")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    try:
        if compiler is None:
            raise FileNotFoundError("there is no C compiler")
        digest = hashlib.sha256("\n".join((compiler, *_FLAGS, _processor())).encode())
        for part in (source, *sorted(source.parent.glob("*.h"))):  # any of which it may include
            digest.update(part.read_bytes())
        built = cache_root() / "kernels" / f"{name}-{digest.hexdigest()[:16]}.so"
        if not built.exists():
            _compile([*compiler.split(), *_FLAGS], source, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error)
        if isinstance(error, subprocess.CalledProcessError):  # the command would name folders, and no reason
            lines = error.stderr.strip().splitlines()
            reason = lines[0] if lines else f"{Path(error.cmd[0]).name} fails and does not say why"
        _say(f"fewshot: plain torch in place of kernels in C ({reason}): slower, same figures")
        return None


@functools.cache
def _say(line: str) -> None:
    """Once: what hinders one kernel mostly hinders all."""
    print(line, file=sys.stderr)


def _compile(command: list[str], source: Path, built: Path) -> None:
    """With OpenMP, else without; to a temporary name, then renamed: several processes may start at once."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        made = Path(folder) / built.name
        for openmp in (["-fopenmp"], []):
            done = subprocess.run(
                [*command, *openmp, str(source), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
            if done.returncode == 0:
                break
        done.check_returncode()
        made.replace(built)


def _processor() -> str:
    """What -march=native depends on: a cache directory may be shared between machines."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    kinds = ("model name", "flags", "Features", "CPU part")
    told = dict.fromkeys(line for line in lines if line.startswith(kinds))
    return "\n".join((platform.machine(), platform.processor(), *told))
