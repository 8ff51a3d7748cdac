"""Learning curves: accuracy against training episodes and minutes, on training and on validation classes.

Where a learner was trained with several seeds, each is a thin line and their mean a thick one. Learners that
share a colour (variants of one method) are told apart by their dashes, and each is named beside its end.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fewshot.errors import RecordError
from fewshot.report.axes import STRETCH_NOTE, clean, label_ends, margins, plain_number, stretch
from fewshot.report.figure import GREY, add_title, dashes, learner_style, new_figure
from fewshot.report.published import Published, find_published
from fewshot.report.results import Result, learner_rank

CURVE_COLUMNS = ("learner", "train_seed", "step", "episodes", "seconds", "loss", "val_accuracy")
LATER_COLUMNS = ("train_accuracy", "val_second")
"""Columns that came later; older curves are without."""

PAPER_SUITES, PAPER_EPISODES = "santoro", 100_000
"""Suites that rerun Santoro et al. 2016, and how many episodes its networks are trained for."""

SEEDS_NOTE = "thin: a training seed, thick: the mean"
MOST_COLUMNS = 4
LETTERS_PER_INCH = 13
"""Of the lines beneath a title: fewer than fit, for letters differ in width."""


class Quantity(NamedTuple):
    """What a curve shows: a column, and how to call it."""

    column: str
    title: str
    label: str


SELECTED = Quantity("val_accuracy", "Learning curves", "validation accuracy (%)")
SECOND = Quantity(
    "val_second", "Learning curves: the second presentation", "accuracy at the 2nd presentation (%)"
)


def read_curves(folder: Path) -> pd.DataFrame:
    """All learning curves of a folder, CURVE_COLUMNS and LATER_COLUMNS; cells without a value are empty.

    No folder, no rows. Raises RecordError for a file that is no curve.
    """
    columns = [*CURVE_COLUMNS, *LATER_COLUMNS]
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
        frames.append(frame.reindex(columns=columns))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def curve_figures(curves: pd.DataFrame, results: Sequence[Result]) -> dict[str, Figure]:
    """The figures that the curves have something for, by name; results: what the learners came to."""
    figures = {}
    marked = PAPER_EPISODES if results[0].record.suite.startswith(PAPER_SUITES) else None
    gpus = accelerated(results, set(curves["learner"]))
    if curves["val_accuracy"].notna().any():
        figures["curves"] = curves_figure(curves, SELECTED, marked=marked, gpus=gpus)
    if curves["val_second"].notna().any():
        figures["curves-second"] = curves_figure(curves, SECOND, published_second(results), marked, gpus)
    if curves["train_accuracy"].notna().any():
        figures["overfitting"] = overfitting_figure(curves)
    return figures


def published_second(results: Sequence[Result]) -> dict[str, Published]:
    """Learner -> what is published of it at the 2nd presentation, where its curve shows the same quantity.

    That is where the streams that its weights are selected on have the way, the labels and the chain of its
    test.
    """
    found = {}
    for record in (result.record for result in results):
        training = record.config.get("train") or {}
        validated = training.get("validate_on") or training.get("episodes") or {}
        kind = (validated.get("protocol"), validated.get("way"), validated.get("labels", "one_hot"))
        chain = validated.get("chain", 1)
        published = find_published(record, 2)
        if published and (*kind, chain) == ("stream", record.way, record.labels, record.chain):
            found[record.learner] = published
    return found


def accelerated(results: Sequence[Result], drawn: set[str]) -> dict[str, list[str]]:
    """Device that is no CPU alone -> the learners drawn that were trained on it, whose minutes differ."""
    found: dict[str, list[str]] = {}
    for record in (result.record for result in results if result.record.learner in drawn):
        device = record.train_device or "cpu"
        if device != "cpu" and record.learner not in found.setdefault(device, []):
            found[device].append(record.learner)
    return found


def curves_figure(
    curves: pd.DataFrame,
    quantity: Quantity,
    published: dict[str, Published] | None = None,
    marked: int | None = None,
    gpus: dict[str, list[str]] | None = None,
) -> Figure:
    """Accuracy on validation classes against training episodes and against minutes, both logarithmic.

    published: by learner, drawn as horizontal lines. marked: a number of training episodes to mark.
    gpus: as `accelerated` finds them, to be named.
    """
    looks = curves.dropna(subset=[quantity.column])
    learners = sorted(looks["learner"].unique(), key=learner_rank)
    papers = {row: name for name, row in reversed((published or {}).items())}  # two learners may share one
    labels = [*learners, *(f"{row.learner} (paper)" for row in papers)]
    names_width = 0.45 + 0.085 * max(14, *map(len, labels))
    told = "validation classes, each learner under the protocol that its weights are selected on"
    told += "".join(f"  ·  on {gpu}: {', '.join(names)}" for gpu, names in (gpus or {}).items())
    lines = textwrap.wrap(told, int(LETTERS_PER_INCH * (8.0 + names_width)))
    more = 0.18 * (len(lines) - 1)
    figure = new_figure(8.0 + names_width, 4.8 + more)
    top = 0.84 + more
    left, bottom, width, height = margins(figure, left=0.65, right=names_width, bottom=0.58, top=top)
    edges = {"left": left, "right": left + width, "bottom": bottom, "top": bottom + height}
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw=edges | {"wspace": 0.06})
    colors = [learner_style(name).color for name in learners]
    ends = []
    for name, color, dash in zip(learners, colors, dashes(colors), strict=True):
        of_learner = looks[looks["learner"] == name]
        for axes, column, unit in ((panels[0], "episodes", 1), (panels[1], "seconds", 60)):
            end = _draw_seeds(axes, of_learner, (column, unit), quantity.column, ls=dash)
        ends.append((end, name, color))
    for row, name in papers.items():
        color = learner_style(name).color
        for axes in panels:
            axes.axhline(row.accuracy, color=color, lw=0.8, ls=(0, (1, 3)), zorder=1)
        ends.append((row.accuracy, f"{row.learner} (paper)", color))
    for axes in panels:
        stretched = stretch(axes, "y", max(height for height, _, _ in ends))
        _logarithmic(axes)
    panels[0].set_xlabel("training episodes (logarithmic)")
    panels[0].set_ylabel(quantity.label)
    panels[1].set_xlabel("wall-clock time (minutes, logarithmic)")
    label_ends(panels[1], ends)
    notes = [SEEDS_NOTE] * _several_seeds(looks) + [STRETCH_NOTE] * stretched
    notes += ["level lines: published, of test classes"] * bool(papers)
    if marked:
        panels[0].axvline(marked, color=GREY, lw=0.9, ls=(0, (1, 2)), zorder=1)
        notes.append(f"upright line: {marked:,} episodes, as the paper")
    add_title(figure, quantity.title, *lines, "  ·  ".join(notes))
    return figure


def overfitting_figure(curves: pd.DataFrame) -> Figure:
    """Accuracy on training and on validation classes against training episodes, a panel for each learner."""
    looks = curves.dropna(subset=["train_accuracy", "val_accuracy"])
    learners = sorted(looks["learner"].unique(), key=learner_rank)
    rows = -(-len(learners) // MOST_COLUMNS)
    columns = -(-len(learners) // rows)
    figure = new_figure(0.75 + max(6.0, 2.9 * columns), 1.3 + 2.6 * rows)
    left, bottom, width, height = margins(figure, left=0.65, right=0.1, bottom=0.58, top=1.1)
    edges = {"left": left, "right": left + width, "bottom": bottom, "top": bottom + height}
    grid = figure.subplots(
        rows,
        columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        gridspec_kw=edges | {"wspace": 0.08, "hspace": 0.25},
    )
    highest = 100 * looks[["train_accuracy", "val_accuracy"]].max().max()
    for axes, name in zip(grid.flat, learners, strict=False):
        of_learner = looks[looks["learner"] == name]
        across = ("episodes", 1)
        train = _draw_seeds(axes, of_learner, across, "train_accuracy", ls=(0, (4, 2)), marker="")
        val = _draw_seeds(axes, of_learner, across, "val_accuracy", ls="-", marker="")
        axes.set_title(name, fontsize=10, color=learner_style(name).color)
        told = f"{train - val:+.1f} at the end".replace("-", "−")
        axes.text(0.97, 0.05, told, transform=axes.transAxes, ha="right", fontsize=9)
        stretched = stretch(axes, "y", highest)
        _logarithmic(axes)
    for axes in grid.flat[len(learners) :]:
        axes.set_axis_off()
    for axes in grid.flat[len(learners) - columns : len(learners)]:
        axes.tick_params(labelbottom=True)  # there is no panel beneath it
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy (%)")
    middle = left + width / 2
    figure.text(middle, 0.1 / figure.get_size_inches()[1], "training episodes (logarithmic)", ha="center")
    notes = [SEEDS_NOTE] * _several_seeds(looks) + [STRETCH_NOTE] * stretched
    lines = (
        "dashed: training classes  ·  solid: validation classes  ·  number: by how many points they differ"
    )
    add_title(figure, "Overfitting to the training classes", lines, "  ·  ".join(notes))
    return figure


def _draw_seeds(
    axes: Axes, looks: pd.DataFrame, across: tuple[str, float], column: str, **line: Any
) -> float:
    """A learner's curve in per cent: a thin line per training seed, their mean thick; returns where it ends.

    across: the column along the axis, and its unit. The mean is of the steps that most seeds were looked at.
    """
    name, unit = across
    style = learner_style(looks["learner"].iloc[0])
    by_seed = looks.groupby("train_seed")
    by_step = looks.groupby("step")
    seeds = by_step.size()
    mean = by_step[[name, column]].mean()[seeds == seeds.max()]
    if len(by_seed) > 1:
        for _, curve in by_seed:
            axes.plot(
                curve[name] / unit, 100 * curve[column], color=style.color, lw=0.6, alpha=0.6, ls=line["ls"]
            )
    marked: dict[str, Any] = {"marker": style.marker, "ms": 4, "markevery": 0.12}  # of the axes' diagonal
    axes.plot(mean[name] / unit, 100 * mean[column], color=style.color, lw=1.6, **marked | line)
    return float(100 * mean[column].iloc[-1])


def _logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.xaxis.set_minor_formatter(NullFormatter())
    clean(axes)


def _several_seeds(looks: pd.DataFrame) -> bool:
    return bool((looks.groupby("learner")["train_seed"].nunique() > 1).any())
