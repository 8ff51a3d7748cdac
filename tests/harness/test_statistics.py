import time

import numpy as np
import pytest
from scipy.stats import t as student_t

from fewshot.harness.statistics import (
    REPLICATES,
    Resampling,
    crossed_deviation,
    over_episodes,
    over_seeds,
    summarise,
)


def crossed(accuracy, random):
    """Columns of one answer per class in each episode, all classes in all; accuracy: (episode, class)."""
    episodes, classes = accuracy.shape
    episode = np.repeat(np.arange(episodes), classes)
    class_id = np.tile(np.arange(classes), episodes)
    correct = (random.random(accuracy.shape) < accuracy).astype(int).ravel()
    return episode, class_id, correct, np.ones_like(correct)


def over_classes(episode, class_id, correct, count, replicates=REPLICATES, seed=0):
    """The half width of the interval over test classes."""
    return Resampling(episode, class_id, replicates, seed).half_width(correct, count)


def test_one_value_has_no_interval():
    assert over_episodes(np.array([3, 3]), np.array([1, 0]), np.array([1, 1])) == (0.5, None)
    assert over_classes(np.arange(9), np.zeros(9, int), np.ones(9, int), np.ones(9, int)) is None


def test_over_episodes_is_the_mean_of_episode_accuracies_where_all_ask_equally_many():
    random = np.random.default_rng(0)
    correct = random.integers(0, 16, (200, 5))
    mean, half_width = over_episodes(np.repeat(np.arange(200), 5), correct.ravel(), np.full(1000, 15))
    accuracies = correct.sum(1) / 75
    low, high = student_t.interval(0.95, 199, accuracies.mean(), accuracies.std(ddof=1) / np.sqrt(200))
    assert mean == pytest.approx(accuracies.mean(), rel=1e-12)
    assert half_width == pytest.approx((high - low) / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("accuracies", "quantile", "deviation"),
    [([0.90, 0.91, 0.92], 4.302653, 0.01), ([0.5, 0.6, 0.6, 0.7], 3.182446, 0.08164966), ([0.7] * 3, 1, 0)],
)
def test_the_interval_over_seeds_is_students_of_their_accuracies(accuracies, quantile, deviation):
    """The quantiles are those of printed tables, at 0.975 and one degree of freedom below the seeds."""
    expected = quantile * deviation / len(accuracies) ** 0.5
    assert over_seeds(accuracies) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_fewer_than_three_seeds_have_no_interval():
    assert over_seeds([0.9]) is over_seeds([0.9, 0.8]) is None


@pytest.mark.parametrize("unequal", [False, True])
def test_interval_over_episodes_covers_95_percent(unequal):
    random = np.random.default_rng(1)
    truth, covered, repetitions, episodes = 0.8, 0, 2000, 60
    for _ in range(repetitions):
        count = random.integers(1, 20, episodes) if unequal else np.full(episodes, 10)
        # Episodes differ in difficulty, independently of how much they ask, around the same mean.
        correct = random.binomial(count, random.choice([0.7, 0.9], episodes))
        mean, half_width = over_episodes(np.arange(episodes), correct, count)
        covered += abs(mean - truth) <= half_width
    assert 0.93 <= covered / repetitions <= 0.97


def test_class_bootstrap_equals_replicates_drawn_by_hand():
    random = np.random.default_rng(2)
    episode = np.repeat(np.arange(12), 3)
    class_id = np.concatenate([random.permutation(7)[:3] for _ in range(12)])
    count = random.integers(1, 5, 36)
    correct = random.binomial(count, 0.6)
    replicates = 4000
    accuracies = []
    for _ in range(replicates):
        episode_weight = np.bincount(random.integers(0, 12, 12), minlength=12)
        class_weight = np.bincount(random.integers(0, 7, 7), minlength=7)
        weight = episode_weight[episode] * class_weight[class_id]
        accuracies.append((weight * correct).sum() / (weight * count).sum())
    expected = 1.959964 * np.std(accuracies, ddof=1)
    assert over_classes(episode, class_id, correct, count, replicates) == pytest.approx(expected, rel=0.05)


def test_class_bootstrap_agrees_with_the_analytic_variance_of_balanced_data():
    # Where every class is in every episode and classes differ much, the variance is that of the class means.
    random = np.random.default_rng(3)
    by_class = random.uniform(0.3, 0.9, 80)
    columns = crossed(np.tile(by_class, (400, 1)), random)
    correct = columns[2].reshape(400, 80)
    analytic = 1.959964 * correct.mean(0).std(ddof=1) / np.sqrt(80)
    assert over_classes(*columns) == pytest.approx(analytic, rel=0.1)


def test_the_closed_form_is_the_variance_of_multinomial_weights():
    """Every pair of answers, with the covariance of the products of their weights."""
    random = np.random.default_rng(11)
    episode = np.repeat(np.arange(7), 4)  # a class twice in each episode, as presentations of a stream
    class_id = np.concatenate([np.repeat(random.permutation(5)[:2], 2) for _ in range(7)])
    count = random.integers(1, 5, 28)
    correct = random.binomial(count, 0.6)
    residual = correct - correct.sum() / count.sum() * count
    variance = 0.0
    for i in range(28):
        for j in range(28):
            by_episode = 1 + (episode[i] == episode[j]) - 1 / 7
            by_class = 1 + (class_id[i] == class_id[j]) - 1 / len(set(class_id))
            variance += residual[i] * residual[j] * (by_episode * by_class - 1)
    found = crossed_deviation(episode, class_id, correct, count)
    assert found == pytest.approx(np.sqrt(variance) / count.sum())
    assert crossed_deviation(0 * episode, class_id, correct, count) is None
    assert crossed_deviation(episode, 0 * class_id, correct, count) is None


def test_the_closed_form_is_what_the_class_bootstrap_tends_to():
    random = np.random.default_rng(12)
    accuracy = np.clip(0.8 + random.normal(0, 0.1, 40) + random.normal(0, 0.05, (60, 1)), 0, 1)
    columns = crossed(accuracy, random)
    drawn = Resampling(*columns[:2], replicates=20_000).deviation(*columns[2:])
    assert crossed_deviation(*columns) == pytest.approx(drawn, rel=0.02)


def test_class_bootstrap_triples_the_variance_of_pure_noise():
    # What the docstring says of it; each class is in each episode, and all answers are independent.
    random = np.random.default_rng(4)
    columns = crossed(np.full((200, 100), 0.7), random)
    noise = 1.959964 * np.sqrt(0.7 * 0.3 / 20_000)
    assert over_classes(*columns) == pytest.approx(np.sqrt(3) * noise, rel=0.1)


def test_interval_over_classes_covers_new_classes_where_that_over_episodes_does_not():
    random = np.random.default_rng(5)
    truth, repetitions = 0.6, 200
    covered = {"episodes": 0, "classes": 0}
    for _ in range(repetitions):
        by_class = random.uniform(0.3, 0.9, 30)  # another draw of test classes
        chosen = np.argsort(random.random((100, 30)), axis=1)[:, :5]
        correct = random.binomial(15, by_class[chosen]).ravel()
        episode, count = np.repeat(np.arange(100), 5), np.full(500, 15)
        mean, half_width = over_episodes(episode, correct, count)
        covered["episodes"] += abs(mean - truth) <= half_width
        covered["classes"] += abs(mean - truth) <= over_classes(episode, chosen.ravel(), correct, count, 200)
    assert covered["classes"] / repetitions >= 0.9
    assert covered["episodes"] / repetitions <= 0.75


def test_class_bootstrap_is_the_same_each_time_and_in_any_order_of_rows():
    random = np.random.default_rng(6)
    columns = crossed(np.full((50, 10), 0.5), random)
    order = random.permutation(500)
    assert over_classes(*columns) == over_classes(*(column[order] for column in columns))
    assert over_classes(*columns) != over_classes(*columns, seed=1)


def test_summary_by_presentation_averages_over_the_classes_that_reach_it():
    # Episode 0: class 7 three times, class 8 once; episode 1: class 7 twice, class 9 twice.
    episode = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    class_id = np.array([7, 7, 7, 8, 7, 7, 9, 9])
    presentation = np.array([1, 2, 3, 1, 1, 2, 1, 2])
    correct = np.array([0, 1, 1, 0, 1, 1, 0, 0])
    summary = summarise(episode, class_id, presentation, correct, np.ones_like(correct))
    assert summary.accuracy == 0.5
    assert summary.accuracy_by_instance == {1: 0.25, 2: pytest.approx(2 / 3), 3: 1.0}
    # Presentation 1: episode accuracies 0 and 1/2.
    expected = student_t.ppf(0.975, 1) * np.std([0, 0.5], ddof=1) / np.sqrt(2)
    assert summary.ci95_by_instance[1] == pytest.approx(expected)
    assert summary.ci95_by_instance[3] is None  # one episode reaches it
    assert summary.ci95_classes_by_instance[3] is None


def test_summary_by_presentation_equals_a_summary_of_that_presentation_alone():
    random = np.random.default_rng(7)
    episode = np.repeat(np.arange(100), 15)
    class_id = np.tile(np.repeat(np.arange(5), 3), 100)
    presentation = np.tile([1, 2, 3], 500)
    correct = (random.random(1500) < presentation / 4).astype(int)
    count = np.ones_like(correct)
    summary = summarise(episode, class_id, presentation, correct, count)
    for k in (1, 2, 3):
        rows = presentation == k
        alone = summarise(episode[rows], class_id[rows], 0 * presentation[rows], correct[rows], count[rows])
        assert summary.accuracy_by_instance[k] == alone.accuracy
        assert summary.ci95_by_instance[k] == alone.ci95
        assert summary.ci95_classes_by_instance[k] == alone.ci95_classes
        assert alone.accuracy_by_instance == {}


def test_perfect_answers_have_an_interval_of_zero():
    ones = np.ones(20, int)
    summary = summarise(np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4), 0 * ones, ones, ones)
    assert (summary.accuracy, summary.ci95, summary.ci95_classes) == (1, 0, 0)


def test_a_thousand_episodes_are_summarised_in_seconds():
    random = np.random.default_rng(8)
    chosen = np.argsort(random.random((1000, 423)), axis=1)[:, :20].ravel()
    correct = random.binomial(15, 0.9, 20_000)
    begin = time.process_time()
    summarise(np.repeat(np.arange(1000), 20), chosen, 0 * chosen, correct, np.full(20_000, 15))
    assert time.process_time() - begin < 3  # 0.3 s on one idle core
