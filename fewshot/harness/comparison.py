"""Two learners on the same test episodes: by how much they differ, and whether chance would explain it.

The comparison is paired: both answered the same queries, so what makes a query hard for both cancels in the
difference of their correct answers. Three intervals of the difference answer three questions, each with more
that might have been otherwise (design decision 8):

    name           might have been otherwise               from
    ci95           episodes                                differences per episode; a ratio of two means where
                                                           episodes ask differently many (Cochran 1977)
    ci95_classes   episodes and test classes, crossed      pigeonhole bootstrap of the differences (Owen,
                                                           Annals of Applied Statistics 2007), in closed form:
                                                           `crossed_deviation`
    ci95_methods   episodes, test classes, training seeds  hierarchical bootstrap: the seeds of each method
                                                           above, classes crossed with episodes beneath

The upper level of the hierarchical bootstrap needs no drawing. n of n seeds drawn with replacement give a
variance that is too small, by a third where n is 3; n - 1 of n give the right one (Rao and Wu, Journal of the
American Statistical Association 1988), which is s^2 / n, where s^2 is the variance between seeds. It is added
to that of the level beneath. Replicates that draw seeds, classes and episodes at once would count what
belongs to none of the three seven times (Owen and Eckles, Annals of Applied Statistics 2012); added, it is
counted four times, which still errs on the wide side. Three seeds say little about their own variance, hence
Student's t with Welch's degrees of freedom (Biometrika 1947), where the level beneath counts as known.

Two ways of answering with the same trainings (a network and itself with its memory emptied) have their seeds
in common: the level above is then that of the differences, seed by seed.

A claim about *methods* takes LEAST_SEEDS training seeds of each; a learner that is not trained has none to
vary and is its own method. With fewer, ci95_methods is None and the comparison is about the checkpoints at
hand. The p-value is two-sided and belongs to the widest interval that there is: it is below 0.05 where that
leaves out zero. It is the tail of a normal or t distribution, not a share of replicates: the least such share
would not survive a correction for many comparisons. That correction is `holm` (Scandinavian Journal of
Statistics 1979), which holds however the comparisons depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from fewshot.harness.record import Record
from fewshot.harness.statistics import LEAST_SEEDS, LEVEL, Column, crossed_deviation, over_episodes


@dataclass(frozen=True)
class Answered:
    """How one learner answered: correct (seed, row), the rows of answers for each of its training seeds.

    trained: whether another training might have answered otherwise; if not, there is one seed's row.
    """

    correct: NDArray[np.integer[Any]]
    trained: bool = True

    @property
    def stands_for_its_method(self) -> bool:
        return not self.trained or len(self.correct) >= LEAST_SEEDS


@dataclass(frozen=True)
class Comparison:
    """Accuracies of two learners, fractions, and half widths of 95 % intervals of their difference.

    A half width is None where fewer than two of what it varies over exist, ci95_methods also where there are
    too few training seeds. p_value: of a difference at least this large if there were none; 1 where there is
    nothing to judge it by.
    """

    accuracy_a: float
    accuracy_b: float
    ci95: float | None
    ci95_classes: float | None
    ci95_methods: float | None
    p_value: float

    @property
    def difference(self) -> float:
        return self.accuracy_a - self.accuracy_b


@dataclass(frozen=True)
class Compared:
    """One row of a table of comparisons.

    a, b: the records of either learner, one per training seed. instance: the presentation in a stream, None
    for all answers. episodes: how many both answered. p_holm: corrected over the table.
    """

    a: tuple[Record, ...]
    b: tuple[Record, ...]
    instance: int | None
    episodes: int
    comparison: Comparison
    p_holm: float

    @property
    def record(self) -> Record:
        """One of the records, for the setting that all have in common."""
        return self.a[0]


def compare(
    episode: Column,
    class_id: Column,
    presentation: Column,
    count: Column,
    a: Answered,
    b: Answered,
    instances: Sequence[int | None] = (None,),
    same_trainings: bool = False,
) -> dict[int | None, Comparison]:
    """Compare over all answers (None) or at a presentation, for each of the instances that occurs.

    The columns are as `record.answer_columns` gives them, (row,); an accuracy is the mean over seeds.
    same_trainings: whether seed i of a and of b is one training, in all of them.
    """
    # Sums over seeds instead of means: integers add up to the same in any order of the rows.
    difference = len(b.correct) * a.correct.sum(axis=0) - len(a.correct) * b.correct.sum(axis=0)
    asked = len(a.correct) * len(b.correct) * count
    methods = a.stands_for_its_method and b.stands_for_its_method
    found: dict[int | None, Comparison] = {}
    for instance in instances:
        rows = np.full(len(count), True) if instance is None else presentation == instance
        if not rows.any():
            continue
        mean, over_those_episodes = over_episodes(episode[rows], difference[rows], asked[rows])
        by_seed = [side.correct[:, rows].sum(axis=1) / count[rows].sum() for side in (a, b)]
        beneath = crossed_deviation(episode[rows], class_id[rows], difference[rows], asked[rows])
        above = [seeds for seeds, side in zip(by_seed, (a, b), strict=True) if side.trained]
        if same_trainings:
            above = [by_seed[0] - by_seed[1]]
        found[instance] = Comparison(
            accuracy_a=float(by_seed[0].mean()),
            accuracy_b=float(by_seed[1].mean()),
            ci95=over_those_episodes,
            ci95_classes=_half_width(beneath),
            ci95_methods=_half_width(beneath, above) if methods else None,
            p_value=_p_value(mean, beneath, above if methods else ()),
        )
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are, in their order: the least times n, the next times n - 1, ...

    Never less than that of a smaller one, never above 1 (Holm 1979).
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
    return [float(p) for p in corrected]


def _half_width(beneath: float | None, above: Sequence[NDArray[np.float64]] = ()) -> float | None:
    if beneath is None:
        return None
    deviation, freedom = _spread(beneath, above)
    return float(student_t.ppf((1 + LEVEL) / 2, freedom) * deviation)


def _p_value(mean: float, beneath: float | None, above: Sequence[NDArray[np.float64]]) -> float:
    if beneath is None or mean == 0:
        return 1.0
    deviation, freedom = _spread(beneath, above)
    return float(2 * student_t.sf(abs(mean) / deviation, freedom)) if deviation else 0.0


def _spread(beneath: float, above: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Standard deviation of a difference, and its degrees of freedom.

    beneath: the standard deviation over classes and episodes. above: for each set of trainings, what their
    seeds vary in.
    """
    variances = [(float(seeds.var(ddof=1)) / len(seeds), len(seeds) - 1) for seeds in above]
    variance = beneath**2 + sum(of_seeds for of_seeds, _ in variances)
    uncertain = sum(of_seeds**2 / freedom for of_seeds, freedom in variances)
    return sqrt(variance), variance**2 / uncertain if uncertain else inf
