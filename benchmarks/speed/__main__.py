"""`fewshot bench`: every measure in one run; prints the table, writes speed.csv, the plots and the machine.

python -m benchmarks.speed --out DIR [--quick] [--only MEASURE ...]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed import (
    cost,
    dnc_step,
    episodes,
    evaluation,
    lrua_step,
    maml_step,
    prototypical_step,
    sparse_step,
    start_up,
    time_to_accuracy,
)
from benchmarks.speed.machine import machine_facts
from benchmarks.speed.measure import Row, to_csv
from benchmarks.speed.peers import PeerError, peer_environment
from benchmarks.speed.plots import plot_costs
from benchmarks.speed.setting import Setting, images_at_hand
from benchmarks.speed.table import to_text
from fewshot.errors import FewshotError
from fewshot.harness.record import check_writable, replace_file


class Stage(NamedTuple):
    """seconds, quick_seconds: about how long it takes, for the time left."""

    name: str
    measure: Callable[[Setting], list[Row]]
    seconds: float
    quick_seconds: float


STAGES = (
    Stage("help", start_up.measure, 5, 3),
    Stage("episodes", episodes.measure, 60, 20),
    Stage("evaluate_10k", evaluation.measure, 140, 30),
    Stage("prototypical_step", prototypical_step.measure, 40, 10),
    Stage("maml_step", maml_step.measure, 80, 20),
    Stage("lrua_step", lrua_step.measure, 40, 10),
    Stage("dnc_step", dnc_step.measure, 20, 6),
    Stage("sparse_step", sparse_step.measure, 60, 45),
    Stage("time_to_accuracy", time_to_accuracy.measure, 400, 1),
)
COST = Stage("cost", lambda setting: [], 150, 25)


def main(given: Sequence[str] | None = None) -> None:
    """given: the arguments, those of the process by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--quick", action="store_true", help="shorter rounds, no long measures")
    names = [stage.name for stage in (*STAGES, COST)]
    parser.add_argument("--only", action="append", choices=names, help="only this measure; repeatable")
    arguments = parser.parse_args(given)
    try:
        run(arguments.out, arguments.quick, arguments.only or names)
    except PeerError as error:
        print(f"fewshot: a peer stopped in the middle of its work: {error}", file=sys.stderr)
        sys.exit(1)


def run(out: Path, quick: bool, names: list[str]) -> None:
    """Measure what is named; what is done is on disk before the next measure begins."""
    check_writable(out)
    environment = peer_environment()
    images = images_at_hand()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(quick, environment, Path(folder), images)
        facts = machine_facts(setting)
        left = _announcer(names, quick)
        for stage in STAGES:
            if stage.name in names:
                left(stage.name)
                rows += stage.measure(setting)
                replace_file(out / "speed.csv", to_csv(rows).encode())
                _write_machine(out, facts, rows)
        if COST.name in names:
            left(COST.name)
            costs = cost.measure(setting)
            replace_file(out / "cost.csv", cost.to_csv(costs).encode())
            plot_costs(costs, out, f"{facts['machine']['cpu']}, torch {facts['versions']['torch']}")
            _write_machine(out, facts, rows)
    machine = facts["machine"]
    print(f"{machine['cpu']}, {machine['cores']} cores; images: {images.name}\n")
    if rows:
        print(to_text(rows))
    print(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _write_machine(out: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    """Where the figures come from, and the conditions of each."""
    notes = [f"{row.measure}, {row.device}: {row.note}" for row in rows if row.note]
    told = json.dumps(facts | {"notes": notes}, indent=2, ensure_ascii=False)
    replace_file(out / "machine.json", f"{told}\n".encode())


def _announcer(names: list[str], quick: bool) -> Callable[[str], None]:
    """Says on standard error which measure begins, and about how long all that is left takes."""
    began = time.monotonic()
    chosen = [stage for stage in (*STAGES, COST) if stage.name in names]
    plan = {stage.name: stage.quick_seconds if quick else stage.seconds for stage in chosen}

    def announce(name: str) -> None:
        order = list(plan)
        place = order.index(name)
        done = sum(plan[earlier] for earlier in order[:place])
        pace = (time.monotonic() - began) / done if done else 1.0
        left = pace * sum(plan[later] for later in order[place:])
        print(
            f"{name} ({place + 1} of {len(order)}), about {left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )

    return announce


if __name__ == "__main__":
    try:
        main()
    except FewshotError as error:
        print(f"fewshot: {error}", file=sys.stderr)
        sys.exit(2)
