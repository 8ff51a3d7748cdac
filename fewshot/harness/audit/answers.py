"""Guards on recorded answers: no figure is better than an honest learner can be.

At first presentations that is a guess among the labels not shown yet (`fewshot.episodes.labels`).
"""

import numpy as np
import pyarrow as pa

from fewshot.episodes.labels import first_presentation_ceiling, label_count
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
    expected = first_presentation_ceiling(label_count(record.labels, record.way), new_classes)
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
