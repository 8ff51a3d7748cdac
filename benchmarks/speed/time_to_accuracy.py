"""`time_to_95_mann`, `time_to_975_prototypical`: seconds of training to an accuracy, on real Omniglot."""

from benchmarks.speed.measure import Row
from benchmarks.speed.setting import ONE_CORE, Setting

MEASURES = ("time_to_95_mann", "time_to_975_prototypical")


def measure(setting: Setting) -> list[Row]:
    reason = "left out by --quick" if setting.quick else "needs real Omniglot: `fewshot data get omniglot`"
    return [Row(name, str(ONE_CORE), "s", note=reason) for name in MEASURES]
