"""What `Baseline` and `BaselinePp` share: classification in training, and a head fitted to the support set.

Both are from Chen, Liu, Kira, Wang and Huang 2019, "A Closer Look at Few-shot Classification" (section 3.2).
The encoder is trained with a classifier over all training classes (`class_training.py`) and stays as it is;
to name images, a new classifier, the head, is fitted to the images shown by gradient descent.

| name        | symbol | equation                                                    | shape                 |
|-------------|--------|-------------------------------------------------------------|-----------------------|
| targets     | Y      | the shown labels as one-hot vectors                         | (batch, image, way)   |
| products    | K      | x_i . x_j of the shown images' features                     | (batch, image, image) |
| coefficient | C      | weights are sums of features: w_c = sum over i of C_ic x_i  | (batch, image, way)   |
| error       | E      | (softmax of the scores - Y) / images                        | (batch, image, way)   |
| step        | V      | 0.9 V + 0.1 (gradient + 0.001 C); then C is C - 0.01 V      | (batch, image, way)   |

The steps are the paper's (100 of them, learning rate 0.01, momentum 0.9 dampened by 0.9, weight decay 0.001).
What differs: a step takes all images shown, the paper's takes four; and no head starts from random weights,
so that no label is set apart and an answer is a function of what was shown. Gradient descent never leaves the
span of the features, hence the coefficients: a step costs as many products as there are pairs of images.
In a stream the head is fitted anew at each step.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch
from fewshot.learners.class_training import CLASSES, CLASSIFIER, classification_loss
from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import all_images
from fewshot.learners.options import check_at_least
from fewshot.learners.stored import Stored, StoringLearner

LEARNING_RATE, MOMENTUM, DAMPENING, WEIGHT_DECAY = 0.01, 0.9, 0.9, 0.001


class HeadOptions(BackboneOptions, total=False):
    """The options of both, see `FittedHead`."""

    classes: int
    head_steps: int


class FittedHead(BackboneLearner, StoringLearner):
    """A learner trained by classification that fits a head to the images shown; any way and shot."""

    training_only: ClassVar[frozenset[str]] = CLASSIFIER
    steady: bool = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        classifier: Callable[[int, int], nn.Module],
        classes: int = CLASSES,
        head_steps: int = 100,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """classifier: made of the numbers of features and of classes. classes: training classes at most,
        turned ones too; head_steps: of gradient descent.
        """
        check_at_least(1, classes=classes)
        check_at_least(0, head_steps=head_steps)
        super().__init__(image_shape, way, **shared)
        self.classes = classes
        self.head_steps = head_steps
        self.classifier = classifier(self.feature_size, classes)
        self.register_buffer("new_score", torch.tensor(0.0))

    @abstractmethod
    def products(self, features: Tensor, others: Tensor) -> Tensor:
        """(batch, image, feature), (batch, stored, feature) -> (batch, image, stored)."""

    @abstractmethod
    def head(self, products: Tensor, targets: Tensor) -> Tensor:
        """The head's coefficients: (batch, image, image), (batch, image, way) -> (batch, image, way)."""

    def scores(self, state: Stored, features: Tensor) -> Tensor:
        coefficients = self.head(self.products(state.features, state.features), state.shown)
        scores = self.products(features, state.features) @ coefficients
        return scores.masked_fill(state.counts.unsqueeze(1) == 0, -torch.inf)

    def loss(self, batch: EpisodeBatch) -> Tensor:
        return classification_loss(self.classifier, self.embed(all_images(batch)), batch)


def descend(gradient: Callable[[Tensor], Tensor], coefficients: Tensor, steps: int) -> Tensor:
    """The coefficients after so many steps of gradient descent. gradient: from the coefficients of weights to
    those of the loss's gradient by these weights.
    """

    def slope(coefficients: Tensor) -> Tensor:
        return gradient(coefficients) + WEIGHT_DECAY * coefficients

    velocity = slope(coefficients)  # the first step is not dampened
    for _ in range(steps):
        velocity = MOMENTUM * velocity + (1 - DAMPENING) * slope(coefficients)
        coefficients = coefficients - LEARNING_RATE * velocity
    return coefficients
