"""`fewshot bench`: the measures of speed are scripts of the checkout, run in a process of their own.

They compare with peers and build an environment for them; nothing of that is part of the installed package.
"""

import os
import subprocess
import sys
from pathlib import Path

from fewshot.errors import RecordError

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = Path("benchmarks") / "speed"


def run_bench(out: Path, quick: bool, checkout: Path = CHECKOUT) -> int:
    """Measure, print the table and write the figures to a folder; the exit code.

    quick: two minutes in place of twenty, without what trains to an accuracy. Raises RecordError where this
    package does not lie in a checkout.
    """
    if not (checkout / SCRIPTS / "__main__.py").is_file():
        raise RecordError(
            f"fewshot bench needs {SCRIPTS.as_posix()} of the source checkout, and this package is in none: "
            "clone the repository, and install it there with `pip install -e .`"
        )
    paths = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "benchmarks.speed", "--out", str(out), *(["--quick"] if quick else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environment, check=False).returncode
