"""Accuracies and what they are uncertain about: episodes, test classes and training seeds.

The intervals answer different questions and are never mixed (design decision 8):

- over episodes: other episodes of the *same* test classes and the same weights; what papers print.
- over test classes: other *classes* (and episodes) drawn from where the test classes came from.
- over training seeds: other *weights*, trained in the same way, on the same test episodes.

All are 95 % intervals, given as half widths in the unit of the accuracy (a fraction), and None where fewer
than two of what they vary over exist. An accuracy is correct answers over answers given, so that every
answer weighs the same; where all episodes ask equally many questions, as in K-shot episodes of fixed way,
it is the mean of the per-episode accuracies. Intervals of the difference between two learners, and the one
over episodes, test classes and training seeds at once, are in `fewshot.harness.comparison`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import norm
from scipy.stats import t as student_t

Column = NDArray[np.integer[Any]]
"""(row,): one column of the answers, a row per (episode, class, presentation or query group)."""

LEVEL = 0.95
LEAST_SEEDS = 3
"""Training seeds of a method for a claim about it."""
REPLICATES = 1000
BOOTSTRAP_SEED = 0
_EPISODES_AT_ONCE = 256  # their weights and sums then stay in a processor's cache


class Estimate(NamedTuple):
    """A mean and the half width of its 95 % interval, None where there is nothing to estimate it from."""

    mean: float
    half_width: float | None


@dataclass(frozen=True)
class Accuracies:
    """What one evaluation says; fractions, and half widths of 95 % intervals.

    accuracy: correct answers over answers given. In a stream, over all answered presentations.
    ci95: over episodes. ci95_classes: over test classes crossed with episodes.
    The *_by_instance say the same for each presentation of a class in a stream (1 is the first); they are
    empty for K-shot episodes.
    """

    accuracy: float
    ci95: float | None
    ci95_classes: float | None
    accuracy_by_instance: dict[int, float]
    ci95_by_instance: dict[int, float | None]
    ci95_classes_by_instance: dict[int, float | None]


def summarise(
    episode: Column, class_id: Column, presentation: Column, correct: Column, count: Column
) -> Accuracies:
    """All accuracies and intervals of an evaluation, from the columns of its answers.

    presentation is 0 for K-shot. A presentation that not every class reaches (random counts) is averaged over
    the classes that do.
    """
    accuracy, ci95 = over_episodes(episode, correct, count)
    resampling = Resampling(episode, class_id)
    asked = [int(k) for k in np.unique(presentation) if k > 0]
    rows = {k: presentation == k for k in asked}
    estimates = {k: over_episodes(episode[rows[k]], correct[rows[k]], count[rows[k]]) for k in asked}
    return Accuracies(
        accuracy=accuracy,
        ci95=ci95,
        ci95_classes=resampling.half_width(correct, count),
        accuracy_by_instance={k: estimates[k].mean for k in asked},
        ci95_by_instance={k: estimates[k].half_width for k in asked},
        ci95_classes_by_instance={
            k: resampling.half_width(correct * rows[k], count * rows[k]) for k in asked
        },
    )


def over_episodes(episode: Column, correct: NDArray[Any], count: Column) -> Estimate:
    """Accuracy and its interval over episodes, for the test classes and the weights at hand.

    correct: (row,), whole answers or parts of them.

    Where all episodes ask equally many questions this is the mean of the per-episode accuracies with
    Student's t interval (what papers print). Otherwise it is the ratio of two means, whose interval comes
    from the linearised residuals (Cochran, Sampling Techniques, 3rd edition 1977, chapter 6).
    """
    _, position = np.unique(episode, return_inverse=True)
    correct_per_episode = np.bincount(position, weights=correct)
    count_per_episode = np.bincount(position, weights=count)
    accuracy = correct_per_episode.sum() / count_per_episode.sum()
    residual = (correct_per_episode - accuracy * count_per_episode) / count_per_episode.mean()
    return Estimate(float(accuracy), _t_half_width(residual))


def over_seeds(accuracies: Sequence[float]) -> float | None:
    """Half width of Student's t interval of the mean over training seeds, in the accuracies' unit.

    accuracies: one per training seed, of the same test episodes. None below LEAST_SEEDS.
    """
    return _t_half_width(np.array(accuracies)) if len(accuracies) >= LEAST_SEEDS else None


def crossed_deviation(
    episode: Column, class_id: Column, correct: NDArray[Any], count: NDArray[Any]
) -> float | None:
    """Standard deviation of sum(correct) / sum(count) over test classes crossed with episodes.

    It is what `Resampling.deviation` tends to with ever more replicates, in a thousandth of its time. None
    below two classes or episodes.

    To first order, the ratio varies as the sum of r = correct - ratio * count over the whole count. In a
    replicate each r has the product of two independent multinomial weights. As the r add up to zero, the
    variance of their sum is (1 - 1/C) sum_e r_e^2 + (1 - 1/E) sum_c r_c^2 + sum_ec r_ec^2, with r added up by
    episode (of E), by class (of C) and by both (Owen 2007, there for large E and C).
    """
    episodes, row = np.unique(episode, return_inverse=True)
    classes, column = np.unique(class_id, return_inverse=True)
    if min(len(episodes), len(classes)) < 2:
        return None
    total = count.sum()
    residual = correct - correct.sum() / total * count
    _, cell = np.unique(row * len(classes) + column, return_inverse=True)
    by_episode, by_class, by_both = (
        (np.bincount(group, weights=residual) ** 2).sum() for group in (row, column, cell)
    )
    variance = (1 - 1 / len(classes)) * by_episode + (1 - 1 / len(episodes)) * by_class + by_both
    return float(np.sqrt(variance) / total)


def told_by_instance(values: Mapping[int, float]) -> str:
    """ "; 2nd presentation 95.0 %" and so on, for the presentations that are usually quoted."""
    quoted = [k for k in (1, 2, 5, 10) if k in values]
    return "".join(f"; {ordinal(k)} presentation {100 * values[k]:.1f} %" for k in quoted)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th and so on."""
    return f"{number}{({1: 'st', 2: 'nd', 3: 'rd'}).get(number, 'th')}"


class Resampling:
    """How often each replicate drew each class and each episode: the pigeonhole bootstrap, which gives the
    interval over test classes, crossed with episodes.

    Classes and episodes are drawn with replacement, independently, and an answer weighs as often as its
    class times as often as its episode was drawn (Owen, The pigeonhole bootstrap, Annals of Applied
    Statistics 2007). The half width is 1.96 standard deviations of the replicates' accuracies. It errs on
    the wide side: the variance that belongs to neither class nor episode is counted three times (Owen
    shows this for large data), so where classes hardly differ the interval is up to 1.7 times too wide.
    The same input and seed give the same figure.
    """

    def __init__(
        self,
        episode: Column,
        class_id: Column,
        replicates: int = REPLICATES,
        seed: int = BOOTSTRAP_SEED,
    ) -> None:
        episodes, self.row = np.unique(episode, return_inverse=True)
        classes, self.column = np.unique(class_id, return_inverse=True)
        self.shape = (len(episodes), len(classes))
        self.episode_weight, self.class_weight = _resamples(*self.shape, replicates, seed)

    def half_width(self, correct: Column, count: Column) -> float | None:
        """Of the 95 % interval of sum(correct) / sum(count); None below two classes or episodes asked."""
        deviation = self.deviation(correct, count)
        return None if deviation is None else float(norm.ppf((1 + LEVEL) / 2) * deviation)

    def deviation(self, correct: Column, count: Column) -> float | None:
        """Standard deviation of sum(correct) / sum(count) over the replicates; None as for `half_width`."""
        asked = count > 0
        if min(len(np.unique(self.column[asked])), len(np.unique(self.row[asked]))) < 2:
            return None
        total = self._weighted_sum(count)
        drawn = total > 0  # a replicate may miss the few classes that reach a late presentation
        replicate_accuracy = self._weighted_sum(correct)[drawn] / total[drawn]
        return float(replicate_accuracy.std(ddof=1))

    def _weighted_sum(self, values: Column) -> NDArray[np.float64]:
        """(replicate,): sums of value x class weight x episode weight; exact, since all are integers."""
        row = np.flatnonzero(values)
        entries = (values[row].astype(np.float64), (self.row[row], self.column[row]))
        matrix = csr_array(entries, shape=self.shape)
        sums = np.zeros(self.class_weight.shape[1])
        for first in range(0, self.shape[0], _EPISODES_AT_ONCE):
            part = slice(first, first + _EPISODES_AT_ONCE)
            by_episode = np.asarray(matrix[part] @ self.class_weight)
            sums += (by_episode * self.episode_weight[part]).sum(axis=0)
        return sums


@lru_cache(maxsize=4)  # drawing them takes half a second for 10,000 episodes; a suite asks again and again
def _resamples(
    episodes: int, classes: int, replicates: int, seed: int
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """How often each episode (episode, replicate) and each class (class, replicate) is drawn."""
    random = np.random.default_rng(seed)
    # Small numbers are turned about faster than large ones: casts come first.
    episode_weight = np.ascontiguousarray(_times_drawn(episodes, replicates, random).astype(np.int16).T)
    class_weight = np.ascontiguousarray(_times_drawn(classes, replicates, random).astype(np.float64).T)
    return episode_weight, class_weight


def _times_drawn(number: int, replicates: int, random: np.random.Generator) -> NDArray[np.int64]:
    """(replicate, number): how often each is drawn when `number` are drawn with replacement."""
    return random.multinomial(number, np.full(number, 1 / number), size=replicates)


def _t_half_width(values: NDArray[np.float64]) -> float | None:
    if len(values) < 2:
        return None
    quantile = student_t.ppf((1 + LEVEL) / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / np.sqrt(len(values)))
