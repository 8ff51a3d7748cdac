"""Drawers: how people draw the same character, and the ink they leave."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshot.data.handwriting.alphabets import Stroke, invent
from fewshot.data.handwriting.integers import (
    DEGREE,
    ONE,
    PIXEL,
    Draws,
    Ints,
    child_key,
    cosine,
    movements,
    sine,
)

SIDE = 105  # pixels, as in Omniglot
DRAWERS = 20
MARGIN = 4  # pixels that stay free of the pen's path
OVERSHOOT = 6  # pixels by which a stroke can at most outrun its end
TREMOR = 6  # pixels between two changes of a trembling hand
NET = 4  # knots a side of the net that changes proportions


@dataclass(frozen=True, eq=False)
class Hands:
    """How the drawers of an alphabet write: (drawer,) each."""

    carelessness: Ints  # scales every slip; in 1/1024
    slant: Ints  # ratios in 1/1024
    width: Ints
    height: Ints
    rounding: Ints  # pixels before and after, over which corners are cut
    filling: Ints  # of dots, in 1/1024


def draw_hands(draws: Draws) -> Hands:
    return Hands(
        carelessness=draws.uniforms(350, 1650, DRAWERS),
        slant=draws.normals(70, DRAWERS),
        width=ONE + draws.normals(60, DRAWERS),
        height=ONE + draws.normals(60, DRAWERS),
        rounding=draws.uniforms(0, 7, DRAWERS),
        filling=draws.uniforms(0, ONE, DRAWERS) ** 2 // ONE,
    )


def along(draws: Draws, deviation: int, length: int, spacing: int) -> Ints:
    """(drawer, length) noise that runs straight from knot to knot, `spacing` apart."""
    knots = draws.normals(deviation, DRAWERS, length // spacing + 2)
    position = np.arange(length)
    left, part = position // spacing, position % spacing
    return (knots[:, left] * (spacing - part) + knots[:, left + 1] * part) // spacing


def trace(draws: Draws, stroke: Stroke, hands: Hands) -> tuple[Ints, NDArray[np.bool_]]:
    """(drawer, step, 2) positions relative to the anchor, and (drawer, step) whether the pen is down.

    A stroke is traced OVERSHOOT steps further than meant at both ends.
    """
    length = len(stroke.headings)
    headings = np.pad(stroke.headings, OVERSHOOT, mode="edge")
    total = len(headings)
    position = np.arange(total)
    care = hands.carelessness[:, None]

    # Corners are cut: each movement is the mean over a window around it.
    meant = movements(headings)
    sums = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(meant, axis=0)])
    low = np.maximum(0, position - hands.rounding[:, None])
    high = np.minimum(total, position + hands.rounding[:, None] + 1)
    movement = (sums[high] - sums[low]) // (high - low)[..., None]

    # Directions and lengths are off: for the stroke, for its parts, and by tremor.
    part = max(8, length // 4)
    turn = draws.normals(4 * DEGREE, DRAWERS, 1) + along(draws, 9 * DEGREE, total, part)
    turn = (turn + along(draws, 9 * DEGREE, total, TREMOR)) * care // ONE
    stretch = (draws.normals(130, DRAWERS, 1) + along(draws, 260, total, part)) * care // ONE
    stretch = np.maximum(ONE // 3, ONE + stretch)
    cos, sin = cosine(turn), sine(turn)
    x = (movement[..., 0] * cos - movement[..., 1] * sin) // ONE * stretch // ONE
    y = (movement[..., 0] * sin + movement[..., 1] * cos) // ONE * stretch // ONE
    path = np.cumsum(np.stack([x, y], axis=-1), axis=1) * PIXEL // ONE

    # The eye leads the hand: over the stroke, most of the drift from its intended end is taken back.
    drift = path[:, -1:] - np.sum(meant, axis=0) * PIXEL // ONE
    path = path - drift * 6 // 10 * (position[:, None] + 1) // total
    path = path - path[:, OVERSHOOT + stroke.own_anchor, None]

    if stroke.is_dot:
        filled = np.maximum(0, hands.filling + draws.normals(100, DRAWERS))[:, None]
        return path, position < OVERSHOOT + 4 + filled * length // ONE
    slip = draws.normals(3 * ONE, DRAWERS, 2) * care // ONE // ONE
    slip = np.minimum(np.clip(slip, -OVERSHOOT, OVERSHOOT), length // 4)
    down = (position >= OVERSHOOT - slip[:, :1]) & (position < length + OVERSHOOT + slip[:, 1:])
    return path, down


def bend(draws: Draws, points: Ints, hands: Hands) -> Ints:
    """Change the proportions of the parts: displace (drawer, point, 2) by a coarse net over the drawing."""
    push = draws.normals(4 * PIXEL, DRAWERS, NET, NET, 2) * hands.carelessness[:, None, None, None] // ONE
    low = points.min(axis=(0, 1))
    extent = int((points.max(axis=(0, 1)) - low).max()) + 1
    where = (points - low) * (NET - 1) * ONE // extent
    column, row = where[..., 0] // ONE, where[..., 1] // ONE
    right, below = where[..., :1] & (ONE - 1), where[..., 1:] & (ONE - 1)
    drawer = np.arange(DRAWERS)[:, None]
    above = push[drawer, row, column] * (ONE - right) + push[drawer, row, column + 1] * right
    beneath = push[drawer, row + 1, column] * (ONE - right) + push[drawer, row + 1, column + 1] * right
    bent: Ints = points + (above * (ONE - below) + beneath * below) // (ONE * ONE)
    return bent


def place(draws: Draws, points: Ints, hands: Hands, width: int) -> Ints:
    """Give the drawing its slant, proportions and place on the paper, and make it fit."""
    stretch_x = (hands.width + draws.normals(60, DRAWERS))[:, None] * width // ONE
    stretch_y = (hands.height + draws.normals(60, DRAWERS))[:, None]
    slant = (hands.slant + draws.normals(40, DRAWERS))[:, None]
    tilt = draws.normals(40, DRAWERS)[:, None]
    y = points[..., 1] * stretch_y // ONE
    x = points[..., 0] * stretch_x // ONE - y * slant // ONE
    points = np.stack([x, y + x * tilt // ONE], axis=-1)

    low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
    points = points - (low + high) // 2
    room = (SIDE - 2 * MARGIN) * PIXEL
    extent = (high - low).max(axis=2, keepdims=True) + 1
    points = np.where(extent > room, points * room // extent, points)
    reach = MARGIN * PIXEL + np.minimum(high - low, room) // 2
    # People draw a little above and left of the middle.
    centre = (SIDE - 4) * PIXEL // 2 + draws.normals(5 * PIXEL, DRAWERS, 1, 2)
    return points + np.clip(centre, reach, SIDE * PIXEL - reach)


def draw_images(draws: Draws, strokes: Sequence[Stroke], hands: Hands, width: int) -> NDArray[np.uint8]:
    """(drawer, SIDE, SIDE) one character by every drawer: ink 255, paper 0."""
    paths: list[Ints] = []
    downs: list[NDArray[np.bool_]] = []
    for stroke in strokes:
        path, down = trace(draws, stroke, hands)
        start = draws.normals(2 * PIXEL, DRAWERS, 2) * hands.carelessness[:, None] // ONE
        start = start + np.array(stroke.offset)
        if stroke.parent is not None:
            start = start + paths[stroke.parent][:, OVERSHOOT + stroke.anchor]
        paths.append(path + start[:, None])
        downs.append(down)
    points = bend(draws, np.concatenate(paths, axis=1), hands)
    return ink(place(draws, points, hands, width), np.concatenate(downs, axis=1))


def ink(points: Ints, down: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Put a pen on every point where it is down: a diamond five pixels across, as Omniglot's strokes are."""
    middle = (points[:, 1:] + points[:, :-1]) // 2
    pixel = np.concatenate([points, middle], axis=1) // PIXEL
    touched = np.concatenate([down, down[:, 1:] & down[:, :-1]], axis=1)
    drawer = np.broadcast_to(np.arange(len(points))[:, None], touched.shape)
    canvas = np.zeros((len(points), SIDE, SIDE), dtype=np.uint8)
    canvas[drawer[touched], pixel[..., 1][touched], pixel[..., 0][touched]] = 255
    for _ in range(2):
        thin = canvas.copy()
        canvas[:, :, 1:] |= thin[:, :, :-1]
        canvas[:, :, :-1] |= thin[:, :, 1:]
        canvas[:, 1:] |= thin[:, :-1]
        canvas[:, :-1] |= thin[:, 1:]
    return canvas


def draw_alphabet(key: int, characters: int) -> Iterator[NDArray[np.uint8]]:
    """(drawer, SIDE, SIDE) for each character of the alphabet that `key` decides."""
    hands = draw_hands(Draws(child_key(key, 0)))
    invented = invent(child_key(key, 1), characters)
    for character, (style, strokes) in enumerate(invented):
        yield draw_images(Draws(child_key(key, 2 + character)), strokes, hands, style.width)
