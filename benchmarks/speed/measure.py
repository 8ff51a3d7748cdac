"""What a measurement is, and how sides are compared: in interleaved rounds of one run, by their medians."""

import csv
import io
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLUMNS = (
    "measure",
    "device",
    "ours",
    "unit",
    "peer",
    "peer_value",
    "ratio_to_peer",
    "limit",
    "fraction_of_limit",
)

Unit = Literal["episodes/s", "s", "ms"]
Side = Callable[[int], float]
"""Does the work so many times and gives the seconds that it took."""

DIGITS = 4


@dataclass(frozen=True)
class Row:
    """One measure on one device against one peer; None where there is no figure.

    device: names the cores, "cpu, 1 thread". limit: what the arithmetic or the bandwidth allows.
    note: the conditions, or why a figure is missing; printed beneath the table.
    """

    measure: str
    device: str
    unit: Unit
    ours: float | None = None
    peer: str = ""
    peer_value: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def ratio_to_peer(self) -> float | None:
        """How many times as fast as the peer."""
        return self._speed_over(self.peer_value)

    @property
    def fraction_of_limit(self) -> float | None:
        """How much of the speed that the limit allows."""
        return self._speed_over(self.limit)

    def _speed_over(self, other: float | None) -> float | None:
        if self.ours is None or other is None:
            return None
        return self.ours / other if self.unit == "episodes/s" else other / self.ours


def to_csv(rows: list[Row]) -> str:
    """The rows under COLUMNS; a figure that is missing is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (getattr(row, column) for column in COLUMNS)
        writer.writerow(_digits(value) if isinstance(value, float) else value for value in values)
    return stream.getvalue()


def _digits(value: float) -> str:
    """Rounded to DIGITS significant digits, without an exponent."""
    return np.format_float_positional(value, precision=DIGITS, unique=False, fractional=False, trim="-")


@dataclass(frozen=True)
class Rounds:
    """count: rounds of each side. seconds: that a side's round lasts, unless one piece of work is longer."""

    count: int
    seconds: float


def interleave(sides: Mapping[str, Side], rounds: Rounds) -> dict[str, float]:
    """The median seconds of one piece of work of each side; the sides take turns, so that all see the same
    machine, and each is warmed up before.
    """
    counts = {}
    for name, side in sides.items():
        long = side(1) >= rounds.seconds
        counts[name] = 1 if long else max(1, round(rounds.seconds / side(1)))
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds.count):
        for name, side in sides.items():
            taken[name].append(side(counts[name]) / counts[name])
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
