"""Progress of a suite: one line per learner, with the time left.

Live bars on a terminal; elsewhere a plain line per learner at most every twenty seconds, one for each record
and one at the end of each stage.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fewshot.harness.job import Update

LINE_SECONDS = 20.0


@contextmanager
def show_updates() -> Iterator[Callable[[Update], None]]:
    """Show the updates of `run_suite` on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.fields[job]:<20}"),
        TextColumn("{task.fields[stage]:<9}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bars(bars)


class _Bars:
    """A bar for each job, started anew for each of its stages, so that the time left is the stage's."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, tuple[str, TaskID]] = {}

    def __call__(self, update: Update) -> None:
        stage, task = self.tasks.get(update.job, ("", TaskID(-1)))
        if stage != update.stage:
            if task >= 0:
                self.bars.remove_task(task)
            task = self.bars.add_task("", job=update.job, stage=update.stage, note="", total=update.total)
            self.tasks[update.job] = (update.stage, task)
        self.bars.update(task, completed=update.done, total=update.total, note=update.note)


class _Lines:
    def __init__(self) -> None:
        self.stages: dict[str, tuple[str, float, int]] = {}
        self.next_line: dict[str, float] = {}

    def __call__(self, update: Update) -> None:
        now = time.monotonic()
        stage, began, first = self.stages.get(update.job, ("", now, 0))
        if stage != update.stage:
            began, first = now, update.done
            self.stages[update.job] = (update.stage, began, first)
        elif now < self.next_line.get(update.job, 0.0) and not update.record and update.done < update.total:
            return
        self.next_line[update.job] = now + LINE_SECONDS
        done = update.done - first
        left = f", {(now - began) * (update.total - update.done) / done:.0f} s left" if done else ""
        if update.done == update.total:
            left = f", done in {now - began:.0f} s"
        note = f", {update.note}" if update.note else ""
        line = f"{update.job}: {update.stage} {update.done:,} of {update.total:,}{left}{note}"
        print(line, file=sys.stderr, flush=True)
