"""How often honest figures would look like those at hand.

A guard that is decided by figures fails where that is less than FALSE_ALARM_RATE. An audit makes a hundred
such tests at most, so that it accuses who is innocent less than once in a thousand times.
"""

from math import exp, log

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

FALSE_ALARM_RATE = 1e-5
"""Of one test: how often it fails where the guard holds."""


def chance_of_mean(mean: float, expected: float, number: int) -> float:
    """At most so often is the mean of `number` values as large as this or larger, where `expected` is right.

    The values lie in [0, 1], and each is expected to be `expected` or less, whatever came before it. The
    bound exp(-number KL(mean, expected)) holds for any distribution and any number of them (Hoeffding,
    Journal of the American Statistical Association 1963, theorem 1).
    """
    if mean <= expected:
        return 1.0
    if expected <= 0:
        return 0.0
    divergence = mean * log(mean / expected)
    if mean < 1:
        divergence += (1 - mean) * log((1 - mean) / (1 - expected))
    return exp(-number * divergence)


def chance_of_labels(counts: NDArray[np.integer]) -> float:
    """How often labels given at random are as unevenly spread over each class's episodes as these, or more.

    counts: (class, label), in how many episodes the class had the label; each episode gives each of its
    labels once. Pearson's chi-squared, whose tail is that of large numbers: its mean is exact for any, and
    it varies less where classes are drawn a few times only, so that the test then alarms less often.

    Labels of one episode exclude each other. So the column sums are fixed, and for C classes that are drawn
    equally often the sum is C / (C - 1) times a chi-squared variable of (C - 1) (way - 1) degrees of freedom.
    """
    counts = counts[counts.sum(axis=1) > 0]
    classes, way = counts.shape
    if classes < 2:
        return 1.0
    expected = counts.sum(axis=1, keepdims=True) / way
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return float(chi2.sf(statistic * (classes - 1) / classes, (classes - 1) * (way - 1)))
