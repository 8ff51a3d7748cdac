"""The handwriting model: integers that behave like what they stand for, drawings that hold together."""

import numpy as np
import pytest

from fewshot.data.handwriting.alphabets import (
    FIGURES,
    draw_character,
    draw_figure,
    footprint,
    invent_alphabet,
    layout,
    likeness,
    scaled,
)
from fewshot.data.handwriting.drawers import DRAWERS, MARGIN, SIDE, draw_alphabet
from fewshot.data.handwriting.integers import (
    ONE,
    PIXEL,
    TURN,
    Draws,
    child_key,
    hash_words,
    heading_towards,
    sine,
)


def test_hash_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hash_words(1234567, np.arange(3, dtype=np.uint64)).tolist() == expected


def test_draws_depend_on_the_key_and_the_position_alone() -> None:
    draws = Draws(3)
    apart = np.concatenate([draws.words(2), draws.words(5)])
    assert np.array_equal(apart, Draws(3).words(7))
    assert not np.array_equal(apart, Draws(child_key(3, 0)).words(7))


def test_normals_have_the_deviation_asked_for() -> None:
    values = Draws(1).normals(1000, 100_000)
    assert abs(values.mean()) < 15
    assert abs(values.std() - 1000) < 15


def test_uniforms_reach_both_ends_evenly() -> None:
    counts = np.bincount(Draws(2).uniforms(0, 6, 70_000))
    assert len(counts) == 7
    assert np.abs(counts - 10_000).max() < 500


def test_weighted_follows_the_weights() -> None:
    draws = Draws(4)
    counts = np.bincount([draws.weighted((1, 0, 3)) for _ in range(2000)], minlength=3)
    assert counts[1] == 0
    assert abs(counts[2] - 1500) < 100


def test_sine_is_a_sine() -> None:
    angles = np.arange(-TURN, 2 * TURN, 7)
    assert np.abs(sine(angles) - ONE * np.sin(2 * np.pi * angles / TURN)).max() <= 3


@pytest.mark.parametrize(("dx", "dy", "eighths"), [(3, 0, 0), (2, 2, 1), (0, 5, 2), (-4, 0, 4), (1, -1, 7)])
def test_heading_points_along_the_movement(dx: int, dy: int, eighths: int) -> None:
    assert abs(heading_towards(dx, dy) - eighths * TURN // 8) <= TURN // 512


def test_every_figure_is_a_path_of_some_length() -> None:
    style = invent_alphabet(Draws(0)).style
    for figure, _ in FIGURES:
        for key in range(30):
            headings = figure(Draws(key), style, 30)
            assert headings.dtype == np.int64
            assert 2 <= len(headings) <= 500
    assert len(draw_figure(Draws(0), style, 30)) >= 2


def test_a_character_has_the_size_asked_for() -> None:
    alphabet = invent_alphabet(Draws(5))
    strokes = draw_character(Draws(6), alphabet)
    for size in (30, 60, 90):
        points = np.concatenate(layout(scaled(strokes, size)))
        assert abs(np.ptp(points, axis=0).max() // PIXEL - size) <= 0.1 * size


def test_characters_of_an_alphabet_differ() -> None:
    alphabet = invent_alphabet(Draws(7))
    for key in range(32):
        draw_character(Draws(key), alphabet)
    prints = [footprint(strokes) for strokes in alphabet.characters]
    assert prints == alphabet.footprints
    assert max(likeness(one, other) for i, one in enumerate(prints) for other in prints[:i]) < 85


def test_likeness_counts_common_cells() -> None:
    assert likeness(frozenset({1, 2, 3}), frozenset({1, 2, 3})) == 100
    assert likeness(frozenset({1, 2, 3}), frozenset({3, 4})) == 25


def test_drawings_are_ink_on_paper_and_stay_on_it() -> None:
    drawings = np.stack(list(draw_alphabet(11, 8)))
    assert drawings.shape == (8, DRAWERS, SIDE, SIDE)
    assert set(np.unique(drawings)) == {0, 255}
    assert drawings.any(axis=(2, 3)).all()
    edge = np.ones((SIDE, SIDE), dtype=bool)
    rim = MARGIN - 3  # the pen reaches two pixels beyond its path, which may end on a boundary
    edge[rim:-rim, rim:-rim] = False
    assert not drawings[..., edge].any()


def test_every_drawer_draws_differently() -> None:
    (drawings,) = draw_alphabet(12, 1)
    assert len({drawing.tobytes() for drawing in drawings}) == DRAWERS


def test_characters_do_not_depend_on_how_many_follow() -> None:
    few, many = list(draw_alphabet(13, 2)), list(draw_alphabet(13, 3))
    assert all(np.array_equal(one, other) for one, other in zip(few, many, strict=False))
