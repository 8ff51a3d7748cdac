"""The machine and the versions that figures of speed belong to; it names no host, user or path."""

import os
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.speed.peers import VERSIONS
from benchmarks.speed.setting import Setting
from fewshot.harness.record import provenance


def machine_facts(setting: Setting) -> dict[str, Any]:
    facts = provenance()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    facts["machine"] |= {
        "memory_gigabytes": round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    present = {peer: number for peer, number in VERSIONS.items() if peer not in setting.peers.absent}
    facts["versions"] |= {"torchvision": version("torchvision")} | present
    return facts | {
        "images": setting.images.name,
        "quick": setting.quick,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
