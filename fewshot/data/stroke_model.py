"""A stroke model of handwriting: invented alphabets, their characters, and people who draw them.

A stroke is a pen moving one pixel at a time, so it is written as a sequence of headings: a line keeps its
heading, an arc turns it evenly, a corner jumps. An alphabet has a style (its angles, kinds of stroke, how
many of them, what they share), a character is a few strokes placed on one another, and a drawer redraws
those headings with an unsteady hand. Motor programs of this kind are the idea of Lake, Salakhutdinov and
Tenenbaum (2015), "Human-level concept learning through probabilistic program induction"; the model and all
its constants are our own, chosen by eye and by measurement on Omniglot's training and validation classes.

Everything is integer arithmetic on the words of a counter-based hash, so the same pixels come out on every
machine, whatever its floating point or its NumPy. Units: positions in 1/256 pixel, angles in 1/65536 turn,
ratios in 1/1024, unless a name says otherwise. y grows downwards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Item = TypeVar("Item")

SIDE = 105  # pixels, as in Omniglot
DRAWERS = 20
PIXEL = 256
TURN = 1 << 16
DEGREE = TURN // 360
ONE = 1024


# --- randomness ---------------------------------------------------------------------------------------


def hash_words(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One 64-bit word per counter: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    word = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def child_key(key: int, index: int) -> int:
    """A key of its own for part `index` of whatever `key` stands for."""
    return int(hash_words(key, np.array([index], dtype=np.uint64))[0])


class Draws:
    """A sequence of random integers that its key decides."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._used = 0

    def words(self, *shape: int) -> NDArray[np.uint64]:
        """Uniform 64-bit words."""
        count = int(np.prod(shape, dtype=np.int64))
        counters = np.arange(self._used, self._used + count, dtype=np.uint64)
        self._used += count
        return hash_words(self._key, counters).reshape(shape)

    def between(self, low: int, high: int) -> int:
        """One integer from low to high, both included."""
        return low + int(self.words(1)[0] >> np.uint64(16)) % (high - low + 1)

    def chance(self, per_cent: int) -> bool:
        return self.between(0, 99) < per_cent

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.between(0, len(items) - 1)]

    def weighted(self, weights: Sequence[int]) -> int:
        """A position, with a probability in proportion to its weight."""
        left = self.between(1, sum(weights))
        for position, weight in enumerate(weights):
            left -= weight
            if left <= 0:
                return position
        raise AssertionError("unreachable: the weights sum to what was drawn from")

    def normals(self, deviation: int, *shape: int) -> Ints:
        """Nearly normal integers: the sum of a word's four 16-bit lanes has standard deviation 37837."""
        word = self.words(*shape)
        lanes = sum((word >> np.uint64(16 * lane)) & np.uint64(0xFFFF) for lane in range(4))
        return (np.asarray(lanes).astype(np.int64) - 131070) * deviation // 37837

    def normal(self, deviation: int) -> int:
        return int(self.normals(deviation, 1)[0])


def sine(angle: Ints) -> Ints:
    """Sine in 1/1024 by Bhaskara's rational formula, within 0.2 % of one."""
    angle = angle % TURN
    half = TURN // 2
    inside = angle % half
    product = inside * (half - inside)
    size = 16 * ONE * product // (5 * half * half - 4 * product)
    return np.where(angle < half, size, -size)


def steps(headings: Ints) -> Ints:
    """(..., 2) pen movements of one pixel each, in 1/1024 pixel."""
    return np.stack([sine(headings + TURN // 4), sine(headings)], axis=-1)


# --- alphabets ----------------------------------------------------------------------------------------

KINDS = ("line", "corners", "arc", "hook", "wave", "loop", "polygon", "free")


@dataclass(frozen=True)
class Style:
    """What the characters of an alphabet have in common."""

    kind_weights: tuple[int, ...]  # one per KINDS
    angle_grid: int  # headings and corners are multiples of this
    fewest_strokes: int
    most_strokes: int
    attached: int  # per cent of strokes that start on an earlier one
    copied: int  # per cent of strokes that repeat or mirror an earlier one
    shared: int  # per cent of strokes taken from the alphabet's own parts
    dotted: int  # per cent of characters with dots
    size: int  # pixels, of the longer side
    squeeze: int  # width to height
    stem: bool  # characters hang on one common stroke
    dots_only: bool  # as in Braille


def draw_style(draws: Draws) -> Style:
    weights = []
    for base in (30, 25, 25, 25, 12, 16, 7, 20):
        taste = draws.between(0, 100)
        weights.append(1 + base * taste * taste // 1000)
    fewest = draws.pick((1, 1, 1, 1, 2, 2))
    return Style(
        kind_weights=tuple(weights),
        angle_grid=draws.pick((90, 90, 45, 45, 30, 15, 5)) * TURN // 360,
        fewest_strokes=fewest,
        most_strokes=fewest + draws.pick((0, 1, 1, 2, 2, 3, 4)),
        attached=draws.between(45, 90),
        copied=draws.between(0, 30),
        shared=draws.between(10, 70),
        dotted=draws.pick((0, 0, 5, 10, 30)),
        size=min(88, max(40, 68 + draws.normal(11))),
        squeeze=ONE + draws.normal(ONE // 8),
        stem=draws.chance(15),
        dots_only=draws.chance(3),
    )


# --- strokes and characters ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Stroke:
    """headings: (step,) of a pen that moves one pixel a step; the rest says where the stroke is put.

    Its point `own_anchor` lies on point `anchor` of stroke `parent`, moved by `offset`; a stroke without a
    parent is moved from the origin.
    """

    headings: Ints
    own_anchor: int = 0
    parent: int | None = None
    anchor: int = 0
    offset: tuple[int, int] = (0, 0)


def straight(length: int, heading: int) -> Ints:
    return np.full(max(2, length), heading, dtype=np.int64)


def arc(radius: int, heading: int, sweep: int) -> Ints:
    """Headings of a circle's arc; its length is radius times sweep, with 44/7 for two pi."""
    length = max(3, radius * abs(sweep) * 44 // (7 * TURN))
    return heading + sweep * np.arange(length, dtype=np.int64) // length


def draw_headings(draws: Draws, style: Style, long: bool) -> Ints:
    """One stroke of the alphabet's kind; `long` for a first stroke, which carries the character."""
    size = draws.between(28, 60) if long else draws.between(10, 42)
    grid = style.angle_grid
    heading = draws.between(0, TURN // grid - 1) * grid
    turn = draws.pick((-1, 1))

    def corner() -> int:
        angle = max(grid, draws.between(30, 140) * DEGREE // grid * grid)
        return draws.pick((-1, 1)) * angle

    kind = KINDS[draws.weighted(style.kind_weights)]
    moves: list[Ints] = []
    if kind == "line":
        moves = [straight(size, heading)]
    elif kind == "corners":
        for _ in range(draws.between(2, 4)):
            moves.append(straight(size * draws.between(30, 100) // 100, heading))
            heading += corner()
    elif kind == "arc":
        moves = [arc(size * draws.between(25, 60) // 100, heading, turn * draws.between(80, 300) * DEGREE)]
    elif kind == "hook":
        first = straight(size, heading)
        second = arc(
            size * draws.between(12, 45) // 100,
            heading + draws.pick((0, 0, 1)) * corner(),
            turn * draws.between(80, 320) * DEGREE,
        )
        moves = [first, second]
        if draws.chance(50):
            moves = [(second[::-1] + TURN // 2), (first + TURN // 2)]
    elif kind == "wave":
        sweep = draws.between(120, 220) * DEGREE
        radius = size * draws.between(15, 35) // 100
        cusp = draws.chance(40)
        for _ in range(draws.between(2, 4)):
            moves.append(arc(radius * draws.between(70, 130) // 100, heading, turn * sweep))
            heading += turn * sweep
            if cusp:
                heading -= 2 * turn * sweep - turn * (sweep - TURN // 2)
            else:
                turn = -turn
    elif kind == "loop":
        radius = size * draws.between(14, 40) // 100
        before, after = draws.pick(((0, 0), (0, 0), (1, 0), (0, 1), (1, 1)))
        if before:
            moves.append(straight(size * draws.between(30, 90) // 100, heading))
        sweep = turn * draws.between(330, 400) * DEGREE
        moves.append(arc(radius, heading, sweep))
        if after:
            moves.append(straight(size * draws.between(30, 90) // 100, heading + sweep))
    elif kind == "polygon":
        sides = draws.pick((3, 4, 4, 4))
        across = size * draws.between(50, 110) // 100
        for side in range(sides):
            moves.append(straight(across if side % 2 else size * 8 // 10, heading))
            heading += turn * TURN // sides
    else:
        for _ in range(draws.between(2, 5)):
            if draws.chance(45):
                moves.append(straight(size * draws.between(25, 70) // 100, heading))
            else:
                sweep = draws.pick((-1, 1)) * draws.between(40, 260) * DEGREE
                moves.append(arc(size * draws.between(12, 45) // 100, heading, sweep))
                heading += sweep
            if draws.chance(45):
                heading += corner()
    return np.concatenate(moves)


def dot_headings(radius: int) -> Ints:
    """A dot is a small spiral, as people fill it with a thin pen."""
    rounds = [arc(max(1, r), 0, TURN) for r in range(1, radius + 1, 2)]
    return np.concatenate(rounds)


def mirrored(headings: Ints, draws: Draws) -> Ints:
    """Left and right, or top and bottom, exchanged."""
    return TURN // 2 - headings if draws.chance(60) else -headings


def draw_character(draws: Draws, style: Style, parts: Sequence[Ints], stem: Ints) -> list[Stroke]:
    if style.dots_only:
        cells = [(x, y) for y in range(3) for x in range(2)]
        chosen = [cell for cell in cells if draws.chance(50)] or [(0, 0), (1, 2)]
        return [Stroke(dot_headings(5), offset=(x * 28 * PIXEL, y * 28 * PIXEL)) for x, y in chosen]
    strokes: list[Stroke] = []
    if style.stem and draws.chance(85):
        strokes.append(Stroke(stem))
    count = draws.between(style.fewest_strokes, style.most_strokes)
    for number in range(count):
        if parts and draws.chance(style.shared):
            headings = draws.pick(parts)
        elif strokes and draws.chance(style.copied):
            headings = draws.pick(strokes).headings
            if draws.chance(50):
                headings = mirrored(headings, draws)
        else:
            headings = draw_headings(draws, style, long=number == 0)
        if not strokes:
            strokes.append(Stroke(headings))
            continue
        parent = draws.between(0, len(strokes) - 1)
        length = len(strokes[parent].headings)
        anchor = draws.pick((0, length // 2, length - 1, draws.between(0, length - 1)))
        own = draws.pick((0, 0, len(headings) // 2, len(headings) - 1))
        if draws.chance(style.attached):
            offset = (0, 0)
        else:
            away = steps(np.array([draws.between(0, 7) * TURN // 8]))[0] * draws.between(8, 26) * PIXEL // ONE
            offset = (int(away[0]), int(away[1]))
        strokes.append(Stroke(headings, own, parent, anchor, offset))
    if draws.chance(style.dotted):
        angle = draws.between(0, 7) * TURN // 8
        for _ in range(draws.pick((1, 1, 2, 3))):
            parent = draws.between(0, len(strokes) - 1)
            anchor = draws.between(0, len(strokes[parent].headings) - 1)
            away = steps(np.array([angle]))[0] * draws.between(12, 24) * PIXEL // ONE
            strokes.append(
                Stroke(dot_headings(draws.pick((1, 2))), 0, parent, anchor, (int(away[0]), int(away[1])))
            )
            angle += TURN // 4
    return strokes


def layout(strokes: Sequence[Stroke]) -> list[Ints]:
    """(step, 2) positions of each stroke as the alphabet means it, drawn by a perfect hand."""
    placed: list[Ints] = []
    for stroke in strokes:
        path = np.cumsum(steps(stroke.headings) * PIXEL // ONE, axis=0)
        origin = placed[stroke.parent][stroke.anchor] if stroke.parent is not None else np.zeros(2, np.int64)
        placed.append(path - path[stroke.own_anchor] + origin + np.array(stroke.offset))
    return placed


def scaled(strokes: Sequence[Stroke], size: int) -> list[Stroke]:
    """The same character with a longer side of `size` pixels, still one heading a pixel."""
    points = np.concatenate(layout(strokes))
    extent = int(np.max(np.ptp(points, axis=0))) // PIXEL + 1
    result = []
    lengths = [max(2, len(s.headings) * size // extent) for s in strokes]
    for stroke, length in zip(strokes, lengths, strict=True):
        before = len(stroke.headings)
        anchor = 0
        if stroke.parent is not None:
            anchor = stroke.anchor * lengths[stroke.parent] // len(strokes[stroke.parent].headings)
        result.append(
            replace(
                stroke,
                headings=stroke.headings[np.arange(length) * before // length],
                own_anchor=stroke.own_anchor * length // before,
                anchor=anchor,
                offset=(stroke.offset[0] * size // extent, stroke.offset[1] * size // extent),
            )
        )
    return result


# --- drawers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hand:
    """How twenty people write: (drawer,) each. Ratios in 1/1024."""

    care: Ints  # 1024 is average; more is less careful
    slant: Ints
    width: Ints
    height: Ints
    rounding: Ints  # pixels over which corners are smoothed


def draw_hand(draws: Draws) -> Hand:
    return Hand(
        care=np.maximum(400, ONE + draws.normals(300, DRAWERS)),
        slant=draws.normals(70, DRAWERS),
        width=draws.normals(90, DRAWERS),
        height=draws.normals(90, DRAWERS),
        rounding=(draws.words(DRAWERS) % np.uint64(5)).astype(np.int64),
    )


def smooth_noise(draws: Draws, deviation: int, length: int, spacing: int) -> Ints:
    """(drawer, length) noise that runs straight from knot to knot, `spacing` apart."""
    knots = draws.normals(deviation, DRAWERS, length // spacing + 2)
    position = np.arange(length)
    left, part = position // spacing, position % spacing
    return (knots[:, left] * (spacing - part) + knots[:, left + 1] * part) // spacing


OVERSHOOT = 6  # pixels by which a stroke can at most outrun its end


def trace(draws: Draws, stroke: Stroke, hand: Hand) -> tuple[Ints, Ints]:
    """(drawer, step, 2) positions relative to the anchor, and (drawer, step) whether the pen is down."""
    length = len(stroke.headings)
    headings = np.pad(stroke.headings, OVERSHOOT, mode="edge")
    total = length + 2 * OVERSHOOT
    care = hand.care[:, None]
    movement = steps(headings)
    # Corners are cut by the mean over a window of pen movements, as wide as the drawer's haste.
    sums = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(movement, axis=0)])
    position = np.arange(total)
    low = np.maximum(0, position - hand.rounding[:, None])
    high = np.minimum(total, position + hand.rounding[:, None] + 1)
    movement = (sums[high] - sums[low]) // (high - low)[..., None]

    turn = (
        (
            draws.normals(5 * DEGREE, DRAWERS, 1)
            + smooth_noise(draws, 9 * DEGREE, total, max(8, length // 3))
            + smooth_noise(draws, 9 * DEGREE, total, 6)
        )
        * care
        // ONE
    )
    speed = (
        ONE
        + (draws.normals(80, DRAWERS, 1) + smooth_noise(draws, 180, total, max(8, length // 3))) * care // ONE
    )
    speed = np.maximum(ONE // 3, speed)
    cosine, sin = sine(turn + TURN // 4), sine(turn)
    x = (movement[..., 0] * cosine - movement[..., 1] * sin) // ONE * speed // ONE
    y = (movement[..., 0] * sin + movement[..., 1] * cosine) // ONE * speed // ONE
    path = np.cumsum(np.stack([x, y], axis=-1), axis=1) * PIXEL // ONE

    # The eye leads the hand: most of the drift from the intended path is taken back on the way.
    ideal = np.cumsum(steps(headings), axis=0) * PIXEL // ONE
    drift = (path - ideal)[:, -1:]
    path = path - drift * 6 // 10 * (position[:, None] + 1) // total
    path = path - path[:, OVERSHOOT + stroke.own_anchor, None]
    slip = np.clip(draws.normals(2 * ONE, DRAWERS, 2) * care // ONE // ONE, -OVERSHOOT, OVERSHOOT)
    slip = np.minimum(slip, length // 4)
    down = (position >= OVERSHOOT - slip[:, :1]) & (position < length + OVERSHOOT + slip[:, 1:])
    return path, down


def draw_images(draws: Draws, strokes: Sequence[Stroke], hand: Hand, style: Style) -> NDArray[np.uint8]:
    """(drawer, SIDE, SIDE) one character by every drawer: ink 255, paper 0."""
    paths: list[Ints] = []
    downs: list[Ints] = []
    for stroke in strokes:
        path, down = trace(draws, stroke, hand)
        slip = draws.normals(PIXEL * 3 // 2, DRAWERS, 2) * hand.care[:, None] // ONE
        place = slip + np.array(stroke.offset)
        if stroke.parent is not None:
            place = place + paths[stroke.parent][:, OVERSHOOT + stroke.anchor]
        paths.append(path + place[:, None])
        downs.append(down)
    points, down = np.concatenate(paths, axis=1), np.concatenate(downs, axis=1)

    # The whole drawing: proportions, slant, rotation, size and place.
    width = (ONE + hand.width + draws.normals(60, DRAWERS))[:, None] * style.squeeze // ONE
    height = (ONE + hand.height + draws.normals(60, DRAWERS))[:, None]
    x, y = points[..., 0] * width // ONE, points[..., 1] * height // ONE
    slant = (hand.slant + draws.normals(40, DRAWERS))[:, None]
    x = x - y * slant // ONE
    lean = draws.normals(40, DRAWERS)[:, None]
    y = y + x * lean // ONE
    points = np.stack([x, y], axis=-1)
    low, high = points.min(axis=1, keepdims=True), points.max(axis=1, keepdims=True)
    margin = 4 * PIXEL
    room = SIDE * PIXEL - 2 * margin
    points = points - (low + high) // 2
    extent = np.maximum((high - low).max(axis=2, keepdims=True), 1)
    points = np.where(extent > room, points * room // extent, points)
    span = np.minimum((high - low), room) // 2
    centre = SIDE * PIXEL // 2 + draws.normals(4 * PIXEL, DRAWERS, 1, 2)
    centre = np.clip(centre, margin + span, SIDE * PIXEL - margin - span)
    return ink(points + centre, down)


def ink(points: Ints, down: Ints) -> NDArray[np.uint8]:
    """Put a round pen of five pixels on every point where it is down."""
    middle = (points[:, 1:] + points[:, :-1]) // 2
    both = np.concatenate([points, middle], axis=1)
    touched = np.concatenate([down, down[:, 1:] & down[:, :-1]], axis=1)
    pixel = np.clip(both // PIXEL, 2, SIDE - 3)
    drawer = np.broadcast_to(np.arange(len(points))[:, None], touched.shape)
    canvas = np.zeros((len(points), SIDE, SIDE), dtype=np.uint8)
    canvas[drawer[touched], pixel[..., 1][touched], pixel[..., 0][touched]] = 255
    # A square of three, then a plus of three: a square of five without its corners.
    square = canvas.copy()
    square[:, :, 1:] |= canvas[:, :, :-1]
    square[:, :, :-1] |= canvas[:, :, 1:]
    across = square.copy()
    square[:, 1:] |= across[:, :-1]
    square[:, :-1] |= across[:, 1:]
    round_pen = square.copy()
    round_pen[:, :, 1:] |= square[:, :, :-1]
    round_pen[:, :, :-1] |= square[:, :, 1:]
    round_pen[:, 1:] |= square[:, :-1]
    round_pen[:, :-1] |= square[:, 1:]
    return round_pen


def draw_alphabet(key: int, characters: int) -> Iterator[NDArray[np.uint8]]:
    """(drawer, SIDE, SIDE) for each character of the alphabet that `key` decides."""
    draws = Draws(child_key(key, 0))
    style = draw_style(draws)
    parts = [draw_headings(draws, style, long=False) for _ in range(draws.between(3, 8))]
    stem = straight(draws.between(40, 60), draws.between(0, 1) * TURN // 4)
    hand = draw_hand(Draws(child_key(key, 1)))
    for character in range(characters):
        draws = Draws(child_key(key, 2 + 2 * character))
        strokes = draw_character(draws, style, parts, stem)
        size = min(92, max(24, style.size + draws.normal(7)))
        strokes = scaled(strokes, size)
        yield draw_images(Draws(child_key(key, 3 + 2 * character)), strokes, hand, style)
