"""What memory there is, and what this process has of it: the system's own numbers, in bytes.

They come from Linux; elsewhere there is no telling, and every function says so.
"""

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_HEAP_FACTS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process can still take on a device; None where the system does not say.

    On a CPU the least of what Linux calls available and what the control groups of the process leave.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = [*_number_after("MemAvailable:", Path("/proc/meminfo"), unit=1024), *_left_by_control_groups()]
    return min(found, default=None)


def unread_bytes(tensor: Tensor) -> int:
    """Bytes of the mapped file that holds a tensor which are not in memory yet; 0 where there is none."""
    maps = Path("/proc/self/smaps")
    if tensor.device.type != "cpu" or not maps.exists():
        return 0
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps.read_text()):
        first, last = (int(end, 16) for end in mapping.split(" ", 1)[0].split("-"))
        if first <= tensor.data_ptr() < last:
            header, *facts = mapping.splitlines()
            of_a_file = len(header.split()) > 5 and header.split()[5].startswith("/")
            resident = next((int(fact.split()[1]) for fact in facts if fact.startswith("Rss:")), 0)
            return max(0, tensor.nbytes - 1024 * resident) if of_a_file else 0
    return 0


def resident_bytes() -> int:
    """What of this process is in memory; 0 where the system does not say."""
    return next(_number_after("VmRSS:", Path("/proc/self/status"), unit=1024), 0)


class _HeapFacts(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in _HEAP_FACTS]


def free_in_heap() -> int:
    """Bytes that the allocator holds and nobody uses, 0 where it does not say."""
    if sys.platform != "linux":
        return 0
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):  # another C library, or an older one
        return 0
    libc.mallinfo2.restype = _HeapFacts
    return int(libc.mallinfo2().fordblks)


def _left_by_control_groups() -> Iterator[int]:
    """What the memory limit of each control group around this process leaves; nothing where there is none."""
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, limit, usage = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        elif not controllers:
            root, limit, usage, cache = "", "memory.max", "memory.current", "inactive_file"
        else:
            continue
        top = Path("/sys/fs/cgroup") / root
        place = top / path.lstrip("/")
        for folder in (place, *place.parents):
            if not folder.is_relative_to(top):
                break
            for most in _number_after("", folder / limit):
                used = sum(_number_after("", folder / usage))
                yield most - used + sum(_number_after(f"{cache} ", folder / "memory.stat"))


def _number_after(name: str, file: Path, unit: int = 1) -> Iterator[int]:
    """The number on the line of a file that begins with a name, in bytes; nothing where it is not there."""
    try:
        found = re.search(rf"^{re.escape(name)}\s*(\d+)", file.read_text(), re.MULTILINE)
    except OSError:
        return
    if found:
        yield unit * int(found.group(1))
