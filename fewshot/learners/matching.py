"""Matching networks (Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016, "Matching Networks for One
Shot Learning"): attention over the support set, with or without full-context embeddings.

| name        | equation                                                       | shape                   |
|-------------|----------------------------------------------------------------|-------------------------|
| attention   | a(x, x_i), a softmax over i of sharpness cos(f(x), g(x_i))     | (batch, image, stored)  |
| answer      | P(y) = sum of a(x, x_i) over the images i of class y (eq. 1)   | (batch, image, way)     |
| score       | log of the sum, over the class, of exp(sharpness cos)          | (batch, image, way)     |

Without full context f = g is the encoder. (So far it is `nearest_feature` with Conv4-64's own features. The
paper's cosines have no sharpness; with it, learned, answers can be certain, and training is far faster.)

With full context (the paper's appendix A) an image's features depend on the whole support set:

| name        | equation                                                       | shape                   |
|-------------|----------------------------------------------------------------|-------------------------|
| support g   | g' + the outputs of an LSTM over all g', forwards and back     | (batch, stored, feature)|
| reading     | r = sum of softmax(h . g(x_i)) g(x_i), before each step        | (batch, image, feature) |
| query f     | h after some steps of h, c = LSTM(f', [h, r], c), h = h + f'   | (batch, image, feature) |

g' and f' are the encoder's features, h and c are 0 before. An LSTM reads the support in its order, which is
random. In a stream the support are the images shown so far.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from fewshot.learners.embedding import BackboneLearner, BackboneOptions
from fewshot.learners.metric import NEW_COSINE, cosines, soft_best_of_class
from fewshot.learners.options import check_above_zero, check_at_least
from fewshot.learners.stored import Stored, StoringLearner


class Matching(BackboneLearner, StoringLearner):
    """Attention by cosine over all images shown; inductive, batch norm frozen, any way and shot."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        full_context: bool = False,
        reading_steps: int = 5,
        sharpness: float = 10.0,
        **shared: Unpack[BackboneOptions],
    ) -> None:
        """reading_steps: of a query, where context is full; sharpness: before training."""
        check_above_zero(sharpness=sharpness)
        super().__init__(image_shape, way, **shared)
        self.steady = not full_context
        self.context = FullContext(self.feature_size, reading_steps) if full_context else None
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.register_buffer("new_score", torch.tensor(NEW_COSINE * sharpness))

    def scores(self, state: Stored, features: Tensor) -> Tensor:
        stored, asked = state.features, features
        if self.context is not None and stored.shape[1]:
            stored, asked = self.context(stored, asked)
        similarity = self.log_sharpness.exp() * cosines(asked, stored)
        return soft_best_of_class(similarity, state.labels, state.counts.shape[1])


class FullContext(nn.Module):
    """What becomes of features in the context of a whole support set."""

    def __init__(self, feature_size: int, reading_steps: int) -> None:
        super().__init__()
        check_at_least(1, reading_steps=reading_steps)
        self.reading_steps = reading_steps
        self.support = nn.LSTM(feature_size, feature_size, batch_first=True, bidirectional=True)
        self.query = nn.LSTMCell(2 * feature_size, feature_size)

    def forward(self, stored: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Features in context, of (batch, stored, feature) and (batch, image, feature): the same shapes."""
        both, _ = self.support(stored)
        forwards, backwards = both.chunk(2, dim=-1)
        stored = stored + forwards + backwards
        hidden = cell = torch.zeros_like(asked)
        for _ in range(self.reading_steps):
            reading = (hidden @ stored.mT).softmax(-1) @ stored
            given = torch.cat([asked, reading], dim=-1).flatten(0, 1)
            hidden, cell = self.query(given, (hidden.flatten(0, 1), cell.flatten(0, 1)))
            hidden, cell = hidden.view_as(asked) + asked, cell.view_as(asked)
        return stored, hidden
