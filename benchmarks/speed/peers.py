"""The peers' environment, built once and kept in the cache, and a peer at work in a process of its own.

    python -m benchmarks.speed.peers PEER ...

prints its interpreter, or says which of the peers named it lacks and ends with exit code 1.

Of the peers only dnc runs as published on a current Python and torch. learn2learn's Cython files are compiled
again; what torchmeta and easyfsl miss is given to them when they start (`fewshot/interop/torchmeta.py`,
`peer_worker.py`), so that the installed files are the published ones. The environment sees the running one's
packages: torch is neither installed twice nor of another version.
"""

import contextlib
import hashlib
import json
import os
import site
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fewshot.data.locations import cache_root
from fewshot.harness.record import replace_file

CHECKOUT = Path(__file__).resolve().parents[2]
VERSIONS = {"learn2learn": "0.2.0", "torchmeta": "1.8.0", "easyfsl": "1.5.0", "dnc": "1.1.0"}
RECIPE = 1
"""Raised by hand when an environment built before is not good enough any more."""

_REPORT = "peers.json"
_STEP_SECONDS = 600


class PeerError(Exception):
    """A peer cannot be had, or stopped; the message is one line, for the notes of a record.

    It names no place. What a tool or a library said of it may name folders and hosts of this machine: that
    goes to standard error, and into no file beside the figures.
    """


@dataclass(frozen=True)
class PeerEnvironment:
    """python: its interpreter, None where not even an empty environment could be made.
    absent: why a peer is not there, by its name.
    """

    python: Path | None
    absent: Mapping[str, str]

    def interpreter(self, peer: str) -> Path:
        """Where the peer is installed; raises PeerError where it is not."""
        if self.python is None or peer in self.absent:
            raise PeerError("it could not be installed")
        return self.python


def peer_environment() -> PeerEnvironment:
    """The environment from the cache, built where it is missing, stale, damaged or lacks a peer.

    One that lacks no fewer is not put in its place. Why a peer is absent is said on standard error.
    """
    folder = cache_root() / "peers" / _key()
    environment = _read(folder)
    if environment and not environment.absent:
        return environment
    _say(f"building the environment of {', '.join(_RECIPES)}: a minute or two, kept in the cache directory")
    try:
        environment = _rebuilt(folder, environment)
    except (OSError, subprocess.SubprocessError) as error:
        environment = environment or PeerEnvironment(None, dict.fromkeys(_RECIPES, _reason(error)))
    for peer, reason in environment.absent.items():
        _say(f"{peer} could not be installed: {reason}")
    return environment


def _rebuilt(folder: Path, before: PeerEnvironment | None) -> PeerEnvironment:
    """The environment of a folder, built anew beside it; what was there before stays unless it lacks more."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder.parent) as partial:
        made = Path(partial) / "environment"
        _build(made)
        built = _read(made)
        if built is None:
            raise OSError("its interpreter does not start")
        if before and len(before.absent) <= len(built.absent):
            return before
        if folder.exists():
            folder.rename(Path(partial) / "stale")
        made.rename(folder)
    return PeerEnvironment(_python(folder), built.absent)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _key() -> str:
    """What the environment depends on: another recipe, Python or parent has another."""
    parts = (RECIPE, VERSIONS, sys.version, sys.prefix)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _read(folder: Path) -> PeerEnvironment | None:
    """The environment in a folder, None where it is not whole: the report is the last that is written."""
    python = _python(folder)
    try:
        absent = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        subprocess.run([python, "-c", "pass"], check=True, capture_output=True, timeout=_STEP_SECONDS)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return PeerEnvironment(python, absent)


def _build(folder: Path) -> None:
    """Every peer by itself: one that cannot be installed does not keep the others out."""
    _run(sys.executable, "-m", "venv", folder)
    python = _python(folder)
    (own_packages,) = folder.glob("lib/python*/site-packages")
    parents = "\n".join(path for path in site.getsitepackages() if Path(path).is_dir())
    (own_packages / "parent.pth").write_text(f"{parents}\n", encoding="utf-8")
    absent = {}
    for peer, install in _RECIPES.items():
        try:
            install(python)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            absent[peer] = _reason(error)
    replace_file(folder / _REPORT, json.dumps(absent).encode())


def _install_easyfsl(python: Path) -> None:
    _pip(python, "install", _requirement("easyfsl"))


def _install_dnc(python: Path) -> None:
    """Without flann, which its sparse memories search with: what is measured needs none."""
    _pip(python, "install", "--no-deps", _requirement("dnc"))


def _install_torchmeta(python: Path) -> None:
    """Without its dependencies, which exclude any torch of this decade."""
    _pip(python, "install", *_needed_by_peers())
    _pip(python, "install", "--no-deps", _requirement("torchmeta"))


def _install_learn2learn(python: Path) -> None:
    """From its source distribution, whose C files an old Cython made: they do not compile any more."""
    _pip(python, "install", "setuptools", "wheel", *_needed_by_peers())
    with tempfile.TemporaryDirectory(dir=python.parents[1]) as place:
        _pip(
            python, "download", "--no-deps", "--no-build-isolation", "--no-binary", "learn2learn",
            "--dest", place, _requirement("learn2learn"),
        )  # fmt: skip
        (archive,) = Path(place).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(place, filter="data")
        (source,) = (path for path in Path(place).iterdir() if path.is_dir())
        _run(python.absolute(), "setup.py", "--quiet", "build_ext", "bdist_wheel", cwd=source)
        _pip(python, "install", "--no-deps", *source.glob("dist/*.whl"))


_RECIPES: dict[str, Callable[[Path], None]] = {
    "learn2learn": _install_learn2learn,
    "torchmeta": _install_torchmeta,
    "easyfsl": _install_easyfsl,
    "dnc": _install_dnc,
}


def _needed_by_peers() -> list[str]:
    """What learn2learn and torchmeta need besides torch: the extra `interop`."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed: list[str] = project["optional-dependencies"]["interop"]
    return needed


def _requirement(peer: str) -> str:
    return f"{peer}=={VERSIONS[peer]}"


def _pip(python: Path, *arguments: str | Path) -> None:
    _run(python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments)


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_STEP_SECONDS, cwd=cwd)


def _reason(error: Exception) -> str:
    """The last line that a failed command said, or what went wrong before it could say any."""
    said = (getattr(error, "stderr", None) or "").strip().splitlines()
    return said[-1] if said else " ".join(str(error).split())


@dataclass
class Worker:
    """A peer in a process of its own, that works when it is asked: one line in, the seconds out.

    So the rounds of both sides take turns, only one computes at a time, and neither has the other's
    libraries, allocator or threads. facts: what the peer says of itself when it is ready.
    """

    python: Path
    peer: str
    settings: Mapping[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Raises PeerError where the peer does not get ready, having worked once."""
        paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [self.python, "-m", "benchmarks.speed.peer_worker", self.peer, json.dumps(self.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            self.facts = self._answer()
        except PeerError:
            self.__exit__(None, None, None)
            raise
        return self

    def __call__(self, count: int) -> float:
        """A `Side`: do the work so many times; the seconds that it took."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either, which says why
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()  # the end of its input ends it
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            for said in self._errors.read().strip().splitlines()[-1:]:
                _say(f"{self.peer}: {said}")
            raise PeerError(f"it ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            _say(f"{self.peer}: {answer['error']}: {answer['said']}")
            raise PeerError(f"it stopped with {answer['error']}")
        return answer


def main() -> None:
    environment = peer_environment()
    for peer in sys.argv[1:]:
        try:
            environment.interpreter(peer)
        except PeerError as error:
            sys.exit(f"{peer}: {error}")
    print(environment.python)


if __name__ == "__main__":
    main()
