"""`help`: seconds that `fewshot --help` takes; the limit is an interpreter that starts and does nothing."""

import subprocess
import sys
import time

from benchmarks.speed.measure import Rounds, Row, Side, interleave
from benchmarks.speed.setting import ONE_CORE, Setting


def measure(setting: Setting) -> list[Row]:
    sides = {"ours": _process("-m", "fewshot", "--help"), "limit": _process("-c", "pass")}
    seconds = interleave(sides, Rounds(5 if setting.quick else 11, 0.0))
    return [Row("help", str(ONE_CORE), "s", seconds["ours"], limit=seconds["limit"])]


def _process(*arguments: str) -> Side:
    def side(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    return side
