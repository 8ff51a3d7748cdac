"""`fewshot bench`: the measures of speed are scripts of the checkout, and no part of the installed package.

They compare with peers and build an environment for them.
"""

import importlib
import sys
from pathlib import Path

from fewshot.errors import RecordError

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPTS = Path("benchmarks") / "speed"


def run_bench(out: Path, quick: bool, checkout: Path = CHECKOUT) -> None:
    """Measure, print the table and write the figures to a folder; ends with SystemExit where a peer stops.

    quick: shorter rounds, without what trains to an accuracy. Raises RecordError where this
    package does not lie in a checkout, and where the folder cannot be written.
    """
    if not (checkout / SCRIPTS / "__main__.py").is_file():
        raise RecordError(
            f"fewshot bench needs {SCRIPTS.as_posix()} of the source checkout, and this package is in none: "
            "clone the repository, and install it there with `pip install -e .`"
        )
    sys.path.insert(0, str(checkout))
    scripts = importlib.import_module(".".join((*SCRIPTS.parts, "__main__")))
    scripts.main(["--out", str(out), *(["--quick"] if quick else [])])
