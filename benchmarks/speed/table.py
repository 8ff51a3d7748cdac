"""The measures as a table for a terminal: one block per device, and the conditions beneath."""

import io
import textwrap

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.speed.measure import Row

COLUMNS = 100
LEGEND = """\
faster: how many times as fast as the peer. limit: for episodes, a bare index_select of float32 rows (ours
reads uint8, a quarter of that); for steps and evaluation, their convolutions and matrix products at the rate
of a large product of matrices (as plain torch counts them: Winograd's convolutions take fewer); for help, an
interpreter that starts and does nothing."""


def to_text(rows: list[Row]) -> str:
    """Plain text, of at most COLUMNS columns unless a device has a long name."""
    stream = io.StringIO()
    console = Console(file=stream, width=2 * COLUMNS, no_color=True, highlight=False, markup=False)
    for device in dict.fromkeys(row.device for row in rows):
        drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for heading in (device, "peer"):
            drawn.add_column(heading, no_wrap=True)
        for heading in ("ours", "peer's", "faster", "limit", "of limit"):
            drawn.add_column(heading, justify="right", no_wrap=True)
        before = ""
        for row in (row for row in rows if row.device == device):
            again = row.measure == before
            before = row.measure
            ratio = "" if row.ratio_to_peer is None else f"{row.ratio_to_peer:.2f}×"
            part = "" if row.fraction_of_limit is None or again else f"{row.fraction_of_limit:.0%}"
            drawn.add_row(
                "" if again else row.measure,
                row.peer,
                "" if again else _figure(row.ours, row.unit),
                _figure(row.peer_value, row.unit),
                ratio,
                "" if again else _figure(row.limit, row.unit),
                part,
            )
        console.print(drawn)
        console.print()
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    notes = [f"{row.measure}, {row.device}: {row.note}" for row in rows if row.note]
    for note in (LEGEND, *notes):
        lines += textwrap.wrap(note, COLUMNS, subsequent_indent="  ")
    return "\n".join(lines).strip("\n") + "\n"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:,.{digits}f} {unit.removeprefix('episodes')}"
