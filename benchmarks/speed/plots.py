"""Plots of cost: one per axis, logarithmic both ways, beside what would grow in proportion."""

from pathlib import Path
from typing import get_args

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.speed.cost import HELD, Axis, Cost
from fewshot.report.axes import plain_number
from fewshot.report.figure import GREY, add_title, learner_style, new_figure, save

LABELS = {
    "way": "way (classes per episode)",
    "shot": "shot (support images per class)",
    "length": "length (images per stream)",
    "slots": "slots of the memory",
    "batch": "batch (episodes per step)",
    "cores": "threads",
}
METHODS = {
    "prototypical": "prototypical, Conv4-64",
    "maml": "MAML, second order, Conv4-64",
    "mann": "LRUA (mann, raw pixels)",
    "mann_paper": "LRUA (mann_paper)",
}


def plot_costs(costs: list[Cost], folder: Path, machine: str) -> list[Path]:
    """One PNG per axis that there is a cost for."""
    return [
        save(_figure(axis, found, machine), folder / f"cost_by_{axis}.png", colors=64)
        for axis in get_args(Axis)
        if (found := [cost for cost in costs if cost.axis == axis])
    ]


def _figure(axis: Axis, costs: list[Cost], machine: str) -> Figure:
    figure = new_figure(6.4, 4.6)
    cores = "" if axis == "cores" else ", 1 thread"
    add_title(figure, f"A training step against {LABELS[axis]}", HELD[axis], f"{machine}{cores}")
    plot = figure.add_axes((0.14, 0.12, 0.83, 0.6))
    values = sorted({cost.value for cost in costs})
    for method in dict.fromkeys(cost.method for cost in costs):
        points = sorted((cost.value, cost.milliseconds) for cost in costs if cost.method == method)
        across, up = [value for value, _ in points], [taken for _, taken in points]
        style = learner_style(method)
        plot.plot(across, up, color=style.color, marker=style.marker, label=METHODS[method])
        power = -1 if axis == "cores" else 1
        proportional = [up[0] * (value / across[0]) ** power for value in across]
        plot.plot(across, proportional, color=style.color, linewidth=1, linestyle=":")
    meaning = "halved by twice the threads" if axis == "cores" else "in proportion to the first point"
    plot.plot([], [], color=GREY, linewidth=1, linestyle=":", label=meaning)
    plot.set_xscale("log")
    plot.set_yscale("log")
    plot.set_xticks(values, [str(value) for value in values])
    plot.xaxis.set_minor_locator(NullLocator())
    plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.yaxis.set_minor_locator(NullLocator())
    plot.yaxis.set_major_formatter(FuncFormatter(plain_number))
    plot.set_xlabel(LABELS[axis])
    plot.set_ylabel("milliseconds a step")
    plot.grid(color="#e6e6e6")
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.01))
    return figure
