"""Plots of a results folder: accuracy by presentation, K-shot accuracies, learning curves.

Filled marks are ours, hollow ones are published. Bands and bars are 95 % intervals over episodes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from fewshot.errors import RecordError
from fewshot.harness.record import read_records
from fewshot.report.figure import GREY, LIGHT_GREY, add_title, learner_style, new_figure, save
from fewshot.report.published import find_published, human_stream
from fewshot.report.results import (
    TRANSDUCTIVE_MARK,
    Result,
    chance_accuracy,
    describe_stream,
    describe_test_set,
    format_figure,
    grouped,
    learner_rank,
    merge_seeds,
    row_labels,
    stream_setting,
    test_set,
)

LAST_PRESENTATION = 10
STRETCHED_ABOVE, STRETCH = 80.0, 5.0
CURVE_COLUMNS = ("learner", "train_seed", "step", "episodes", "seconds", "loss", "val_accuracy")


def plot_suite(folder: Path) -> list[Path]:
    """Write all plots of a results folder to its `plots/`; returns their paths.

    Learning curves are read from `curves/<learner>-<train_seed>.csv` (CURVE_COLUMNS), where there are any.
    Raises RecordError where there are no records, a curve is malformed or the folder cannot be written.
    """
    results = merge_seeds(read_records(folder))
    kshot = [result for result in results if result.record.protocol == "kshot"]
    stream = [result for result in results if result.record.protocol == "stream"]
    figures = {f"kshot-{_name(group)}": kshot_figure(group) for group in grouped(kshot, test_set)}
    for group in grouped(stream, stream_setting):
        record = group[0].record
        labels = "" if record.labels == "one_hot" else f"-{record.labels}"
        chain = f"-chain{record.chain}" if record.chain > 1 else ""
        name = f"stream-{record.way}way-{record.length}-{record.counts}{labels}{chain}-{_name(group)}"
        figures[name] = stream_figure(group)
    curves = read_curves(folder / "curves")
    if curves["val_accuracy"].notna().any():
        figures["curves"] = curves_figure(curves)
    return [save(figure, folder / "plots" / f"{name}.png", colors=256) for name, figure in figures.items()]


def stream_figure(results: Sequence[Result]) -> Figure:
    """Accuracy by presentation of all learners in streams of one kind, on one axis."""
    record = results[0].record
    labelled = _labelled(results)
    names_width = 0.45 + 0.085 * max(14, *(len(label) for label, _ in labelled))
    figure = new_figure(6.4 + names_width, 5.8)
    axes = figure.add_axes(_inset(figure, left=0.65, right=names_width, bottom=0.58, top=0.84))
    last = min(LAST_PRESENTATION, max(k for result in results for k in result.figures if k is not None))
    ends = [_draw_stream(axes, result, label, last) for label, result in labelled]
    hollow = any(find_published(result.record, k) for result in results for k in result.figures)
    human = {} if record.chain > 1 else human_stream(record.dataset, record.way, record.labels or "")
    people = [(k, row.accuracy) for k, row in human.items() if k <= last]
    if people:
        axes.plot(*zip(*people, strict=True), ls=":", lw=0.9, zorder=2, **_hollow(GREY, "*", size=8))
        ends.append((people[-1][1], "people (paper)", GREY))
    guessed = chance_accuracy(record)
    axes.axhline(guessed, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1)
    ends.append((guessed, "chance", GREY))
    axes.set(xlim=(0.7, last + 0.2), xticks=range(1, last + 1))
    axes.set_xlabel("presentation of a class in the stream")
    axes.set_ylabel("accuracy (%)")
    stretched = _stretch(axes, "y", max(height for height, _, _ in ends))
    _clean(axes)
    _label_ends(axes, ends)
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
    inset = _inset(figure, left=names_width, right=numbers_width, bottom=0.6, top=1.12)
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
        _clean(axes, grid="x")
    highest = max(result.figures[None].accuracy for result in results)
    for axes in panels:
        stretched = _stretch(axes, "x", highest)
    middle = inset[0] + inset[2] / 2
    figure.text(middle, 0.1 / figure.get_size_inches()[1], "accuracy (%)", ha="center", va="bottom")
    notes = ["bar: 95 % over episodes", "dotted: chance", *_notes(results, hollow, stretched)]
    add_title(figure, "K-shot", describe_test_set(results), "  ·  ".join(notes))
    return figure


def read_curves(folder: Path) -> pd.DataFrame:
    """All learning curves of a folder, CURVE_COLUMNS; cells without a value are empty. No folder, no rows."""
    frames = []
    for path in sorted(folder.glob("*.csv")):
        try:
            frame = pd.read_csv(path, dtype={"learner": str})
        except (OSError, ValueError) as error:
            raise RecordError(f"cannot read the curve {path}: {error}; restore or delete the file") from error
        missing = [name for name in CURVE_COLUMNS if name not in frame]
        if missing:
            raise RecordError(
                f"{path} has no column {', '.join(missing)}: a curve has {', '.join(CURVE_COLUMNS)}; "
                "restore or delete the file"
            )
        frames.append(frame[list(CURVE_COLUMNS)])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(CURVE_COLUMNS))


def curves_figure(curves: pd.DataFrame) -> Figure:
    """Validation accuracy against training episodes and against minutes; one line per training seed."""
    looks = curves.dropna(subset=["val_accuracy"])
    learners = sorted(looks["learner"].unique(), key=learner_rank)
    figure = new_figure(9.8, 4.6)
    left, bottom, width, height = _inset(figure, left=0.65, right=1.8, bottom=0.58, top=0.84)
    edges = {"left": left, "right": left + width, "bottom": bottom, "top": bottom + height}
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw=edges | {"wspace": 0.07})
    for axes, column, unit in ((panels[0], "episodes", 1000), (panels[1], "seconds", 60)):
        for (learner, _), curve in looks.groupby(["learner", "train_seed"], sort=True):
            color, marker = learner_style(str(learner))
            size = 4 if len(curve) <= 30 else 0
            axes.plot(
                curve[column] / unit, 100 * curve["val_accuracy"], color=color, marker=marker, ms=size, lw=1.4
            )
        axes.set(ylim=(0, 102), yticks=range(0, 101, 10))
        _clean(axes)
    panels[0].set_xlim(left=0)
    panels[0].set_xlabel("training episodes (thousands)")
    panels[0].set_ylabel("validation accuracy (%)")
    panels[1].set_xscale("log")
    panels[1].xaxis.set_major_formatter("{x:g}")
    panels[1].xaxis.set_minor_formatter(NullFormatter())
    panels[1].set_xlabel("wall-clock time (minutes, logarithmic)")
    styles = {name: learner_style(name) for name in learners}
    handles = [Line2D([], [], color=c, marker=m, ms=5, label=name) for name, (c, m) in styles.items()]
    panels[1].legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0, frameon=False
    )
    told = "accuracy on validation classes, each learner under the protocol that its weights are selected on"
    add_title(figure, "Learning curves", told, "one line per training seed")
    return figure


def _notes(results: Sequence[Result], hollow: bool, stretched: bool) -> list[str]:
    transductive = any(result.record.transductive for result in results)
    return (
        ["hollow: published"] * hollow
        + [f"{TRANSDUCTIVE_MARK} transductive"] * transductive
        + [f"scale ×{STRETCH:g} above {STRETCHED_ABOVE:g} %"] * stretched
    )


def _name(results: Sequence[Result]) -> str:
    record = results[0].record
    turned = "-rotated" if record.rotated_test_classes else ""
    group = "-within_group" if record.within_group else ""
    return f"{record.dataset}-{record.split}-{record.side}{turned}{group}"


def _labelled(results: Sequence[Result]) -> list[tuple[str, Result]]:
    return list(zip(row_labels(results), results, strict=True))


def _row_order(labelled: tuple[str, Result]) -> tuple[object, ...]:
    label, result = labelled
    return *learner_rank(result.record.learner), _elsewhere(result), label


def _elsewhere(result: Result) -> bool:
    return result.record.train_dataset not in (None, result.record.dataset)


def _draw_stream(axes: Axes, result: Result, label: str, last: int) -> tuple[float, str, str]:
    """One learner's line, band and published points; returns where the line ends, its name and colour."""
    color, marker = learner_style(result.record.learner)
    shown = {k: figure for k, figure in result.figures.items() if k is not None and k <= last}
    accuracy = np.array([figure.accuracy for figure in shown.values()])
    width = np.array([figure.ci95 or 0.0 for figure in shown.values()])
    presentations = list(shown)
    axes.fill_between(presentations, accuracy - width, accuracy + width, color=color, alpha=0.25, lw=0)
    dashes = "--" if _elsewhere(result) else "-"
    axes.plot(presentations, accuracy, color=color, marker=marker, ms=5, lw=1.5, ls=dashes, zorder=3)
    published = {k: find_published(result.record, k) for k in presentations}
    points = [(k, found.accuracy) for k, found in published.items() if found]
    if points:
        axes.plot(*zip(*points, strict=True), ls="", zorder=4, **_hollow(color, marker))
    return float(accuracy[-1]), label, color


def _draw_kshot(axes: Axes, result: Result, row: int) -> bool:
    """One learner's dot, interval and number, and the published dot beneath; whether there is one."""
    color, marker = learner_style(result.record.learner)
    figure = result.figures[None]
    published = find_published(result.record)
    if published:
        axes.plot(published.accuracy, row + 0.24, ls="", zorder=3, **_hollow(color, marker, size=5))
    half: dict[str, Any] = {"fillstyle": "left", "markerfacecoloralt": "white"} if _elsewhere(result) else {}
    axes.errorbar(
        figure.accuracy, row, xerr=figure.ci95, color=color, marker=marker, ms=6.5, lw=1.6, zorder=4, **half
    )
    text = format_figure(figure)
    axes.text(1.05, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9)
    return published is not None


def _hollow(color: str, marker: str, size: float = 7) -> dict[str, Any]:
    return {"color": color, "marker": marker, "ms": size, "mfc": "white", "mew": 1.3}


def _clean(axes: Axes, grid: str = "both") -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis=grid, color=LIGHT_GREY, lw=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _stretch(axes: Axes, axis: Literal["x", "y"], highest: float) -> bool:
    """Per cent on an axis, spread out at the top where figures crowd there; whether it was done."""
    if highest <= STRETCHED_ABOVE:
        axes.set(**{f"{axis}lim": (0, 100.7), f"{axis}ticks": range(0, 101, 10)})
        return False

    def forward(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values + (STRETCH - 1) * np.maximum(values - STRETCHED_ABOVE, 0)

    def inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values - (1 - 1 / STRETCH) * np.maximum(values - STRETCHED_ABOVE, 0)

    getattr(axes, f"set_{axis}scale")("function", functions=(forward, inverse))
    axes.set(**{f"{axis}lim": (0, 100.7), f"{axis}ticks": [0, 20, 40, 60, 80, 85, 90, 95, 100]})
    getattr(axes, {"x": "axvline", "y": "axhline"}[axis])(STRETCHED_ABOVE, color="#a0a0a0", lw=0.9, zorder=1)
    return True


def _inset(
    figure: Figure, left: float, right: float, bottom: float, top: float
) -> tuple[float, float, float, float]:
    """Left, bottom, width and height, as fractions of the figure, for margins in inches."""
    width, height = figure.get_size_inches()
    return left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name each line to the right of its end; names keep their distance, a thin line leads to each."""
    inches = axes.figure.get_size_inches()[1] * axes.get_position().height  # type: ignore[union-attr]
    placed = axes.get_yaxis_transform().transform([(1, height) for height, _, _ in ends])
    wanted = axes.transAxes.inverted().transform(placed)[:, 1].tolist()
    order = sorted(range(len(ends)), key=lambda i: (wanted[i], i))
    heights = _spread([wanted[i] for i in order], gap=0.19 / inches, low=0, high=1)
    for i, height in zip(order, heights, strict=True):
        _, label, color = ends[i]
        leader: dict[str, Any] = {"color": color, "lw": 0.8, "transform": axes.transAxes, "clip_on": False}
        axes.add_line(Line2D([1.004, 1.012, 1.042, 1.05], [wanted[i], wanted[i], height, height], **leader))
        axes.text(1.058, height, label, color=color, fontsize=9.5, va="center", transform=axes.transAxes)


def _spread(heights: list[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights moved apart to at least `gap`, as little as that takes, within low..high if they fit.

    Least squares: neighbours that would overlap form a block about the mean of what they want.
    """

    def bottom(block: list[float]) -> float:
        span = gap * (len(block) - 1)
        return max(low, min(float(np.mean(block)) - span / 2, high - span))

    blocks: list[list[float]] = []
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and bottom(blocks[-2]) + gap * len(blocks[-2]) > bottom(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    return [bottom(block) + gap * i for block in blocks for i in range(len(block))]
