"""How often honest figures would look like those at hand.

A guard that is decided by figures fails where that is less than FALSE_ALARM_RATE. An audit makes a hundred
such tests at most, so that it accuses who is innocent less than once in a thousand times.
"""

from math import exp, log

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
