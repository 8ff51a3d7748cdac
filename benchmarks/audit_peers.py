"""What the audit finds in the episodes of other libraries, and in ours; written to a results folder.

    python -m benchmarks.audit_peers --out results/audit_peers

learn2learn's ready-made Omniglot benchmark draws its training tasks from all classes, and easyfsl numbers the
classes of an episode in the order of a Python set of their ids. Both are run as published, in the environment
that `fewshot bench` builds for its peers, on the Omniglot of the data directory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_episodes import NAMES
from benchmarks.speed.peers import CHECKOUT, VERSIONS, PeerError, peer_environment
from benchmarks.speed.setting import SIDE, Setting
from fewshot.data.catalogue import load_dataset
from fewshot.data.locations import data_root
from fewshot.data.omniglot import find_parts
from fewshot.data.split import ClassPool
from fewshot.episodes.batch import KShotBatch
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import FewshotError
from fewshot.harness.audit.finding import Finding
from fewshot.harness.audit.given import GivenEpisode, audit_episodes
from fewshot.harness.record import check_writable, provenance, replace_file
from fewshot.report.audit import table
from fewshot.report.formats import write

EPISODES = 2000
SHAPE = KShot(way=5, shot=1, query=1)
FEW_CLASSES = 64
"""As many as miniImageNet trains on."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_peers", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for audit.md and audit.json")
    out = parser.parse_args().out
    check_writable(out)
    facts = provenance()
    facts["versions"] |= {peer: VERSIONS[peer] for peer in ("learn2learn", "easyfsl")}
    findings = list(_findings())
    print(*findings, sep="\n")
    _write(out, findings, facts)


def _findings() -> Iterator[Finding]:
    peers = peer_environment()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        setting = Setting(True, peers, folder, load_dataset("omniglot", image_size=SIDE))
        data = setting.given_to_peers(setting.train)
        asked: dict[str, tuple[str, dict[str, Any]]] = {
            "learn2learn, its Omniglot benchmark": ("learn2learn", {"root": _unpacked(folder)}),
            f"easyfsl, {FEW_CLASSES} classes": ("easyfsl", {"data": data, "classes": FEW_CLASSES}),
            f"easyfsl, {len(setting.train):,} classes": ("easyfsl", {"data": data, "classes": None}),
        }
        for subject, (peer, settings) in asked.items():
            print(f"{subject}: drawing {EPISODES:,} episodes", file=sys.stderr, flush=True)
            file = folder / "episodes.npz"
            _draw(peers.interpreter(peer), peer, settings, file)
            yield from _audited(subject, file)
        for finding in audit_episodes(_ours(setting.train)):
            yield replace(finding, subject=f"fewshot, {len(setting.train):,} classes")


def _unpacked(folder: Path) -> str:
    """Omniglot as torchvision has it on disk, beneath a folder."""
    for part in find_parts(data_root()):
        target = folder / "omniglot-py"
        if part.is_dir():
            shutil.copytree(part, target / part.name)
        else:
            with zipfile.ZipFile(part) as archive:
                archive.extractall(target)
    return str(folder)


def _draw(python: Path, peer: str, settings: Mapping[str, Any], file: Path) -> None:
    """Let a peer write its episodes to a file; raises PeerError where it cannot."""
    shape = {"way": SHAPE.way, "shot": SHAPE.shot, "query": SHAPE.query}
    given = json.dumps({**settings, **shape, "episodes": EPISODES})
    command: list[str | Path] = [python, "-m", "benchmarks.peer_episodes", peer, given, file]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise PeerError(f"{peer} ended with exit code {done.returncode}")


def _audited(subject: str, file: Path) -> Iterator[Finding]:
    with np.load(file) as arrays:
        episodes: list[GivenEpisode] = list(zip(*(arrays[name] for name in NAMES), strict=True))
        test_classes = arrays["test_classes"].tolist() if "test_classes" in arrays else None
    for finding in audit_episodes(episodes, test_classes=test_classes):
        yield replace(finding, subject=subject)


def _ours(pool: ClassPool) -> Iterator[GivenEpisode]:
    for batch in EpisodeSampler(pool, SHAPE, episode_seed=0).batches(0, EPISODES, 100):
        assert isinstance(batch, KShotBatch)
        yield batch


def _write(out: Path, findings: list[Finding], facts: Mapping[str, Any]) -> None:
    """audit.md for people, with the conditions beneath it; audit.json for programs."""
    told = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    notes = [
        "made with `python -m benchmarks.audit_peers --out results/audit_peers`",
        told,
    ]
    title = f"What the audit finds in training episodes, 5-way 1-shot, {EPISODES:,} of each"
    replace_file(out / "audit.md", write([table(title, findings, notes)], "md").encode())
    content = json.dumps({**facts, "findings": [asdict(finding) for finding in findings]}, indent=2)
    replace_file(out / "audit.json", f"{content}\n".encode())


if __name__ == "__main__":
    try:
        main()
    except PeerError as error:
        print(f"fewshot: {error}", file=sys.stderr)
        sys.exit(1)
    except FewshotError as error:
        print(f"fewshot: {error}", file=sys.stderr)
        sys.exit(2)
