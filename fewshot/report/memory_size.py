"""Accuracy against the slots of a memory and against the length of its streams.

The records are one learner's under several values of its option num_slots, in streams of several lengths, as
benchmarks/mann_cost.toml makes them. A longer stream shows each class more often, so two presentations are
drawn: the 2nd, and the last, by which a small memory has been written over many times. A chain of streams is
as long as all its images are: the memory is not wiped between them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fewshot.harness.record import Record
from fewshot.report.axes import STRETCH_NOTE, clean, margins, stretch
from fewshot.report.figure import add_title, new_figure
from fewshot.report.results import Result, describe_test_set, file_name, grouped, test_set

Axis = Callable[[Record], int]

MARKERS = "osD^v<>"


def memory_figures(streams: Sequence[Result]) -> dict[str, Figure]:
    """A figure, by name, of each learner and kind of stream for which there are several numbers of slots."""
    figures = {}
    for group in grouped((result for result in streams if _slots(result.record)), _setting):
        record = group[0].record
        if len({_slots(result.record) for result in group}) > 1:
            name = f"memory-{_method(record)}-{record.way}way-{record.counts}-{file_name(group)}"
            figures[name] = memory_figure(group)
    return figures


def memory_figure(results: Sequence[Result]) -> Figure:
    """Accuracy at the 2nd and at the last presentation, against slots and against images without wiping."""
    record = results[0].record
    figure = new_figure(10.2, 6.6)
    left, bottom, width, height = margins(figure, left=0.65, right=1.2, bottom=0.58, top=1.05)
    edges = {"left": left, "right": left + width, "bottom": bottom, "top": bottom + height}
    panels = figure.subplots(
        2, 2, sharex="col", sharey=True, gridspec_kw=edges | {"wspace": 0.38, "hspace": 0.16}
    )
    highest = max(_accuracy(result, last) for result in results for last in (False, True))
    columns = (
        ("slots of the memory", "images", _slots, _images),
        ("images without wiping", "slots", _images, _slots),
    )
    for row, last in zip(panels, (False, True), strict=True):
        for axes, (label, legend, across, line) in zip(row, columns, strict=True):
            _draw(axes, results, last, across, line)
            stretched = stretch(axes, "y", highest)
            if last:
                axes.set_xlabel(f"{label} (logarithmic)")
            else:
                axes.legend(title=legend, loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False)
        row[0].set_ylabel(f"{'last' if last else '2nd'} presentation (%)")
    notes = ["bar: 95 % over episodes"] + [STRETCH_NOTE] * stretched
    told = f"{record.way}-way, {record.counts} counts; {describe_test_set(results)}"
    add_title(figure, f"{_method(record)}: the size of the memory", told, "  ·  ".join(notes))
    return figure


def _setting(record: Record) -> tuple[object, ...]:
    """What the records of one figure have in common: the method, and their streams but for the length."""
    return *test_set(record), _method(record), record.way, record.counts, record.labels


def _method(record: Record) -> str:
    return record.learner.partition(":")[0]


def _slots(record: Record) -> int:
    """The slots of the learner's memory; 0 for a learner without."""
    slots: int = (record.config.get("options") or {}).get("num_slots", 0)
    return slots


def _images(record: Record) -> int:
    """Images of an episode, between which nothing is wiped."""
    return (record.length or 0) * record.chain


def _accuracy(result: Result, last: bool) -> float:
    return result.figures[_presentation(result, last)].accuracy


def _presentation(result: Result, last: bool) -> int:
    return max(k for k in result.figures if k is not None) if last else 2


def _draw(axes: Axes, results: Sequence[Result], last: bool, across: Axis, line: Axis) -> None:
    """A line per value of `line`, with its points along `across`."""
    values = sorted({line(result.record) for result in results})
    colors = colormaps["viridis"](np.linspace(0, 0.88, len(values)))
    for number, (value, color) in enumerate(zip(values, colors, strict=True)):
        of_line = [result for result in results if line(result.record) == value]
        of_line.sort(key=lambda result: across(result.record))
        figures = [result.figures[_presentation(result, last)] for result in of_line]
        axes.errorbar(
            [across(result.record) for result in of_line],
            [figure.accuracy for figure in figures],
            yerr=[figure.ci95 or 0.0 for figure in figures],
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            ms=5,
            lw=1.4,
            label=f"{value:,}",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({across(result.record) for result in results})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    clean(axes)
