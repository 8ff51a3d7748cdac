"""Accuracy against the slots of a memory and against the length of its streams.

The records are one network's, with the same weights and options, under several values of num_slots or in
streams of several lengths, as benchmarks/mann_cost.toml makes them. A longer stream shows each class more
often, so two presentations are drawn: the 2nd, and the last, by which a small memory has been written over
many times. A chain of streams is as long as all its images are: the memory is not wiped between them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fewshot.harness.record import Record, record_key
from fewshot.report.axes import STRETCH_NOTE, clean, margins, plain_number, stretch
from fewshot.report.figure import add_title, new_figure
from fewshot.report.results import Result, describe_test_set, file_name, grouped, test_set

Axis = Callable[[Record], int]

MARKERS = "osD^v<>"
LEAST_POINTS = 3
"""Numbers of slots, or of images, that a figure takes: two are told by the table."""


def memory_figures(streams: Sequence[Result]) -> dict[str, Figure]:
    """A figure, by name, of each network and kind of stream with LEAST_POINTS numbers of slots or of images.

    Where several networks would have a figure of one name, what sets them apart is in it as a digest.
    """
    groups = grouped((result for result in streams if _slots(result.record)), _setting)
    sized = [
        group for group in groups if max(_points(group, _slots), _points(group, _images)) >= LEAST_POINTS
    ]
    names = [_name(group) for group in sized]
    return {
        name if names.count(name) == 1 else f"{name}-{_digest(group)}": memory_figure(group)
        for name, group in zip(names, sized, strict=True)
    }


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
    labels = "" if record.labels == "one_hot" else f", {record.labels} labels"
    told = f"{record.way}-way, {record.counts} counts{labels}; {describe_test_set(results)}"
    add_title(figure, f"{_learners(results)}: the size of the memory", told, "  ·  ".join(notes))
    return figure


def _setting(record: Record) -> tuple[object, ...]:
    """What the records of one figure have in common: the network, and their streams but for the length."""
    options = {name: value for name, value in _options(record).items() if name != "num_slots"}
    network = _method(record), record_key(options), record.checkpoint_sha256, record.image_size
    return *test_set(record), *network, record.way, record.counts, record.labels


def _name(results: Sequence[Result]) -> str:
    record = results[0].record
    labels = "" if record.labels == "one_hot" else f"-{record.labels}"
    return f"memory-{_method(record)}-{record.way}way-{record.counts}{labels}-{file_name(results)}"


def _digest(results: Sequence[Result]) -> str:
    return record_key({"setting": _setting(results[0].record)})[:6]


def _learners(results: Sequence[Result]) -> str:
    """ "mann:8_slots to mann:1024_slots"."""
    names = list(dict.fromkeys(result.record.learner for result in results))
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _method(record: Record) -> str:
    return record.learner.partition(":")[0]


def _options(record: Record) -> dict[str, Any]:
    return record.config.get("options") or {}


def _slots(record: Record) -> int:
    """The slots of the learner's memory; 0 for a learner without."""
    slots: int = _options(record).get("num_slots", 0)
    return slots


def _images(record: Record) -> int:
    """Images of an episode, between which nothing is wiped."""
    return (record.length or 0) * record.chain


def _points(results: Sequence[Result], axis: Axis) -> int:
    return len({axis(result.record) for result in results})


def _accuracy(result: Result, last: bool) -> float:
    return result.figures[_presentation(result, last)].accuracy


def _presentation(result: Result, last: bool) -> int:
    return max(k for k in result.figures if k is not None) if last else 2


def _draw(axes: Axes, results: Sequence[Result], last: bool, across: Axis, line: Axis) -> None:
    """A line per value of `line`, with its points along `across`."""
    values = sorted({line(result.record) for result in results})
    colors = colormaps["viridis"](np.linspace(0, 0.88, len(values)))
    ticks = sorted({across(result.record) for result in results})
    axes.set(xscale="log", xlim=(ticks[0] / 1.1, ticks[-1] * 1.1))  # there may be a single value
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
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    clean(axes)
