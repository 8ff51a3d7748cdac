"""Checks of option values that the learners share: a network that cannot be built is refused in one line."""

from fewshot.errors import LearnerError


def check_at_least(minimum: int, **options: float | None) -> None:
    """Raise LearnerError for the first of these options that is below the minimum; None is not."""
    for name, value in options.items():
        if value is not None and value < minimum:
            raise LearnerError(f"{name} must be at least {minimum}; got {value}")


def check_above_zero(**options: float) -> None:
    """Raise LearnerError for the first of these options that is not above 0."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise LearnerError(f"{name} must be above 0; got {value!r}")


def check_fraction(**options: float) -> None:
    """Raise LearnerError for the first of these options that is not from 0 to 1."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise LearnerError(f"{name} must be from 0 to 1; got {value}")
