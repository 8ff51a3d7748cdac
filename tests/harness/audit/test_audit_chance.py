"""What is called chance: an upper bound of the exact tail, close enough to be of use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fewshot.harness.audit.chance import chance_of_mean


@given(
    number=st.integers(1, 500),
    expected=st.floats(0.01, 0.99),
    part=st.floats(0, 1),
)
def test_it_is_never_less_than_the_exact_tail(number: int, expected: float, part: float) -> None:
    right = round(part * number)
    exact = binom.sf(right - 1, number, expected)
    assert chance_of_mean(right / number, expected, number) >= exact * (1 - 1e-9)


def test_it_is_not_much_more_either() -> None:
    exact = binom.sf(99, 256, 0.2)
    assert exact < chance_of_mean(100 / 256, 0.2, 256) < 20 * exact


@pytest.mark.parametrize(
    ("mean", "expected", "chance"),
    [(0.2, 0.2, 1.0), (0.1, 0.2, 1.0), (0.0, 0.0, 1.0), (0.1, 0.0, 0.0), (1.0, 0.5, 2.0**-10)],
)
def test_the_ends_are_exact(mean: float, expected: float, chance: float) -> None:
    assert chance_of_mean(mean, expected, 10) == pytest.approx(chance)
