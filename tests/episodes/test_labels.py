"""Strings of five letters: distinct in an episode, uniform, the same whenever they are drawn."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from fewshot.episodes.codes import draw_codes
from fewshot.episodes.hashing import fold
from fewshot.episodes.labels import (
    LETTERS,
    STRINGS,
    VALUES,
    Labels,
    first_presentation_ceiling,
    label_count,
    label_units,
    spelled,
)
from fewshot.episodes.protocol import Stream
from fewshot.errors import EpisodeError

SIGNED = st.integers(-(2**63), 2**63 - 1)


def slow_codes(key: int, way: int) -> list[list[int]]:
    """One number after the other from those that are left, each in base five, its last digit first."""
    left, codes = list(range(STRINGS)), []
    for draw in range(way):
        random = int(fold(key, torch.tensor(draw))) % 2**64
        number = left.pop((random >> 32) * len(left) >> 32)
        code = []
        for _ in range(LETTERS):
            number, value = divmod(number, VALUES)
            code.append(value)
        codes.append(code)
    return codes


@settings(deadline=None, max_examples=40)
@given(st.lists(SIGNED, min_size=1, max_size=4), st.integers(2, 60))
def test_codes_are_those_drawn_one_by_one(keys: list[int], way: int) -> None:
    codes = draw_codes(torch.tensor(keys).unsqueeze(1), way)
    assert codes.tolist() == [slow_codes(key, way) for key in keys]


def test_all_strings_can_be_shown_at_once_and_no_more() -> None:
    (codes,) = draw_codes(torch.tensor([[7]]), STRINGS)
    assert len(set(map(tuple, codes.tolist()))) == STRINGS == 3125
    assert (int(codes.min()), int(codes.max())) == (0, VALUES - 1)
    sizes: dict[str, Any] = {"way": STRINGS + 1, "length": STRINGS + 1}
    Stream(**sizes)
    with pytest.raises(EpisodeError, match="3126 classes need as many strings; there are 3125"):
        Stream(**sizes, labels="string")


def test_every_string_is_as_likely_as_any_other() -> None:
    codes = draw_codes(torch.arange(20_000).unsqueeze(1), 5)
    numbers = (codes * VALUES ** torch.arange(LETTERS)).sum(-1)
    for place in range(5):
        assert chisquare(torch.bincount(numbers[:, place], minlength=STRINGS).numpy()).pvalue > 1e-4


def test_a_label_is_shown_by_way_units_or_by_five_for_each_letter() -> None:
    assert (label_units("one_hot", 20), label_units("string", 20)) == (20, 25)


def test_a_code_is_read_as_letters() -> None:
    assert spelled([0, 4, 2, 1, 1]) == "aecbb"


def test_labels_to_choose_from_are_the_classes_or_all_strings() -> None:
    labels: list[Labels | None] = ["one_hot", "string", None]
    assert [label_count(kind, 20) for kind in labels] == [20, 3125, 20]


@pytest.mark.parametrize(
    ("labels", "new_classes", "known"),
    [(5, [5], 0.45667), (5, [5] * 10, 0.45667), (15, [15], 0.22122), (STRINGS, [5], 1 / 3123)],
)
def test_the_ceiling_of_first_presentations(labels: int, new_classes: list[int], known: float) -> None:
    assert first_presentation_ceiling(labels, new_classes) == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("counts", ["exact", "random"])
def test_the_ceiling_is_what_the_best_guesser_reaches_in_a_simulation(counts: str) -> None:
    """Slowly, from the words alone: whoever guesses one of the labels not yet shown."""
    random = np.random.default_rng(0)
    right, asked, new_classes = 0, 0, []
    for _ in range(20_000):
        way, length = 4, 8
        labels = (
            random.permutation(np.arange(length) % way) if counts == "exact" else random.integers(way, size=6)
        )
        shown: list[int] = []
        for label in labels.tolist():
            if label not in shown:
                left = [other for other in range(way) if other not in shown]
                right += left[int(random.integers(len(left)))] == label
                asked += 1
                shown.append(label)
        new_classes.append(len(shown))
    assert right / asked == pytest.approx(first_presentation_ceiling(4, new_classes), abs=0.006)
