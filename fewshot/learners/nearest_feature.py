"""Soft nearest neighbour over stored embeddings: the rival by which a memory network is to be judged.

It has the encoder of `Mann`, and in place of a memory that has to be learned one that is exact and has no
bounds: every embedding is stored beside its label, and an image asks all of them at once. (That is the
attention of matching networks, Vinyals et al. 2016, equation 1, without their contextual embeddings.)

| name       | equation                                                    | shape                   |
|------------|-------------------------------------------------------------|-------------------------|
| feature    | the encoder's, here divided by its length                   | (batch, image, feature) |
| similarity | sharpness feature . stored feature                          | (batch, image, stored)  |
| score      | log of the sum of exp(similarity) to the images of a class  | (batch, image, way)     |
| new score  | learned, then calibrated; of each class not seen            | number                  |
| read       | exp(similarity) / sum of exp(score) over all classes        | (batch, image, stored)  |

The last is for the microscope: by how much each stored image speaks for its class, so that what is read from
the images of a class is the probability that it is given. Not soft, the nearest of a class speaks alone.
"""

import math
from typing import Unpack

import torch
from torch import Tensor, nn

from fewshot.episodes.batch import StreamBatch
from fewshot.learners.encoder import EncoderLearner, EncoderOptions
from fewshot.learners.metric import NEW_COSINE, best_of_class, cosines, soft_best_of_class
from fewshot.learners.nearest import Nearest
from fewshot.learners.options import check_above_zero
from fewshot.memory.attribution import Watch, append_only


class NearestFeature(EncoderLearner, Nearest):
    """Nearest stored embedding by cosine; inductive, batch norm frozen, any way and shot.

    soft: whether all stored images of a class speak for it, or the nearest alone.
    sharpness: what it is before training.
    """

    has_memory = True

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        way: int,
        *,
        soft: bool = True,
        sharpness: float = 10.0,
        **encoder: Unpack[EncoderOptions],
    ) -> None:
        super().__init__(image_shape, way, **encoder)
        check_above_zero(sharpness=sharpness)
        self.build_encoder()
        self.soft = soft
        self.log_sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.new_score = nn.Parameter(torch.tensor(NEW_COSINE * sharpness))

    def similarity(self, features: Tensor, stored: Tensor) -> Tensor:
        return self.log_sharpness.exp() * cosines(features, stored)

    def of_class(self, similarity: Tensor, labels: Tensor, way: int) -> Tensor:
        of_class = soft_best_of_class if self.soft else best_of_class
        return of_class(similarity, labels, way)

    def watch_features(self, batch: StreamBatch) -> tuple[Tensor, Watch]:
        """A slot is a stored image, which takes the slot of its own step when its label is shown."""
        similarity = self.stream_similarity(batch)
        logits = self.logits(self.of_class(similarity, batch.labels, batch.way))
        if not self.soft:
            nearest = best_of_class(similarity, batch.labels, batch.way)
            others = similarity < nearest.gather(2, batch.labels.unsqueeze(1).expand_as(similarity))
            similarity = similarity.masked_fill(others, -torch.inf)
        read = torch.exp(similarity - logits.logsumexp(dim=-1, keepdim=True))
        return logits, append_only(read, offset=-1)
