"""Checks of option values that the learners share: a network that cannot be built is refused in one line."""

from fewshot.errors import LearnerError
from fewshot.memory.cell import Intervention
from fewshot.memory.lrua import AddVector


def check_at_least(minimum: int, **options: float) -> None:
    """Raise LearnerError for the first of these options that is below the minimum."""
    for name, value in options.items():
        if value < minimum:
            raise LearnerError(f"{name} must be at least {minimum}; got {value}")


def check_fraction(**options: float) -> None:
    """Raise LearnerError for the first of these options that is not from 0 to 1."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise LearnerError(f"{name} must be from 0 to 1; got {value}")


def check_tied_path(
    *, tie: bool, add_vector: AddVector = "apart", intervention: Intervention = "none"
) -> None:
    """Raise LearnerError where a tied path has nothing to join, or an intervention has none to break."""
    if tie and add_vector == "key":
        raise LearnerError(
            'tie = true joins the key to what is written; with add_vector "key" they are the same: give '
            'add_vector = "apart" or tie = false'
        )
    if intervention == "shuffle_keys" and not tie:
        raise LearnerError('intervention "shuffle_keys" shuffles the tied content: it needs tie = true')
