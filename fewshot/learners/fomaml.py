"""First-order MAML (Finn, Abbeel and Levine 2017, section 5.2): inner gradients are taken for constants.

All else is `maml.py`'s, without the options of MAML++: `gradient.py` has the steps, and what batch norm they
use, which by default makes it transductive in K-shot.
"""

from typing import ClassVar

from fewshot.learners.gradient import GradientLearner


class Fomaml(GradientLearner):
    """First-order MAML; about half the time per step of `Maml`."""

    second_order: ClassVar[bool] = False
