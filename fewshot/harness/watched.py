"""What the microscope saw: a memory at work on episodes, as plain arrays, and how it scores.

Nothing here needs torch: pictures and pages are drawn from these values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.errors import EpisodeError
from fewshot.harness.statistics import Estimate, over_episodes, told_by_instance

Floats = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

FIRST_ASKED = 2
"""The presentation from which on there is something of the class in memory that could be read."""
LEAST_HELD = 0.1
"""Amount of writing under which a slot counts as empty: every slot holds traces of everything."""


@dataclass(frozen=True, eq=False)
class WatchedEpisode:
    """One stream, and what the memory did at each step of it; weights are summed over heads.

    images: (step, channel, height, width) uint8, as they are in the image set; labels, answers, presentation:
        (step,), an answer that names no class is -1; class_names: one per label.
    slots: (slot,), the numbers of the slots that were touched, of num_slots in all.
    read_weights, write_weights: (step, slot); usage: (step, slot), None where the memory keeps no such count.
    held: (step, slot, way), how much of the images of each class lies in a slot after the step.
    shares: (step, item), which part of what was read at a step came from each image stored before; sums to 1,
        or is 0 throughout where nothing was stored or read.
    """

    images: NDArray[np.uint8]
    labels: Labels
    answers: Labels
    presentation: Labels
    class_names: tuple[str, ...]
    slots: Labels
    num_slots: int
    read_weights: Floats
    write_weights: Floats
    usage: Floats | None
    held: Floats
    shares: Floats

    @property
    def owner(self) -> Labels:
        """(step, slot): the class that most of what lies in the slot belongs to, -1 where it is empty."""
        return np.where(self.held.sum(axis=-1) < LEAST_HELD, -1, self.held.argmax(axis=-1))

    @property
    def right_share(self) -> Floats:
        """(step,): the part of what was read that came from images of the right class."""
        return right_share(self.shares, self.labels)

    @property
    def level(self) -> Floats:
        """(step,): what of it a reader without preference would have, to whom all images are equal."""
        return level(self.presentation)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(step,): whether the answer was right."""
        return np.equal(self.answers, self.labels)

    def __str__(self) -> str:
        known = self.presentation >= FIRST_ASKED
        return (
            f"right are {self.right[known].sum()} of {known.sum()} answers where the class was known, and "
            f"{self.right[~known].sum()} of {(~known).sum()} where it was new"
        )


@dataclass(frozen=True)
class Attribution:
    """How far what was read came from images of the right class, over the steps where there were any.

    share: the part of what was read that was written with the right class, the mean over steps, with its 95 %
    interval over episodes; level: what a reader without preference would have, for whom everything stored
    weighs the same; foremost: how often the image read most was of the right class; accuracy: of the answers
    at the same steps. Fractions.
    """

    share: Estimate
    level: float
    foremost: float
    accuracy: float
    by_instance: dict[int, float]
    episodes: int

    def __str__(self) -> str:
        mean, half_width = self.share
        interval = "" if half_width is None else f" ± {100 * half_width:.1f}"
        over = "1 episode" if half_width is None else f"95 % CI over {self.episodes} episodes"
        return (
            f"attribution: {100 * mean:.1f}{interval} % is read from the right class ({over}; without "
            f"preference {100 * self.level:.1f} %{told_by_instance(self.by_instance)})"
        )


def right_share(shares: Floats, labels: Labels) -> Floats:
    """(..., step): the part of each step's shares (..., step, item) that belongs to items of its own class.

    labels: (..., step), of the items too: item i is what was shown at step i.
    """
    same = labels[..., :, None] == labels[..., None, :]
    return np.asarray(np.where(same, shares, 0.0).sum(axis=-1))


def level(presentation: Labels) -> Floats:
    """(..., step): the part of the images stored so far that are of the class in question."""
    return (presentation - 1) / np.maximum(np.arange(presentation.shape[-1]), 1)


def attribution(shares: Floats, labels: Labels, presentation: Labels, answers: Labels) -> Attribution:
    """The score of some episodes: shares (episode, step, item), the others (episode, step).

    Raises EpisodeError where no class comes twice.
    """
    asked = presentation >= FIRST_ASKED
    if not asked.any():
        raise EpisodeError("no class comes twice, so there is nothing of it to read: ask for longer streams")
    episode = np.nonzero(asked)[0]
    share = right_share(shares, labels)[asked]
    foremost = np.take_along_axis(labels, shares.argmax(axis=-1), axis=1) == labels
    seen = presentation[asked]
    return Attribution(
        share=over_episodes(episode, share, np.ones_like(episode)),
        level=float(level(presentation)[asked].mean()),
        foremost=float((foremost & shares.any(axis=-1))[asked].mean()),
        accuracy=float((answers == labels)[asked].mean()),
        by_instance={int(k): float(share[seen == k].mean()) for k in np.unique(seen)},
        episodes=len(labels),
    )
