"""What plots do to axes: margins, grids, a scale stretched where figures crowd, names beside lines."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fewshot.report.figure import LIGHT_GREY

STRETCHED_ABOVE, STRETCH = 80.0, 5.0
STRETCH_NOTE = f"scale ×{STRETCH:g} above {STRETCHED_ABOVE:g} %"


def margins(
    figure: Figure, left: float, right: float, bottom: float, top: float
) -> tuple[float, float, float, float]:
    """Left, bottom, width and height, as fractions of the figure, for margins in inches."""
    width, height = figure.get_size_inches()
    return left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height


def clean(axes: Axes, grid: str = "both") -> None:
    """Leave out the frame above and to the right, and draw a pale grid: of "x", "y" or "both"."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=True, axis=grid, color=LIGHT_GREY, lw=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def plain_number(value: float, _: int | None = None) -> str:
    """A tick's number without an exponent, its thousands set apart: 0.05, 1,000,000. _: the tick's place."""
    return f"{value:,.6f}".rstrip("0").rstrip(".")


def stretch(axes: Axes, axis: Literal["x", "y"], highest: float) -> bool:
    """Per cent on an axis, spread out at the top where figures crowd there; whether it was done."""
    if highest <= STRETCHED_ABOVE:
        axes.set(**{f"{axis}lim": (0, 100.7), f"{axis}ticks": range(0, 101, 20 if axis == "x" else 10)})
        return False

    def forward(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values + (STRETCH - 1) * np.maximum(values - STRETCHED_ABOVE, 0)

    def inverse(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values - (1 - 1 / STRETCH) * np.maximum(values - STRETCHED_ABOVE, 0)

    getattr(axes, f"set_{axis}scale")("function", functions=(forward, inverse))
    axes.set(**{f"{axis}lim": (0, 100.7), f"{axis}ticks": [0, 20, 40, 60, 80, 85, 90, 95, 100]})
    getattr(axes, {"x": "axvline", "y": "axhline"}[axis])(STRETCHED_ABOVE, color="#a0a0a0", lw=0.9, zorder=1)
    return True


def hollow_mark(color: str, marker: str, size: float = 7) -> dict[str, Any]:
    """What `Axes.plot` is told for a published figure's mark; size in points."""
    return {"color": color, "marker": marker, "ms": size, "mfc": "white", "mew": 1.3}


def label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Name each line to the right of its end; names keep their distance, a thin line leads to each."""
    inches = axes.figure.get_size_inches()[1] * axes.get_position().height  # type: ignore[union-attr]
    placed = axes.get_yaxis_transform().transform([(1, height) for height, _, _ in ends])
    wanted = axes.transAxes.inverted().transform(placed)[:, 1].tolist()
    order = sorted(range(len(ends)), key=lambda i: (wanted[i], i))
    heights = spread([wanted[i] for i in order], gap=0.19 / inches, low=0, high=1)
    for i, height in zip(order, heights, strict=True):
        _, label, color = ends[i]
        leader: dict[str, Any] = {"color": color, "lw": 0.8, "transform": axes.transAxes, "clip_on": False}
        axes.add_line(Line2D([1.004, 1.012, 1.042, 1.05], [wanted[i], wanted[i], height, height], **leader))
        axes.text(1.058, height, label, color=color, fontsize=9.5, va="center", transform=axes.transAxes)


def spread(heights: list[float], gap: float, low: float, high: float) -> list[float]:
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
