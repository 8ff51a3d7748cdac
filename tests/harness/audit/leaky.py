"""Learners with planted leaks, and the honest one that they are made of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.episodes.batch import EpisodeBatch, KShotBatch, StreamBatch
from fewshot.learners.base import Learner

State = tuple[Tensor, Tensor]


class ClassMeans(Learner):
    """Honest: distance to the class means of pixels."""

    def start(self, batch: int, way: int) -> State:
        channel, height, width = self.image_shape
        return torch.zeros(batch, way, channel * height * width), torch.zeros(batch, way, 1)

    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        sums, counts = state
        shown = F.one_hot(label, sums.shape[1]).to(image).unsqueeze(2)
        return sums + shown * image.flatten(1).unsqueeze(1), counts + shown

    def predict(self, state: State, images: Tensor) -> Tensor:
        sums, counts = state
        means = sums / counts.clamp(min=1)
        return -(images.flatten(2).unsqueeze(2) - means.unsqueeze(1)).square().sum(-1)


class NormalisesQueriesTogether(ClassMeans):
    """Batch-norm statistics of the query batch, undeclared."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        centred = images - images.mean(1, keepdim=True)
        return super().predict(state, centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-3))


class DeclaresItsTransduction(NormalisesQueriesTogether):
    transductive = True


class NormalisesEpisodesTogether(ClassMeans):
    """Batch-norm statistics of all episodes side by side."""

    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(state, (images - images.mean()) / images.std())


class ReadsQueryLabels(ClassMeans):
    def answer(self, batch: EpisodeBatch) -> Tensor:
        logits = super().answer(batch)
        if isinstance(batch, KShotBatch):
            return logits + 1e4 * F.one_hot(batch.query_labels, batch.way)
        return logits


class LabelWithItsOwnImage(ClassMeans):
    """The label is not offset: it is shown with its image, and then the image is named."""

    def stream(self, batch: StreamBatch) -> Tensor:
        return F.one_hot(batch.labels, batch.way).float()


class LooksOneStepAhead(ClassMeans):
    """Each image is observed with its label before it is named."""

    def stream(self, batch: StreamBatch) -> Tensor:
        state = self.start(len(batch.images), batch.way)
        logits = []
        for image, label in zip(batch.images.unbind(1), batch.labels.unbind(1), strict=True):
            state = self.observe(state, image, label)
            logits.append(self.predict(state, image.unsqueeze(1)).squeeze(1))
        return torch.stack(logits, dim=1)


class RemembersTheLastEpisode(ClassMeans):
    """State is kept on the module."""

    def observe(self, state: State, image: Tensor, label: Tensor) -> State:
        self.kept = super().observe(getattr(self, "kept", state), image, label)
        return self.kept

    def predict(self, state: State, images: Tensor) -> Tensor:
        return super().predict(getattr(self, "kept", state), images)


class LearnsWhileItIsTested(ClassMeans):
    """Running statistics move in evaluation."""

    def __init__(self, image_shape: tuple[int, int, int], way: int) -> None:
        super().__init__(image_shape, way)
        self.norm = nn.BatchNorm2d(image_shape[0], affine=False)

    def predict(self, state: State, images: Tensor) -> Tensor:
        self.norm.train()
        self.norm(images.flatten(0, 1))
        self.norm.eval()
        return super().predict(state, images)
