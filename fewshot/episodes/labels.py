"""What a label is to a learner: one of `way` units, or a string of five letters (Santoro et al. 2016).

With way units a network has a fixed number of classes built in. The paper's section 4.1 therefore also gives
each class of an episode a string of five letters, each one of five values: 25 units show it and 25 logits
answer with it, whatever the way, and 3,125 strings leave nothing to guess. Here a string is a *code*, five
numbers in 0..4, drawn afresh for each episode and never twice in it (`fewshot.episodes.codes`).

When a class comes for the first time, nobody knows its label. The labels of an episode are a random
permutation, so each of those not shown yet is equally likely, whatever the image shows: with `way` labels,
the k-th new class is named rightly once in way - k + 1 times by the best guesser, and by any learner at most.
Over all first presentations that is (1 + 1/2 + ... + 1/way) / way, 45.7 % of 5 classes. Where labels are
strings there are 3,125 to choose from, and hardly anything is left.

Importing this takes no torch: reports say what a guess reaches.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Labels = Literal["one_hot", "string"]

LETTERS, VALUES = 5, 5
STRINGS = VALUES**LETTERS


def label_units(labels: Labels, way: int) -> int:
    """How many units show a label, and how many logits answer with one."""
    return way if labels == "one_hot" else LETTERS * VALUES


def label_count(labels: Labels | None, way: int) -> int:
    """How many labels there are to choose from; None is K-shot, whose labels are numbers."""
    return STRINGS if labels == "string" else way


def first_presentation_ceiling(labels: int, new_classes: Sequence[int] | NDArray[np.integer[Any]]) -> float:
    """What the best guesser reaches at first presentations, a fraction.

    labels: how many there are to choose from; new_classes: (stream,), how many classes come in each.
    """
    coming = np.asarray(new_classes)
    chances = 1 / (labels - np.arange(int(coming.max())))
    return float(chances.cumsum()[coming - 1].sum() / coming.sum())


def spelled(code: list[int]) -> str:
    """A code as people read it: "adbec"."""
    return "".join("abcde"[value] for value in code)
