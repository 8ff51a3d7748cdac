"""What can go wrong, as a tree; the command line turns any of these into one line and exit code 2.

    FewshotError
    ├── DataError        images or archives that are missing, damaged or not what they claim to be
    ├── SplitError       class splits that are unknown, overlap or miss a side
    ├── EpisodeError     episodes that the classes at hand cannot supply
    ├── LearnerError     unknown learners, wrong options, unreadable checkpoints, broken promises
    │   └── AbsentError  own code, or weights of others, that a learner is made of and that are not here
    ├── InteropError     another library that is absent, or what it gives is not what is needed
    └── RecordError      suites and results that are malformed, unwritable or do not agree

A message says what was asked, what there is, and the remedy.
"""

import difflib
from collections.abc import Iterable


class FewshotError(Exception):
    """Wrong input: the base of everything that this package raises on purpose."""


class DataError(FewshotError):
    """Raised when images or archives are missing, damaged or not what they claim to be."""


class SplitError(FewshotError):
    """Raised when a class split is unknown, overlaps or misses a side."""


class EpisodeError(FewshotError):
    """Raised when the classes at hand cannot supply the episode asked for."""


class LearnerError(FewshotError):
    """Raised for unknown learners, wrong options, unreadable checkpoints and broken promises."""


class AbsentError(LearnerError):
    """Raised when own code or weights of others, of which a learner is made, are not on this machine."""


class InteropError(FewshotError):
    """Raised when another library is absent, or what it gives is not what its adapter needs."""


class RecordError(FewshotError):
    """Raised when a suite or a results folder is malformed, unwritable or does not agree with itself."""


def check_kind(name: str, given: object, kinds: type | tuple[type, ...], remedy: str) -> None:
    """Raise FewshotError, in one line, unless what a function was given is of one of these kinds."""
    if isinstance(given, kinds):
        return
    asked = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    there = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
    raise FewshotError(f"{name} should be of the type {asked}; got {there}: {remedy}")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that does not exist: the nearest known one if any begins so or is near, and all."""
    names = sorted(known)
    begun = [other for other in names if name and other.startswith(name)]
    near = begun or difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}there is {', '.join(names) or 'none'}"
