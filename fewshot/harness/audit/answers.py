"""Guards on recorded answers: no figure is better than an honest learner can be.

When a class comes for the first time, nobody knows its label. The labels of an episode are a random
permutation, so each of those not shown yet is equally likely, whatever the image shows: with `way` labels,
the k-th new class is named rightly once in way - k + 1 times by the best guesser, and by any learner at most.
Over all first presentations that is (1 + 1/2 + ... + 1/way) / way, 45.7 % of 5 classes. Where labels are
strings there are 3,125 to choose from, and hardly anything is left.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fewshot.episodes.labels import STRINGS
from fewshot.harness.audit.chance import FALSE_ALARM_RATE, chance_of_mean
from fewshot.harness.audit.finding import Finding
from fewshot.harness.record import Record


def first_presentations_are_guesses(subject: str, record: Record, answers: pa.Table) -> Finding | None:
    """At first presentations a stream is answered no better than the best guesser does without looking.

    answers: with `ANSWERS_SCHEMA`. None where the learner was not asked at first presentations.
    """
    names = ("episode", "label", "presentation", "correct")
    episode, label, presentation, correct = (np.asarray(answers[name].to_numpy()) for name in names)
    first = presentation == 1
    if not first.any():
        return None
    links = int(label.max()) // record.way + 1
    _, new_classes = np.unique(episode[first] * links + label[first] // record.way, return_counts=True)
    expected = ceiling(STRINGS if record.labels == "string" else record.way, new_classes)
    asked, accuracy = int(first.sum()), float(correct[first].mean())
    chance = chance_of_mean(accuracy, expected, asked)
    return Finding(
        "first presentations are within the guesser's ceiling",
        subject,
        chance >= FALSE_ALARM_RATE,
        f"{100 * accuracy:.2f} % of {asked:,} first presentations (ceiling {100 * expected:.2f} %)",
        "show a stream's labels one step after their images, and permute them in each episode",
        chance,
    )


def ceiling(labels: int, new_classes: NDArray[np.integer]) -> float:
    """What the best guesser reaches at first presentations, a fraction.

    labels: how many there are to choose from; new_classes: (stream,), how many classes come in each.
    """
    chances = 1 / (labels - np.arange(int(new_classes.max())))
    return float(chances.cumsum()[new_classes - 1].sum() / new_classes.sum())
