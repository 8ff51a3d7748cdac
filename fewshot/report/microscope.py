"""The microscope's picture: one stream from left to right, and beneath it what the memory did at each step.

All panels share the axis of steps, and a colour is a class throughout: of an image's frame, of the image that
something was read from, of what lies in a slot.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fewshot.harness.watched import FIRST_ASKED, Floats, Labels, WatchedEpisode
from fewshot.report.episode_picture import draw_image
from fewshot.report.figure import GREY, add_title, label_color, new_figure

MOST_SLOTS = 128
"""More would be thinner than a pixel: those with the largest weights are drawn."""
DARKEST_SHARE = 0.5
PALE = 0.14
"""How strong the colour of a slot is that holds something and is not read."""

_STEPS_INCHES, _NARROWEST, _WIDEST = 11.0, 0.15, 0.55
_LEFT, _RIGHT, _TOP, _BOTTOM, _TITLE = 0.95, 0.3, 0.45, 0.45, 0.56
_STREAM_ROWS = 3.3


def draw_microscope(episode: WatchedEpisode, title: str, *lines: str) -> Figure:
    """The stream with its answers; what each image was read from; reads, writes and usage by slot."""
    length = len(episode.labels)
    column = min(_WIDEST, max(_NARROWEST, _STEPS_INCHES / length))
    by_slot = 0.6 + 0.01 * min(MOST_SLOTS, len(episode.slots))
    inches = [_STREAM_ROWS * column, 0.75, min(4.5, max(1.4, 0.06 * length)), by_slot, by_slot]
    draws = [_draw_stream, _draw_right_share, _draw_shares, _draw_reads, _draw_writes]
    if episode.usage is not None:
        inches.append(0.7 * by_slot)
        draws.append(_draw_usage)
    width = max(9.0, _LEFT + column * length + _RIGHT, 0.3 + 0.068 * max(map(len, lines), default=0))
    height = _TOP + 0.18 * len(lines) + sum(inches) + _TITLE * len(inches) + _BOTTOM
    figure = new_figure(width, height)
    add_title(figure, title, *lines)
    top = height - _TOP - 0.18 * len(lines)
    for panel, draw in zip(inches, draws, strict=True):
        top -= _TITLE + panel
        axes = figure.add_axes((_LEFT / width, top / height, column * length / width, panel / height))
        axes.set_xlim(0, length)
        axes.tick_params(labelbottom=False, length=2, labelsize=8, colors=GREY)
        for spine in axes.spines.values():
            spine.set(color=GREY, linewidth=0.6)
        draw(axes, episode)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("step", fontsize=9, color=GREY)
    return figure


def _draw_stream(axes: Axes, episode: WatchedEpisode) -> None:
    _name(
        axes,
        "The stream: each image is named before its label is shown",
        "dot: a new class; white on colour: wrong (–: no class); read most: the image with the largest share",
    )
    axes.axis("off")
    axes.set_ylim(_STREAM_ROWS, 0)
    column = 72 * axes.bbox.width / axes.figure.dpi / len(episode.labels)  # points
    text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": min(8.5, 0.52 * column)}
    for row, name in ((0.5, "shown"), (1.32, "answered"), (2.14, "read most"), (2.97, "its share, %")):
        axes.text(-0.25, row, name, color=GREY, **text | {"ha": "right", "fontsize": min(8.5, 0.7 * column)})
    for step, (label, answer) in enumerate(zip(episode.labels, episode.answers, strict=True)):
        middle = step + 0.5
        draw_image(axes, episode.images[step], step, 0, int(label))
        if episode.presentation[step] == 1:
            dot: dict[str, Any] = {"marker": ".", "ms": 6, "color": label_color(int(label)), "clip_on": False}
            axes.plot(middle, -2.5 / column, **dot)
        named, color = "–" if answer < 0 else str(answer), label_color(int(answer))
        told = axes.text(middle, 1.32, named, color=color, weight="bold", **text)
        if answer != label:
            told.set(color="white", bbox={"boxstyle": "round,pad=0.15", "facecolor": color, "linewidth": 0})
        most = int(episode.shares[step].argmax())
        if share := episode.shares[step, most]:
            draw_image(axes, episode.images[most], step, 1.64, int(episode.labels[most]))
            axes.text(middle, 2.97, f"{100 * share:.0f}", color=GREY, **text)


def _draw_right_share(axes: Axes, episode: WatchedEpisode) -> None:
    _name(
        axes,
        "Attribution: how much of what was read came from images of the right class, %",
        "line: a reader without preference, for whom all stored images are equal",
    )
    asked = episode.presentation >= FIRST_ASKED
    colors = [label_color(int(label)) for label in episode.labels[asked]]
    axes.bar(asked.nonzero()[0] + 0.5, 100 * episode.right_share[asked], width=0.8, color=colors)
    axes.stairs(100 * episode.level, color="black", lw=0.9)
    axes.set(ylim=(0, 100), yticks=(0, 50, 100))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_shares(axes: Axes, episode: WatchedEpisode) -> None:
    _name(
        axes,
        "What was read: a row for each stored image, sorted by class",
        f"darkest: {100 * DARKEST_SHARE:.0f} % or more; framed: the class of the image that was asked",
    )
    length = len(episode.labels)
    order = np.lexsort((np.arange(length), episode.labels))
    _heat(axes, episode.labels[order][:, None], episode.shares[:, order].T, DARKEST_SHARE)
    first = np.searchsorted(episode.labels[order], np.arange(len(episode.class_names) + 1))
    for step, (label, seen) in enumerate(zip(episode.labels, episode.presentation, strict=True)):
        if seen >= FIRST_ASKED:
            top, bottom = first[label], first[label] + seen - 1
            outline = [step, step + 1, step + 1, step, step], [top, top, bottom, bottom, top]
            axes.plot(*outline, color=label_color(int(label)), lw=0.8)
    axes.hlines(first[1:-1], 0, length, color=GREY, lw=0.5)
    axes.set_yticks((first[:-1] + first[1:]) / 2, map(str, range(len(episode.class_names))))
    axes.tick_params(axis="y", length=0, labelsize=9)
    for text, label in zip(axes.get_yticklabels(), range(len(episode.class_names)), strict=True):
        text.set(color=label_color(label), weight="bold")
    axes.set_ylabel("class", fontsize=9, color=GREY)


def _draw_reads(axes: Axes, episode: WatchedEpisode) -> None:
    rows = _most_used(episode)
    title = "Where it was read: a row for each slot, in the colour of the class that it holds most of"
    _name(axes, title, f"{_rows_told(episode)}pale: held; dark: read; grey: holds nothing yet")
    weights, owner = episode.read_weights[:, rows].T, episode.owner[:, rows].T
    _heat(axes, owner, weights, weights.max(), least=np.where(owner < 0, 0.0, PALE))
    _number_slots(axes, episode, rows)


def _draw_writes(axes: Axes, episode: WatchedEpisode) -> None:
    rows = _most_used(episode)
    title = "Where it was written: in the colour of what is stored, the image before with its label"
    _name(axes, title, f"{_rows_told(episode)}grey: there is nothing to store yet")
    weights = episode.write_weights[:, rows].T
    stored = np.concatenate([[-1], episode.labels[:-1]])
    _heat(axes, stored[None, :], weights, weights.max())
    _number_slots(axes, episode, rows)


def _draw_usage(axes: Axes, episode: WatchedEpisode) -> None:
    assert episode.usage is not None
    rows = _most_used(episode)
    _name(axes, "Usage of the slots, which says where there is room", "dark: much used")
    usage = episode.usage[:, rows].T
    _heat(axes, np.full((1, 1), -1), usage, usage.max())
    _number_slots(axes, episode, rows)


def _heat(axes: Axes, labels: Labels, values: Floats, darkest: float, least: Floats | float = 0.0) -> None:
    """Cells (row, step) in their labels' colours: white at 0, full at `darkest`; the root shows weak ones."""
    palette = [to_rgb(label_color(label)) for label in (*range(int(labels.max()) + 1), -1)]
    full = 1 - np.array(palette)[labels]
    opacity = np.maximum(np.sqrt(np.clip(values / max(darkest, 1e-12), 0, 1)), least)
    rows, steps = values.shape
    picture = 1 - opacity[..., None] * full
    axes.imshow(picture, extent=(0, steps, rows, 0), aspect="auto", interpolation="nearest")


def _most_used(episode: WatchedEpisode) -> Labels:
    """Positions of the slots to draw, in their order."""
    weights = (episode.read_weights + episode.write_weights).sum(axis=0)
    return np.sort(np.argsort(-weights, kind="stable")[:MOST_SLOTS])


def _rows_told(episode: WatchedEpisode) -> str:
    """Which slots are drawn, where these are not all."""
    drawn = min(MOST_SLOTS, len(episode.slots))
    return f"the {drawn} most used of {episode.num_slots:,}; " if drawn < episode.num_slots else ""


def _number_slots(axes: Axes, episode: WatchedEpisode, rows: Labels) -> None:
    marked = range(0, len(rows), max(1, len(rows) // 4))
    axes.set_yticks([row + 0.5 for row in marked], [f"{episode.slots[rows[row]]:,}" for row in marked])
    axes.set_ylabel("slot", fontsize=9, color=GREY)


def _name(axes: Axes, title: str, note: str) -> None:
    """What a panel shows, above it, and how to read it."""
    place: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(title, xytext=(0, 21), fontsize=9.5, weight="bold", **place)
    axes.annotate(note, xytext=(0, 9), fontsize=8.5, color=GREY, **place)
