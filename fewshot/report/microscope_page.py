"""The microscope's page: one file that needs nothing else, in which each step shows what it read.

All pictures are inline, and a small script lights up the stored images by their share in what was read at the
step that is pointed at. Without the script there are the figure and a table of every answer.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fewshot.harness.watched import FIRST_ASKED, WatchedEpisode
from fewshot.report.figure import label_color, png
from fewshot.report.pages import data_uri, fill

LEAST_SHARE = 0.001
"""What has less of what was read is left out."""
MOST_SLOTS = 4


def microscope_page(
    episode: WatchedEpisode, figure: Figure, *, title: str, lines: Sequence[str], command: str
) -> str:
    """The page as HTML.

    figure: the drawing of the episode; lines: what stands beneath the title, the score first; command: what
    was typed to make it.
    """
    facts = [_facts(episode, step) for step in range(len(episode.labels))]
    return fill(
        "microscope.html",
        title=title,
        lines=lines,
        command=command,
        facts=facts,
        images=[data_uri(_image_png(image)) for image in episode.images],
        figure=data_uri(png(figure)),
        first_shown=_telling_step(episode),
    )


def _facts(episode: WatchedEpisode, step: int) -> dict[str, Any]:
    """What the page says of one step; shares are per cent."""
    label, answer = int(episode.labels[step]), int(episode.answers[step])
    shares, weights = episode.shares[step], episode.read_weights[step]
    sources = [int(item) for item in np.argsort(-shares, kind="stable") if shares[item] >= LEAST_SHARE]
    slots = np.argsort(-weights, kind="stable")[:MOST_SLOTS]
    known = episode.presentation[step] >= FIRST_ASKED
    return {
        "label": label,
        "class_name": episode.class_names[label],
        "color": label_color(label),
        "presentation": int(episode.presentation[step]),
        "answer": "no class" if answer < 0 else answer,
        "answer_color": label_color(answer),
        "right": answer == label,
        "right_share": f"{100 * episode.right_share[step]:.0f} %" if known else "",
        "sources": [{"step": item, "share": round(100 * float(shares[item]), 1)} for item in sources],
        "slots": [
            {
                "slot": int(episode.slots[slot]),
                "weight": f"{weights[slot]:.2f}",
                "holds": _holds(int(episode.owner[step, slot])),
            }
            for slot in slots
        ],
    }


def _holds(owner: int) -> str:
    return "nothing" if owner < 0 else f"class {owner}"


def _telling_step(episode: WatchedEpisode) -> int:
    """What is shown first: a wrong answer about a class that was there before, else the last step."""
    wrong = np.flatnonzero(~episode.right & (episode.presentation >= FIRST_ASKED))
    return int(wrong[0]) if len(wrong) else len(episode.labels) - 1


def _image_png(image: NDArray[np.uint8]) -> bytes:
    """An image (channel, height, width) as PNG; of a grey one the ink is dark, as in the figures."""
    content = io.BytesIO()
    Image.fromarray(255 - image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(content, "png")
    return content.getvalue()
