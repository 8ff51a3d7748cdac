"""The two protocols under which every learner is measured.

K-shot: a support set of way x shot labelled images, then way x query images to name (Vinyals et al. 2016).
Stream: a shuffled sequence of (image, previous label); accuracy by k-th presentation of a class
(Santoro et al. 2016). Papers compare methods across the two, which cannot be done; here each learner runs
under both.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, get_args

from fewshot.episodes.labels import STRINGS, Labels
from fewshot.errors import EpisodeError, unknown

Counts = Literal["exact", "random"]
Range = int | tuple[int, int]

MOST_CLASSES = 2**15 - 1
"""Of an episode: which class was answered is kept as a 16-bit number."""


def bounds(value: Range) -> tuple[int, int]:
    """The least and the largest value of a fixed or variable setting."""
    return value if isinstance(value, tuple) else (value, value)


@dataclass(frozen=True)
class KShot:
    """way classes, shot support images and query images of each.

    way and shot may be (least, largest): they are then drawn afresh, uniformly, for each block of
    `block` consecutive episodes, so that episodes side by side have one shape and need no padding.
    within_group draws all classes of an episode from one group (alphabet).
    """

    way: Range = 5
    shot: Range = 1
    query: int = 15
    within_group: bool = False
    block: int = 16

    def __post_init__(self) -> None:
        _check_whole(query=self.query, block=self.block)
        for name, value in (("way", self.way), ("shot", self.shot), ("query", self.query)):
            low, high = _checked_bounds(name, value)
            if not 1 <= low <= high:
                raise EpisodeError(f"{name} must be at least 1, and a range (least, largest); got {value}")
        if bounds(self.way)[0] < 2:
            raise EpisodeError(f"way must be at least 2, or there is nothing to tell apart; got {self.way}")
        if self.block < 1:
            raise EpisodeError(f"block must be at least 1; got {self.block}")

    @property
    def variable(self) -> bool:
        return isinstance(self.way, tuple) or isinstance(self.shot, tuple)


@dataclass(frozen=True)
class Stream:
    """A sequence of `length` images of `way` classes, each named before its label is shown.

    counts="exact" gives every class length / way images, which a guesser can count: 45.7 % is reachable on
    the first presentation of 5 classes without looking. counts="random" draws the class of each step
    independently (a class whose images are used up is left out), so there is nothing to count.
    labels: whether classes go by numbers or by strings (`fewshot.episodes.labels`); the images are the same.
    chain: how many such sequences, each of its own classes and labels, follow one another as the links of one
    episode, in which nothing is wiped (the paper's persistent memory).
    """

    way: int = 5
    length: int = 50
    counts: Counts = "exact"
    within_group: bool = False
    labels: Labels = "one_hot"
    chain: int = 1

    def __post_init__(self) -> None:
        _check_whole(way=self.way, length=self.length, chain=self.chain)
        for name, value, known in (("counts", self.counts, Counts), ("labels", self.labels, Labels)):
            if value not in get_args(known):
                raise EpisodeError(unknown(name, str(value), get_args(known)))
        if self.way < 2:
            raise EpisodeError(f"way must be at least 2, or there is nothing to tell apart; got {self.way}")
        if self.length < self.way:
            raise EpisodeError(f"{self.way} classes need a stream of length >= {self.way}; got {self.length}")
        if self.counts == "exact" and self.length % self.way:
            raise EpisodeError(
                f"exact counts need a length that way divides; got way {self.way}, length {self.length}: "
                f'choose length {self.length // self.way * self.way}, or counts="random"'
            )
        if self.labels == "string" and self.way > STRINGS:
            raise EpisodeError(
                f"{self.way} classes need as many strings; there are {STRINGS} of five letters: lower way or "
                'choose labels="one_hot"'
            )
        if not 1 <= self.chain <= MOST_CLASSES // self.way:
            raise EpisodeError(
                f"a chain has at least 1 link, and {MOST_CLASSES} classes at most in all its links; got "
                f"{self.chain} links of {self.way} classes"
            )

    @property
    def images(self) -> int:
        """How many images an episode shows."""
        return self.chain * self.length

    @property
    def manner(self) -> str:
        """How its classes come and what they are called: "exact counts, string labels"."""
        strings = ", string labels" if self.labels == "string" else ""
        chain = f", chain of {self.chain} episodes" if self.chain > 1 else ""
        return f"{self.counts} counts{strings}{chain}"


def _check_whole(**settings: object) -> None:
    """Raise EpisodeError for the first of these settings that is no whole number."""
    for name, value in settings.items():
        if not isinstance(value, Integral):
            raise EpisodeError(f"{name} is a whole number; got {value!r}")


def _checked_bounds(name: str, value: Range) -> tuple[int, int]:
    """The bounds of a setting; EpisodeError unless it is a whole number or two in a tuple."""
    ends = value if isinstance(value, tuple) else (value, value)
    if len(ends) != 2 or not all(isinstance(end, Integral) for end in ends):
        raise EpisodeError(f"{name} is a whole number, or a tuple (least, largest); got {value!r}")
    return ends


Protocol = KShot | Stream
