"""Pictures of episodes: what a learner is shown, and what it is asked.

Plain NumPy in, a figure out. Images are (image, channel, height, width), uint8; grey ones have ink high and
are drawn black on white, as on paper, coloured ones as they are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fewshot.report.figure import add_title, label_color, new_figure, save

__all__ = ["draw_kshot", "draw_stream", "save"]

Images = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]

CELL_INCHES = 0.62
"""From one image to the next; the caption beneath an image takes CAPTION of that."""
CAPTION = 0.4


def draw_kshot(
    support_images: Images,
    support_labels: Labels,
    query_images: Images,
    query_labels: Labels,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """A K-shot episode: the support set, then the queries, a row per label.

    support_labels: (way * shot,); query_labels: (way * query,); class_names: one per label. Both sets are
    sorted by label, to be read; a learner gets them shuffled.
    """
    way = len(class_names)
    shot, query = len(support_labels) // way, len(query_labels) // way
    columns = max(query, min(way * shot, 15))
    support_rows = -(-way * shot // columns)
    queries_at = 0.5 + support_rows * (1 + CAPTION) + 0.6
    told = f"{way}-way {shot}-shot, {query} queries per class; sorted by label here, shuffled for a learner"
    figure, axes = _canvas(columns, queries_at + 1.08 * way, class_names, title, told)

    axes.text(0, 0.32, "Support: images with their labels", fontsize=9.5, weight="bold")
    order = np.argsort(support_labels, kind="stable")
    for place, (image, label) in enumerate(zip(support_images[order], support_labels[order], strict=True)):
        row, column = divmod(place, columns)
        draw_image(axes, image, column, 0.5 + row * (1 + CAPTION), int(label))
        _caption(axes, column, 0.5 + row * (1 + CAPTION), int(label), str(label))

    axes.text(0, queries_at - 0.18, "Query: images to name", fontsize=9.5, weight="bold")
    for label in range(way):
        top = queries_at + 1.08 * label
        for column, image in enumerate(query_images[query_labels == label]):
            draw_image(axes, image, column, top, label)
        _name(axes, query, top + 0.5, label, f"{label}  {class_names[label]}")
    return figure


def draw_stream(
    images: Images,
    labels: Labels,
    presentation: Labels,
    class_names: Sequence[str],
    title: str,
    captions: Sequence[str] | None = None,
    columns: int = 10,
) -> Figure:
    """A stream in reading order: each image, the label shown after it, and a mark where its class is new.

    labels, presentation: (length,); presentation is 1 where a class comes for the first time; class_names and
    captions: one per label, a caption being what is shown for it, its number by default.
    """
    shown = captions or [str(label) for label in range(len(class_names))]
    rows = -(-len(images) // columns)
    height = max(rows * (1 + CAPTION), 0.5 * len(class_names))
    told = f"{len(class_names)} classes, {len(images)} images in order; filled label: first presentation"
    figure, axes = _canvas(columns, height, class_names, title, told)
    for place, (image, label, seen) in enumerate(zip(images, labels, presentation, strict=True)):
        row, column = divmod(place, columns)
        draw_image(axes, image, column, row * (1 + CAPTION), int(label))
        _caption(axes, column, row * (1 + CAPTION), int(label), shown[label], filled=seen == 1)
    for label, name in enumerate(class_names):
        _name(axes, columns, 0.25 + 0.5 * label, label, f"{shown[label]}  {name}")
    return figure


def _canvas(
    columns: int, height: float, class_names: Sequence[str], title: str, told: str
) -> tuple[Figure, Axes]:
    """A figure whose axes count in cells from the top left, with room for class names on the right."""
    names = 0.45 + 0.075 * max(map(len, class_names))
    left, bottom, top = 0.12, 0.12, 0.72
    width = max(left + columns * CELL_INCHES + names, 0.3 + 0.068 * max(len(told), 1.35 * len(title)))
    figure = new_figure(width, bottom + height * CELL_INCHES + top)
    total = figure.get_size_inches()[1]
    across, down = columns * CELL_INCHES / width, height * CELL_INCHES / total
    axes = figure.add_axes((left / width, bottom / total, across, down))
    axes.set(xlim=(0, columns), ylim=(height, 0))
    axes.axis("off")
    add_title(figure, title, told)
    return figure, axes


def draw_image(axes: Axes, image: Images, column: float, top: float, label: int) -> None:
    """One image in its cell, framed in its label's colour."""
    picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    left, right, upper, lower = column + 0.04, column + 0.96, top + 0.04, top + 0.96
    axes.imshow(
        picture,
        cmap="gray_r",
        vmin=0,
        vmax=255,
        extent=(left, right, lower, upper),
        aspect="auto",
        clip_on=False,
    )
    outline = [left, right, right, left, left], [upper, upper, lower, lower, upper]
    axes.plot(*outline, color=label_color(label), lw=0.9, solid_joinstyle="miter", clip_on=False)


def _caption(axes: Axes, column: float, top: float, label: int, shown: str, filled: bool = False) -> None:
    """What is shown for a label, beneath its image, white on its colour where filled."""
    color = label_color(label)
    text = axes.text(column + 0.5, top + 1.17, shown, fontsize=8.5, ha="center", va="center")
    text.set_color("white" if filled else color)
    if filled:
        text.set_bbox({"boxstyle": "round,pad=0.2", "facecolor": color, "edgecolor": color})


def _name(axes: Axes, columns: int, height: float, label: int, text: str) -> None:
    """A label and its class's name, to the right of the images."""
    axes.text(columns + 0.12, height, text, color=label_color(label), fontsize=9, va="center")
