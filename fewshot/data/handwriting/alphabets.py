"""Alphabets: a style, and characters in it, as strokes that a perfect hand would draw."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fewshot.data.handwriting.integers import (
    DEGREE,
    ONE,
    PIXEL,
    TURN,
    Draws,
    Ints,
    child_key,
    heading_towards,
    movements,
    sine,
)

LATTICE_STEP = 24  # pixels between points of the lattice
SMALLEST, LARGEST = 24, 92  # pixels, of a character's longer side
DOT_RADIUS = 4  # pixels, when filled
# Pen path over extent, in tenths: below, a character is hardly more than a line; above, it is a tangle.
PLAINEST, BUSIEST = 22, 58
TOO_LIKE = 85  # per cent: from here on, two characters are the same
TRIES = 100

Point = tuple[int, int]


@dataclass(frozen=True)
class Style:
    """What the characters of an alphabet have in common; shares are per cent."""

    figure_weights: tuple[int, ...]  # one per figure of FIGURES
    angle_grid: int  # headings and corners are multiples of this
    fewest_strokes: int
    most_strokes: int
    on_lattice: int  # share of strokes that run between points of a lattice, as those of most letters do
    columns: int  # of the lattice
    rows: int
    bent: int  # share of a lattice stroke's segments that are arcs
    joined: int  # share of a lattice stroke's turns that are smooth
    attached: int  # share of strokes that start on an earlier one
    copied: int  # share of strokes that repeat or mirror an earlier one
    shared: int  # share of strokes taken from the alphabet's own parts
    related: int  # share of characters that are an earlier one with another stroke
    dotted: int  # share of characters with dots
    stemmed: bool  # most characters hang on one common stroke
    only_dots: bool  # as in Braille
    size: int  # pixels, of a character's longer side
    width: int  # to height, in 1/1024


def draw_style(draws: Draws) -> Style:
    tastes = [draws.between(0, 100) for _ in FIGURES]
    fewest = draws.pick((1, 1, 1, 1, 2, 2))
    return Style(
        # Squared, so that each alphabet has a few favourites.
        figure_weights=tuple(
            1 + common * taste**2 for (_, common), taste in zip(FIGURES, tastes, strict=True)
        ),
        angle_grid=draws.pick((90, 90, 45, 45, 30, 15, 5)) * TURN // 360,
        fewest_strokes=fewest,
        most_strokes=fewest + draws.pick((0, 1, 1, 2, 2, 3, 4)),
        on_lattice=draws.pick((20, 40, 70, 80, 90, 100, 100)),
        columns=draws.pick((2, 2, 3, 3, 4)),
        rows=draws.pick((2, 3, 3, 4)),
        bent=draws.pick((0, 10, 30, 60, 90)),
        joined=draws.pick((0, 20, 50, 80)),
        attached=draws.between(60, 95),
        copied=draws.between(0, 30),
        shared=draws.between(10, 70),
        related=draws.pick((0, 0, 10, 20, 40)),
        dotted=draws.pick((0, 0, 5, 10, 30)),
        stemmed=draws.chance(20),
        only_dots=draws.chance(4),
        size=66 + draws.normal(11),
        width=ONE * 7 // 8 + draws.normal(ONE // 8),
    )


# --- figures: the headings of single strokes ----------------------------------------------------------


def straight(length: int, heading: int) -> Ints:
    return np.full(max(2, length), heading, dtype=np.int64)


def arc(radius: int, heading: int, sweep: int) -> Ints:
    """A part of a circle; its length is radius times sweep, with 44/7 for two pi."""
    length = max(3, radius * abs(sweep) * 44 // (7 * TURN))
    return heading + sweep * np.arange(length, dtype=np.int64) // length


def turned_round(headings: Ints) -> Ints:
    """The same stroke drawn from its end."""
    return headings[::-1] + TURN // 2


def any_heading(draws: Draws, style: Style) -> int:
    return draws.between(0, TURN // style.angle_grid - 1) * style.angle_grid


def any_side(draws: Draws) -> int:
    return draws.pick((-1, 1))


def corner(draws: Draws, style: Style) -> int:
    angle = draws.between(30, 140) * DEGREE // style.angle_grid * style.angle_grid
    return any_side(draws) * max(style.angle_grid, angle)


def line(draws: Draws, style: Style, size: int) -> Ints:
    return straight(size, any_heading(draws, style))


def corners(draws: Draws, style: Style, size: int) -> Ints:
    heading, moves = any_heading(draws, style), []
    for _ in range(draws.between(2, 4)):
        moves.append(straight(size * draws.between(30, 100) // 100, heading))
        heading += corner(draws, style)
    return np.concatenate(moves)


def bow(draws: Draws, style: Style, size: int) -> Ints:
    sweep = any_side(draws) * draws.between(80, 300) * DEGREE
    return arc(size * draws.between(25, 60) // 100, any_heading(draws, style), sweep)


def hook(draws: Draws, style: Style, size: int) -> Ints:
    heading = any_heading(draws, style)
    bend = corner(draws, style) if draws.chance(33) else 0
    sweep = any_side(draws) * draws.between(80, 320) * DEGREE
    end = arc(size * draws.between(12, 45) // 100, heading + bend, sweep)
    headings = np.concatenate([straight(size, heading), end])
    return turned_round(headings) if draws.chance(50) else headings


def wave(draws: Draws, style: Style, size: int) -> Ints:
    """Arcs that swing to and fro, or, with cusps between them, all bulge to one side."""
    heading, side, moves = any_heading(draws, style), any_side(draws), []
    sweep = draws.between(120, 220) * DEGREE
    radius = size * draws.between(15, 35) // 100
    cusped = draws.chance(40)
    for _ in range(draws.between(2, 4)):
        moves.append(arc(radius * draws.between(70, 130) // 100, heading, side * sweep))
        if not cusped:
            heading += side * sweep
            side = -side
    return np.concatenate(moves)


def ring(draws: Draws, style: Style, size: int) -> Ints:
    """A circle, which may have a line leading to it, away from it, or both."""
    heading = any_heading(draws, style)
    sweep = any_side(draws) * draws.between(330, 400) * DEGREE
    moves = [arc(size * draws.between(14, 40) // 100, heading, sweep)]
    before, after = draws.pick(((False, False), (False, False), (True, False), (False, True), (True, True)))
    if before:
        moves.insert(0, straight(size * draws.between(30, 90) // 100, heading))
    if after:
        moves.append(straight(size * draws.between(30, 90) // 100, heading + sweep))
    return np.concatenate(moves)


def polygon(draws: Draws, style: Style, size: int) -> Ints:
    heading, side = any_heading(draws, style), any_side(draws)
    sides = draws.pick((3, 4, 4, 4))
    lengths = (size * 8 // 10, size * draws.between(50, 110) // 100 if sides == 4 else size * 8 // 10)
    return np.concatenate(
        [straight(lengths[i % 2], heading + side * i * TURN // sides) for i in range(sides)]
    )


def wander(draws: Draws, style: Style, size: int) -> Ints:
    heading, moves = any_heading(draws, style), []
    for _ in range(draws.between(2, 5)):
        if draws.chance(45):
            moves.append(straight(size * draws.between(25, 70) // 100, heading))
        else:
            sweep = any_side(draws) * draws.between(40, 260) * DEGREE
            moves.append(arc(size * draws.between(12, 45) // 100, heading, sweep))
            heading += sweep
        if draws.chance(45):
            heading += corner(draws, style)
    return np.concatenate(moves)


# Each figure and how common it is.
FIGURES: tuple[tuple[Callable[[Draws, Style, int], Ints], int], ...] = (
    (line, 30),
    (corners, 25),
    (bow, 25),
    (hook, 25),
    (wave, 12),
    (ring, 16),
    (polygon, 7),
    (wander, 10),
)


def draw_figure(draws: Draws, style: Style, size: int) -> Ints:
    figure, _ = FIGURES[draws.weighted(style.figure_weights)]
    return figure(draws, style, size)


def spiral(radius: int) -> Ints:
    """A dot, as people fill it with a thin pen: from its middle outwards."""
    return np.concatenate([arc(ring_radius, 0, TURN) for ring_radius in range(1, radius + 1)])


# --- characters ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Stroke:
    """headings: (step,) of a pen that moves one pixel a step; the rest says where the stroke is put.

    Its point `own_anchor` lies on point `anchor` of stroke `parent`, moved by `offset`; a stroke without a
    parent is moved from the origin. A dot is left when it is as large as the drawer likes.
    """

    headings: Ints
    own_anchor: int = 0
    parent: int | None = None
    anchor: int = 0
    offset: Point = (0, 0)
    is_dot: bool = False


@dataclass
class Lattice:
    """What the strokes of a character have touched so far."""

    points: list[Point] = field(default_factory=list)
    edges: set[frozenset[Point]] = field(default_factory=set)


def draw_lattice_stroke(draws: Draws, style: Style, lattice: Lattice) -> tuple[Ints, Point]:
    """The headings of a stroke through points of the lattice, and the point where it starts.

    Most strokes start where an earlier one has been, and none runs along the same edge twice.
    """

    def any_point() -> Point:
        return draws.between(0, style.columns - 1), draws.between(0, style.rows - 1)

    here = start = (
        draws.pick(lattice.points) if lattice.points and draws.chance(style.attached) else any_point()
    )
    lattice.points.append(start)
    heading: int | None = None
    moves: list[Ints] = []
    for _ in range(draws.pick((1, 1, 1, 2, 2, 3, 3, 4, 5))):
        there = any_point()
        if draws.chance(45):  # most movements of real letters are along a row or a column
            there = (there[0], here[1]) if draws.chance(50) else (here[0], there[1])
        edge = frozenset((here, there))
        if there == here or edge in lattice.edges:
            continue
        dx, dy = (there[0] - here[0]) * LATTICE_STEP, (there[1] - here[1]) * LATTICE_STEP
        chord = heading_towards(dx, dy)
        # An arc leaves its chord at half its sweep.
        half = 0
        if heading is not None and draws.chance(style.joined):
            half = (chord - heading + TURN // 2) % TURN - TURN // 2
        elif draws.chance(style.bent):
            half = any_side(draws) * draws.between(20, 125) * DEGREE
        if not 5 * DEGREE <= abs(half) <= 140 * DEGREE:
            half = 0
        distance = math.isqrt(dx * dx + dy * dy)
        if half:
            radius = distance * ONE // (2 * abs(int(sine(np.array([half]))[0])))
            moves.append(arc(radius, chord - half, 2 * half))
        else:
            moves.append(straight(distance, chord))
        heading = chord + half
        lattice.edges.add(edge)
        lattice.points.append(there)
        here = there
    if not moves:
        moves = [straight(LATTICE_STEP * 2 // 3, draws.between(0, 3) * TURN // 4)]
    return np.concatenate(moves), start


def put_on_lattice(strokes: Sequence[Stroke], headings: Ints, start: Point) -> Stroke:
    """The stroke at its place on the lattice, held by the point of an earlier stroke where one is near."""
    target = np.array(start) * LATTICE_STEP * PIXEL
    if not strokes:
        return Stroke(headings, offset=(int(target[0]), int(target[1])))
    paths = layout(strokes)
    for parent, path in enumerate(paths):
        distance = np.abs(path - target).sum(axis=1)
        if distance.min() < 8 * PIXEL:
            return Stroke(headings, 0, parent, int(distance.argmin()))
    away = target - paths[0][0]
    return Stroke(headings, 0, 0, 0, (int(away[0]), int(away[1])))


def towards(heading: int, pixels: int) -> Point:
    x, y = movements(np.array(heading)) * pixels * PIXEL // ONE
    return int(x), int(y)


def put_anywhere(draws: Draws, style: Style, strokes: Sequence[Stroke], headings: Ints) -> Stroke:
    """The stroke on, or at some distance from, a point of an earlier one."""
    if not strokes:
        return Stroke(headings)
    parent = draws.between(0, len(strokes) - 1)
    length = len(strokes[parent].headings)
    anchor = draws.pick((0, length // 2, length - 1, draws.between(0, length - 1)))
    own_anchor = draws.pick((0, 0, len(headings) // 2, len(headings) - 1))
    away = towards(draws.between(0, 7) * TURN // 8, draws.between(8, 26))
    return Stroke(headings, own_anchor, parent, anchor, (0, 0) if draws.chance(style.attached) else away)


@dataclass
class Alphabet:
    """A style, the parts that its characters share, and the characters invented so far."""

    style: Style
    parts: list[Ints]
    stem: Ints
    characters: list[list[Stroke]] = field(default_factory=list)
    footprints: list[frozenset[int]] = field(default_factory=list)


def invent_alphabet(draws: Draws) -> Alphabet:
    style = draw_style(draws)
    parts = [draw_figure(draws, style, draws.between(10, 42)) for _ in range(draws.between(3, 8))]
    return Alphabet(style, parts, stem=straight(draws.between(40, 60), draws.between(0, 1) * TURN // 4))


def draw_dots(draws: Draws) -> list[Stroke]:
    """A cell of up to six dots."""
    cells = [(x, y) for y in range(3) for x in range(2)]
    chosen = [cell for cell in cells if draws.chance(50)] or [cells[0], cells[-1]]
    dot = spiral(DOT_RADIUS + 1)
    return [Stroke(dot, offset=(x * 28 * PIXEL, y * 28 * PIXEL), is_dot=True) for x, y in chosen]


def draw_strokes(draws: Draws, alphabet: Alphabet) -> list[Stroke]:
    """A character in the making; see `draw_character`."""
    style = alphabet.style
    if style.only_dots:
        return draw_dots(draws)
    strokes: list[Stroke] = []
    lattice = Lattice()
    count = draws.between(style.fewest_strokes, style.most_strokes)
    if alphabet.characters and draws.chance(style.related):
        strokes, count = list(draws.pick(alphabet.characters)), 1
    elif style.stemmed and draws.chance(85):
        strokes = [Stroke(alphabet.stem)]
    for number in range(count):
        if draws.chance(style.on_lattice):
            strokes.append(put_on_lattice(strokes, *draw_lattice_stroke(draws, style, lattice)))
            continue
        if draws.chance(style.shared):
            headings = draws.pick(alphabet.parts)
        elif strokes and draws.chance(style.copied):
            headings = draws.pick(strokes).headings
            # As it is, mirrored left and right, or mirrored top and bottom.
            headings = draws.pick((headings, headings, TURN // 2 - headings, -headings))
        else:
            headings = draw_figure(draws, style, draws.between(10, 42) if number else draws.between(28, 60))
        strokes.append(put_anywhere(draws, style, strokes, headings))
    if draws.chance(style.dotted):
        heading = draws.between(0, 7) * TURN // 8
        for _ in range(draws.pick((1, 1, 2, 3))):
            parent = draws.between(0, len(strokes) - 1)
            anchor = draws.between(0, len(strokes[parent].headings) - 1)
            away = towards(heading, draws.between(12, 24))
            strokes.append(Stroke(spiral(DOT_RADIUS), 0, parent, anchor, away, is_dot=True))
            heading += TURN // 4
    return strokes


def draw_character(draws: Draws, alphabet: Alphabet) -> list[Stroke]:
    """The alphabet's next character, at the alphabet's size: the first fair one that comes to mind."""
    for _ in range(TRIES):
        strokes = draw_strokes(draws, alphabet)
        outline = footprint(strokes)
        distinct = all(likeness(outline, other) < TOO_LIKE for other in alphabet.footprints)
        if distinct and (alphabet.style.only_dots or is_fair(draws, strokes)):
            break
    alphabet.characters.append(strokes)
    alphabet.footprints.append(outline)
    return scaled(strokes, min(LARGEST, max(SMALLEST, alphabet.style.size + draws.normal(7))))


def is_fair(draws: Draws, strokes: Sequence[Stroke]) -> bool:
    """Neither a tangle nor, most of the time, a bare line."""
    points = np.concatenate(layout(strokes))
    busy = 10 * PIXEL * len(points) // int(np.ptp(points, axis=0).max() + PIXEL)
    return busy <= BUSIEST and (busy >= PLAINEST or draws.chance(12))


def footprint(strokes: Sequence[Stroke]) -> frozenset[int]:
    """The cells that a character touches of a grid of eight by eight, laid over its longer side."""
    points = np.concatenate(layout(strokes))
    low, high = points.min(axis=0), points.max(axis=0)
    cell = (2 * points - low - high + int((high - low).max())) * 4 // (int((high - low).max()) + 1)
    return frozenset((8 * cell[:, 1] + cell[:, 0]).tolist())


def likeness(one: frozenset[int], other: frozenset[int]) -> int:
    """Per cent of the cells touched by either that both touch."""
    return 100 * len(one & other) // len(one | other)


def layout(strokes: Sequence[Stroke]) -> list[Ints]:
    """(step, 2) positions of each stroke, as meant."""
    placed: list[Ints] = []
    for stroke in strokes:
        path = np.cumsum(movements(stroke.headings) * PIXEL // ONE, axis=0)
        origin = np.zeros(2, np.int64) if stroke.parent is None else placed[stroke.parent][stroke.anchor]
        placed.append(path - path[stroke.own_anchor] + origin + np.array(stroke.offset))
    return placed


def scaled(strokes: Sequence[Stroke], size: int) -> list[Stroke]:
    """The same character with a longer side of `size` pixels, still one heading a pixel."""
    extent = int(np.ptp(np.concatenate(layout(strokes)), axis=0).max()) // PIXEL + 1
    lengths = [max(2, len(stroke.headings) * size // extent) for stroke in strokes]
    result = []
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


def invent(key: int, count: int) -> Iterator[tuple[Style, list[Stroke]]]:
    """`count` characters of the alphabet that `key` decides, each with the alphabet's style."""
    alphabet = invent_alphabet(Draws(child_key(key, 0)))
    for character in range(count):
        yield alphabet.style, draw_character(Draws(child_key(key, 1 + character)), alphabet)
