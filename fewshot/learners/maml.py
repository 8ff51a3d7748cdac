"""Model-agnostic meta-learning (Finn, Abbeel and Levine 2017), second and first order.

Weights are learned from which a few steps of gradient descent on the support set (the paper's equation 1)
reach a good classifier: the outer loss is taken after the inner steps (algorithm 1). `Maml` differentiates
through the inner gradient; `Fomaml` takes it for a constant (the paper's section 5.2). `gradient.py` has
both, and what batch norm they use: by default one that makes them transductive in K-shot.
"""

from typing import ClassVar

from fewshot.learners.gradient import GradientLearner


class Maml(GradientLearner):
    """MAML as published: the outer gradient goes through the inner one."""

    second_order: ClassVar[bool] = True


class Fomaml(GradientLearner):
    """First-order MAML: the inner gradient is taken for a constant; about half the time per step."""

    second_order: ClassVar[bool] = False
