"""Kernels of our own in C, for a CPU: compiled on first use by the machine's compiler, kept in the cache.

A kernel is never needed: what it computes, plain torch computes too, and the callers take that path where
`library` gives None. Why C at all: an episode's images, a normalised convolution layer or a step of the
memory are a handful of cheap operations each; done one by one, they spend their time between operations or
moving intermediate results through memory. Why not an extension module: a shared object called through
ctypes needs no headers of Python or torch, so it compiles in a second and the wheel stays pure Python.

Threads are OpenMP's, and as many as torch's: the runtime is the very one that torch has loaded.
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

from torch import Tensor

from fewshot.data.locations import cache_root

SWITCH_VARIABLE = "FEWSHOT_NATIVE"
"""Set it to 0 to compute everything with plain torch."""

_FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_EXACT_FLAG = "-ffp-contract=off"
"""A product and a sum are rounded one by one, as torch's separate operations round them."""
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


def library(name: str, *, exact: bool = False) -> ctypes.CDLL | None:
    """The kernels of `<name>.c`, or None where they are switched off or cannot be compiled (said once).

    exact: without fused multiply and add, for kernels that equal plain torch bit for bit.
    """
    if not kernels_wanted():
        return None
    return _load(name, _FLAGS + ((_EXACT_FLAG,) if exact else ()))


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Where a contiguous tensor's numbers begin; the caller keeps the tensor alive during the call."""
    return ctypes.c_void_p(tensor.data_ptr())


@functools.cache
def _load(name: str, flags: tuple[str, ...]) -> ctypes.CDLL | None:
    source = Path(__file__).with_name(f"{name}.c")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    try:
        if compiler is None:
            raise FileNotFoundError("there is no C compiler")
        digest = hashlib.sha256("\n".join((compiler, *flags, _processor())).encode())
        digest.update(source.read_bytes())
        built = cache_root() / "kernels" / f"{name}-{digest.hexdigest()[:16]}.so"
        if not built.exists():
            _compile([*compiler.split(), *flags], source, built)
        return ctypes.CDLL(str(built))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = next(iter(said.strip().splitlines()), type(error).__name__)
        print(
            f"fewshot: plain torch in place of the {name} kernel ({reason}): slower, same figures",
            file=sys.stderr,
        )
        return None


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
