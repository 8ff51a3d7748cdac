"""Progress of anything that takes longer than two seconds, with the time left.

A bar on a terminal, a plain line every ten seconds elsewhere, nothing at all for what is quick.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_SECONDS = 2.0
LINE_SECONDS = 10.0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of `what` on standard error; the function that it gives adds to what is done.

    >>> with progress("decoding omniglot", 32_460) as advance:
    ...     advance(1)
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task(what, total=total)
    started = time.monotonic()
    next_line = started + QUIET_SECONDS
    done = 0

    def advance(count: int) -> None:
        nonlocal done, next_line
        done += count
        now = time.monotonic()
        if now < next_line:
            return
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done)
        else:
            left = (now - started) * (total - done) / max(done, 1)
            print(f"{what}: {done:,} of {total:,}, {left:.0f} s left", file=sys.stderr, flush=True)
        next_line = now + (0.1 if console.is_terminal else LINE_SECONDS)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
