"""What all pictures share: one colour and marker per learner, and how a figure becomes a file.

Figures are made without pyplot, so that nothing is registered globally and no display is asked for.
"""

import contextlib
import io
import os
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from fewshot.errors import RecordError

DOTS_PER_INCH = 100
GREY = "#5f5f5f"
LIGHT_GREY = "#d9d9d9"


class Style(NamedTuple):
    """How a learner is drawn: its colour as "#rrggbb", its marker by matplotlib's name."""

    color: str
    marker: str


# Okabe and Ito's colours, which people with any colour vision tell apart; the marker tells those that share
# one. Yellow is left out: it is too pale on white.
_VERMILLION, _ORANGE, _PINK = "#D55E00", "#E69F00", "#CC79A7"
_BLUE, _SKY, _GREEN, _BLACK = "#0072B2", "#56B4E9", "#009E73", "#000000"

_STYLES = {
    "mann": Style(_VERMILLION, "o"),
    "mann_paper": Style(_ORANGE, "s"),
    "mann_ntm": Style(_VERMILLION, "v"),
    "mann_dnc": Style(_ORANGE, "^"),
    "mann_sparse": Style(_VERMILLION, "D"),
    "key_value": Style(_ORANGE, "D"),
    "attention": Style(_PINK, "s"),
    "lstm": Style(_PINK, "v"),
    "feedforward": Style(_PINK, "<"),
    "prototypical": Style(_BLUE, "^"),
    "matching": Style(_SKY, "s"),
    "relation": Style(_SKY, "o"),
    "siamese": Style(_SKY, "v"),
    "maml": Style(_GREEN, "D"),
    "fomaml": Style(_SKY, "D"),
    "anil": Style(_GREEN, "v"),
    "metasgd": Style(_GREEN, "s"),
    "reptile": Style(_GREEN, "o"),
    "ridge": Style(_BLUE, "s"),
    "logistic": Style(_BLUE, "o"),
    "baseline": Style(_BLUE, "v"),
    "baseline_pp": Style(_BLUE, "D"),
    "simpleshot": Style(_BLUE, "<"),
    "meta_baseline": Style(_BLUE, ">"),
    "nearest_feature": Style(_BLACK, "v"),
    "nearest_neighbour": Style(_BLACK, "X"),
    "count_guesser": Style("#8a8a8a", "P"),
}
_NOBODY = "#8a8a8a"
# For labels, without the pale ones, in turn; the number beside it says which label it is.
_LABELS = (_BLUE, _VERMILLION, _GREEN, "#AA4499", "#B07800", _BLACK)

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)), (0, (9, 3)), (0, (1, 3)))

_OTHERS = tuple(Style(color, marker) for marker in "ph8*" for color in (_VERMILLION, _BLUE, _GREEN, _PINK))


def learner_style(learner: str) -> Style:
    """The learner's colour and marker, the same in all figures; one's own learner gets one by its name."""
    base = learner.partition(":")[0]
    return _STYLES.get(base) or _OTHERS[zlib.crc32(learner.encode()) % len(_OTHERS)]


def dashes(looks: Iterable[Hashable]) -> list[Any]:
    """How each of some lines is dashed, given how it looks: of those that look alike, the first is not."""
    seen: Counter[Hashable] = Counter()
    found = []
    for look in looks:
        found.append(_DASHES[seen[look] % len(_DASHES)])
        seen[look] += 1
    return found


def label_color(label: int) -> str:
    """The colour of a label of an episode, the same in all figures; grey for -1, which no class has."""
    return _LABELS[label % len(_LABELS)] if label >= 0 else _NOBODY


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, width by height in inches."""
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")


def add_title(figure: Figure, title: str, *lines: str) -> None:
    """A title with smaller lines beneath it, at the top left; takes 0.36 + 0.18 inches per line.

    The title with its first line is the figure's label too.
    """
    figure.set_label(" · ".join((title, *lines[:1])))
    width, height = figure.get_size_inches()
    left = 0.1 / width
    figure.text(left, 1 - 0.1 / height, title, fontsize=12, weight="bold", va="top")
    for i, line in enumerate(lines):
        figure.text(left, 1 - (0.36 + 0.18 * i) / height, line, fontsize=9, color=GREY, va="top")


def png(figure: Figure, colors: int | None = None) -> bytes:
    """A figure as PNG: the same bytes for the same content.

    colors: reduce to so many, which makes a plot a third of the size; not for photographs.
    """
    drawn, content = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    image = Image.open(drawn).convert("RGB")  # neither alpha nor matplotlib's version is kept
    if colors:  # by coverage: the median cut spends them on greys, and small marks take another colour
        image = image.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(content, format="png", optimize=True, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return content.getvalue()


def save(figure: Figure, path: Path, colors: int | None = None) -> Path:
    """Write a figure as `png`, never half a file. Raises RecordError where the folder cannot be written."""
    content = png(figure, colors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise RecordError(
            f"cannot write {path}: {error.strerror or error}; make it writable or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path
