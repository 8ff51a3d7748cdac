"""Intervals of a difference cover it; what is none is rarely called one; planted ones are found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student_t
from scipy.stats import ttest_rel

from fewshot.harness.comparison import Answered, _spread, compare, holm
from fewshot.harness.statistics import Resampling, over_episodes, summarise

EPISODES, CLASSES, WAY, QUERY = 60, 30, 5, 4


def drawn(random):
    """Episode and class of each row: WAY of CLASSES classes in each of EPISODES episodes."""
    chosen = np.argsort(random.random((EPISODES, CLASSES)), axis=1)[:, :WAY]
    return np.repeat(np.arange(EPISODES), WAY), chosen.ravel()


def answered(random, chance, seeds=1, **fields):
    """Answers that are right with the chance of each row, (row,) or (seed, row)."""
    chance = np.broadcast_to(chance, (seeds, EPISODES * WAY))
    return Answered(random.binomial(QUERY, np.clip(chance, 0, 1)), **fields)


def compared(random, chance_a, chance_b, columns, **fields):
    episode, class_id = columns
    count = np.full(len(episode), QUERY)
    a, b = (answered(random, chance, **fields) for chance in (chance_a, chance_b))
    return compare(episode, class_id, np.zeros_like(count), count, a, b)[None]


# --- What is computed ---------------------------------------------------------------------------------------


def test_the_interval_over_episodes_is_that_of_the_paired_t_test():
    random = np.random.default_rng(0)
    episode, class_id = drawn(random)
    a, b = (answered(random, chance) for chance in (0.8, 0.7))
    found = compare(episode, class_id, 0 * episode, np.full(len(episode), QUERY), a, b)[None]
    by_episode = [side.correct.reshape(EPISODES, -1).sum(1) / (WAY * QUERY) for side in (a, b)]
    paired = ttest_rel(*by_episode).confidence_interval(0.95)
    assert found.difference == pytest.approx((paired.high + paired.low) / 2)
    assert found.ci95 == pytest.approx((paired.high - paired.low) / 2)


def test_the_interval_over_classes_is_the_bootstrap_of_the_differences():
    random = np.random.default_rng(1)
    episode, class_id = drawn(random)
    count = random.integers(1, 9, len(episode))
    a, b = (random.binomial(count, chance) for chance in (0.8, 0.7))
    found = compare(episode, class_id, 0 * count, count, Answered(a[None]), Answered(b[None]))[None]
    resampled = Resampling(episode, class_id, replicates=20_000).half_width(a - b, count)
    assert found.ci95_classes == pytest.approx(resampled, rel=0.03)
    assert found.ci95 == over_episodes(episode, a - b, count).half_width
    assert found.ci95_methods is None
    assert found.difference == pytest.approx(a.sum() / count.sum() - b.sum() / count.sum())


def test_the_level_of_seeds_is_what_drawing_one_less_of_them_gives():
    random = np.random.default_rng(2)
    accuracies = [random.normal(0.9, 0.02, seeds) for seeds in (3, 5)]
    means = [random.choice(values, (200_000, len(values) - 1)).mean(1) for values in accuracies]
    deviation, freedom = _spread(0.005, accuracies)
    assert deviation**2 == pytest.approx(np.var(means[0] - means[1]) + 0.005**2, rel=0.02)
    assert 2 < _spread(0.0, accuracies)[1] <= 6  # between the least n - 1 and the sum of both
    assert freedom > _spread(0.0, accuracies)[1]
    assert _spread(0.005, []) == (0.005, np.inf)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_corrects_step_by_step(p_values):
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    least = 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        assert corrected[i] == pytest.approx(least)


def test_holm_on_numbers_known():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_at_a_presentation_only_its_answers_count():
    random = np.random.default_rng(3)
    episode = np.repeat(np.arange(50), 15)
    class_id = np.tile(np.repeat(np.arange(5), 3), 50)
    presentation = np.tile([1, 2, 3], 250)
    ones = np.ones_like(episode)
    a, b = ((random.random(750) < chance / 4).astype(int) for chance in (presentation, 3))
    found = compare(
        episode, class_id, presentation, ones, Answered(a[None]), Answered(b[None]), (None, 2, 3, 9)
    )
    assert list(found) == [None, 2, 3]
    for k in (2, 3):
        rows = presentation == k
        alone = compare(*(c[rows] for c in (episode, class_id, presentation, ones)),
                        Answered(a[None, rows]), Answered(b[None, rows]))[None]  # fmt: skip
        assert found[k] == alone
    summary = summarise(episode, class_id, presentation, a, ones)
    assert found[2].accuracy_a == summary.accuracy_by_instance[2]


# --- What it says -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_identical_answers_differ_by_nothing(seeds):
    random = np.random.default_rng(4)
    episode, class_id = drawn(random)
    same = answered(random, 0.7, seeds)
    found = compare(episode, class_id, 0 * episode, np.full(len(episode), QUERY), same, same)[None]
    assert (found.difference, found.ci95, found.ci95_classes, found.p_value) == (0, 0, 0, 1)


def test_always_against_never_is_certain():
    random = np.random.default_rng(5)
    found = compared(random, 1.0, 0.0, drawn(random))
    assert (found.difference, found.ci95, found.ci95_classes, found.p_value) == (1, 0, 0, 0)


def test_one_episode_says_nothing():
    ones = np.ones(5, int)
    a, b = Answered(ones[None]), Answered(0 * ones[None])
    found = compare(0 * ones, np.arange(5), 0 * ones, ones, a, b)[None]
    assert (found.ci95, found.ci95_classes, found.p_value) == (None, None, 1)


def test_a_claim_about_methods_takes_three_seeds_of_each_that_is_trained():
    random = np.random.default_rng(6)
    episode, class_id = drawn(random)
    count = np.full(len(episode), QUERY)

    def methods(a, b):
        return compare(episode, class_id, 0 * count, count, a, b)[None].ci95_methods

    three, two = answered(random, 0.7, 3), answered(random, 0.7, 2)
    untrained = answered(random, 0.5, 1, trained=False)
    assert methods(three, three) is not None
    assert methods(three, two) is None
    assert methods(three, untrained) is not None
    assert methods(two, untrained) is None


def test_the_same_trainings_differ_by_what_their_seeds_differ_by():
    """A large effect of the seed that both ways of answering share is none of their difference."""
    random = np.random.default_rng(7)
    columns = drawn(random)
    of_seed = random.normal(0, 0.1, (3, 1))
    count = np.full(len(columns[0]), QUERY)
    a, b = (answered(random, 0.5 + of_seed + more, 3) for more in (0.1, 0.0))
    apart, together = (
        compare(*columns, 0 * count, count, a, b, same_trainings=same)[None] for same in (False, True)
    )
    assert together.ci95_classes == apart.ci95_classes
    assert together.ci95_methods < apart.ci95_methods / 3
    beneath = together.ci95_classes / student_t.ppf(0.975, np.inf)
    by_seed = (a.correct.sum(1) - b.correct.sum(1)) / count.sum()
    deviation, freedom = _spread(beneath, [by_seed])
    assert deviation**2 == pytest.approx(beneath**2 + by_seed.var(ddof=1) / 3)
    assert together.ci95_methods == pytest.approx(student_t.ppf(0.975, freedom) * deviation)


# --- Crossed effects: coverage, and no more false alarms than claimed ---------------------------------------


def simulate(repetitions, seeds, of_class, of_episode, of_seed, seed):
    """Comparisons of two methods without a difference, whose classes, episodes and seeds have effects.

    of_*: standard deviations of an effect on the chance of a right answer, drawn anew for each method. What
    all methods find hard is drawn once for both.
    """
    random = np.random.default_rng(seed)
    found = []
    for _ in range(repetitions):
        columns = episode, class_id = drawn(random)
        hard = random.normal(0.7, 0.1, EPISODES)[episode] + random.normal(0, 0.1, CLASSES)[class_id]
        chances = [
            hard
            + random.normal(0, of_class, CLASSES)[class_id]
            + random.normal(0, of_episode, EPISODES)[episode]
            + random.normal(0, of_seed, (seeds, 1))
            for _ in range(2)
        ]
        found.append(compared(random, *chances, columns, seeds=seeds))
    return found


def covered(found, name):
    """The share of intervals that hold the true difference, zero."""
    return np.mean([abs(one.difference) <= getattr(one, name) for one in found])


def test_intervals_over_classes_cover_new_classes_where_those_over_episodes_do_not():
    found = simulate(300, seeds=1, of_class=0.15, of_episode=0.05, of_seed=0, seed=7)
    assert covered(found, "ci95_classes") >= 0.93
    assert covered(found, "ci95") < 0.8
    assert np.mean([one.p_value < 0.05 for one in found]) <= 0.07


def test_intervals_over_seeds_cover_new_trainings_where_those_over_classes_do_not():
    found = simulate(300, seeds=3, of_class=0.03, of_episode=0.03, of_seed=0.06, seed=8)
    assert covered(found, "ci95_methods") >= 0.93
    assert covered(found, "ci95_classes") < 0.8
    assert np.mean([one.p_value < 0.05 for one in found]) <= 0.07


def test_all_effects_at_once_are_covered():
    found = simulate(200, seeds=4, of_class=0.1, of_episode=0.1, of_seed=0.05, seed=9)
    assert covered(found, "ci95_methods") >= 0.93
    p_values = np.array([one.p_value for one in found])
    for level in (0.01, 0.05, 0.2):
        assert np.mean(p_values < level) <= level + 3 * np.sqrt(level * (1 - level) / 200)


def test_a_p_value_is_below_5_percent_where_the_widest_interval_leaves_out_zero():
    for seeds in (1, 3):
        for one in simulate(60, seeds, of_class=0.1, of_episode=0, of_seed=0.05, seed=10):
            widest = one.ci95_methods or one.ci95_classes
            assert (one.p_value < 0.05) == (abs(one.difference) > widest)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_planted_difference_is_found(seeds):
    random = np.random.default_rng(11)
    found = [compared(random, 0.9, 0.78, drawn(random), seeds=seeds) for _ in range(40)]
    assert np.mean([one.p_value < 0.05 for one in found]) >= 0.9
    assert np.mean([one.difference for one in found]) == pytest.approx(0.12, abs=0.01)
