"""Plots of a results folder: accuracy by presentation and K-shot accuracies, beside its learning curves.

Filled marks are ours, hollow ones are published. Lines of streams that share a colour and a mark, those of
variants of one learner, are told apart by their dashes. Bands and bars are 95 % intervals over episodes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewshot.harness.record import read_records
from fewshot.report.axes import STRETCH_NOTE, clean, hollow_mark, label_ends, margins, stretch
from fewshot.report.curves import curve_figures, read_curves
from fewshot.report.figure import GREY, add_title, dashes, learner_style, new_figure, save
from fewshot.report.memory_size import memory_figures
from fewshot.report.published import find_published, human_stream
from fewshot.report.results import (
    TRANSDUCTIVE_MARK,
    Result,
    chance_accuracy,
    describe_stream,
    describe_test_set,
    file_name,
    format_figure,
    grouped,
    learner_rank,
    merge_seeds,
    row_labels,
    stream_setting,
    test_set,
)

LAST_PRESENTATION = 10
PLOT_COLORS = 128
"""Colours of a plot as a file; of 64, pale bands of one method took the colour of another's."""


def plot_suite(folder: Path) -> list[Path]:
    """Write all plots of a results folder to its `plots/`; returns their paths.

    Raises RecordError as `suite_figures`, and where the folder cannot be written.
    """
    figures = suite_figures(folder)
    return [save(figure, folder / "plots" / f"{name}.png", PLOT_COLORS) for name, figure in figures.items()]


def suite_figures(folder: Path) -> dict[str, Figure]:
    """All plots of a results folder, by name.

    Learning curves are read from `curves/<learner>-<train_seed>.csv`, where there are any.
    Raises RecordError where there are no records, or a curve is malformed.
    """
    results = merge_seeds(read_records(folder))
    kshot = [result for result in results if result.record.protocol == "kshot"]
    stream = [result for result in results if result.record.protocol == "stream"]
    figures = {f"kshot-{file_name(group)}": kshot_figure(group) for group in grouped(kshot, test_set)}
    for group in grouped(stream, stream_setting):
        record = group[0].record
        labels = "" if record.labels == "one_hot" else f"-{record.labels}"
        chain = f"-chain{record.chain}" if record.chain > 1 else ""
        name = f"stream-{record.way}way-{record.length}-{record.counts}{labels}{chain}-{file_name(group)}"
        figures[name] = stream_figure(group)
    figures |= memory_figures(stream)
    return figures | curve_figures(read_curves(folder / "curves"), results)


def stream_figure(results: Sequence[Result]) -> Figure:
    """Accuracy by presentation of all learners in streams of one kind, on one axis."""
    record = results[0].record
    labelled = sorted(_labelled(results), key=_row_order)
    names_width = 0.45 + 0.085 * max(14, *(len(label) for label, _ in labelled))
    figure = new_figure(6.4 + names_width, 5.8)
    axes = figure.add_axes(margins(figure, left=0.65, right=names_width, bottom=0.58, top=0.84))
    last = min(LAST_PRESENTATION, max(k for result in results for k in result.figures if k is not None))
    dashed = dashes(learner_style(result.record.learner) for _, result in labelled)
    ends = [_draw_stream(axes, *row, last, dash) for row, dash in zip(labelled, dashed, strict=True)]
    hollow = any(find_published(result.record, k) for result in results for k in result.figures)
    people = [(k, row.accuracy) for k, row in human_stream(record).items() if k <= last]
    if people:
        axes.plot(*zip(*people, strict=True), ls=":", lw=0.9, zorder=2, **hollow_mark(GREY, "*", size=8))
        ends.append((people[-1][1], "people (paper)", GREY))
    guessed = chance_accuracy(record)
    axes.axhline(guessed, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1)
    ends.append((guessed, "chance", GREY))
    axes.set(xlim=(0.7, last + 0.2), xticks=range(1, last + 1))
    axes.set_xlabel("presentation of a class in the stream")
    axes.set_ylabel("accuracy (%)")
    stretched = stretch(axes, "y", max(height for height, _, _ in ends))
    clean(axes)
    label_ends(axes, ends)
    notes = ["band: 95 % over episodes", *_notes(results, hollow or bool(people), stretched)]
    add_title(figure, f"Stream: {describe_stream(record)}", describe_test_set(results), "  ·  ".join(notes))
    return figure


def kshot_figure(results: Sequence[Result]) -> Figure:
    """K-shot accuracies with their intervals: learners as rows, a panel per setting, one scale."""
    labelled = _labelled(results)
    labels = list(dict.fromkeys(label for label, _ in sorted(labelled, key=_row_order)))
    settings = sorted({(r.record.way, r.record.shot or 0) for r in results})
    names_width = 0.35 + 0.085 * max(map(len, labels))
    numbers_width = 1.05
    panel = max(2.3, (7.5 - names_width) / len(settings) - numbers_width)
    figure = new_figure(names_width + (panel + numbers_width) * len(settings), 1.72 + 0.3 * len(labels))
    inset = margins(figure, left=names_width, right=numbers_width, bottom=0.6, top=1.12)
    panels = figure.subplots(
        1,
        len(settings),
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw={
            "left": inset[0],
            "right": inset[0] + inset[2],
            "bottom": inset[1],
            "top": inset[1] + inset[3],
            "wspace": numbers_width / panel,
        },
    )[0]
    hollow = False
    for axes, (way, shot) in zip(panels, settings, strict=True):
        axes.axvline(100 / way, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1)
        for label, result in labelled:
            if (result.record.way, result.record.shot) == (way, shot):
                hollow |= _draw_kshot(axes, result, labels.index(label))
        axes.set_title(f"{way}-way {shot}-shot", fontsize=10)
        axes.set(ylim=(len(labels) - 0.4, -0.6))
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0)
        clean(axes, grid="x")
    highest = max(result.figures[None].accuracy for result in results)
    for axes in panels:
        stretched = stretch(axes, "x", highest)
    middle = inset[0] + inset[2] / 2
    figure.text(middle, 0.1 / figure.get_size_inches()[1], "accuracy (%)", ha="center", va="bottom")
    notes = ["bar: 95 % over episodes", "dotted: chance", *_notes(results, hollow, stretched)]
    add_title(figure, "K-shot", describe_test_set(results), "  ·  ".join(notes))
    return figure


def _notes(results: Sequence[Result], hollow: bool, stretched: bool) -> list[str]:
    transductive = any(result.record.transductive for result in results)
    return (
        ["hollow: published"] * hollow
        + [f"{TRANSDUCTIVE_MARK} transductive"] * transductive
        + [STRETCH_NOTE] * stretched
    )


def _labelled(results: Sequence[Result]) -> list[tuple[str, Result]]:
    return list(zip(row_labels(results), results, strict=True))


def _row_order(labelled: tuple[str, Result]) -> tuple[object, ...]:
    label, result = labelled
    return *learner_rank(result.record.learner), _elsewhere(result), label


def _elsewhere(result: Result) -> bool:
    return result.record.train_dataset not in (None, result.record.dataset)


def _draw_stream(axes: Axes, label: str, result: Result, last: int, dash: Any) -> tuple[float, str, str]:
    """One learner's line, band and published points; returns where the line ends, its name and colour."""
    color, marker = learner_style(result.record.learner)
    shown = {k: figure for k, figure in result.figures.items() if k is not None and k <= last}
    accuracy = np.array([figure.accuracy for figure in shown.values()])
    width = np.array([figure.ci95 or 0.0 for figure in shown.values()])
    presentations = list(shown)
    axes.fill_between(presentations, accuracy - width, accuracy + width, color=color, alpha=0.25, lw=0)
    axes.plot(presentations, accuracy, color=color, marker=marker, ms=5, lw=1.5, ls=dash, zorder=3)
    published = {k: find_published(result.record, k) for k in presentations}
    points = [(k, found.accuracy) for k, found in published.items() if found]
    if points:
        axes.plot(*zip(*points, strict=True), ls="", zorder=4, **hollow_mark(color, marker))
    return float(accuracy[-1]), label, color


def _draw_kshot(axes: Axes, result: Result, row: int) -> bool:
    """One learner's dot, interval and number, and the published dot beneath; whether there is one."""
    color, marker = learner_style(result.record.learner)
    figure = result.figures[None]
    published = find_published(result.record)
    if published:
        axes.plot(published.accuracy, row + 0.24, ls="", zorder=3, **hollow_mark(color, marker, size=5))
    half: dict[str, Any] = {"fillstyle": "left", "markerfacecoloralt": "white"} if _elsewhere(result) else {}
    axes.errorbar(
        figure.accuracy, row, xerr=figure.ci95, color=color, marker=marker, ms=6.5, lw=1.6, zorder=4, **half
    )
    text = format_figure(figure)
    axes.text(1.05, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    return published is not None
