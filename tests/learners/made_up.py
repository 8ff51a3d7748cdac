"""Made-up K-shot episodes for tests of learners: a pattern for each class, and noise."""

import torch
from torch import Tensor

from fewshot.episodes.batch import KShotBatch, StreamBatch, Support
from fewshot.episodes.source import presentation
from fewshot.learners.base import Learner

SHAPE = (1, 12, 12)


def patterns(classes: int, seed: int = 0) -> Tensor:
    """(class, channel, height, width): coarse fields of ink and paper."""
    fields = torch.randn(classes, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return fields.repeat_interleave(3, 2).repeat_interleave(3, 3)


def kshot(
    of: Tensor,
    batch: int = 2,
    way: int = 4,
    shot: int = 2,
    query: int = 2,
    *,
    noise: float = 0.5,
    seed: int = 1,
) -> KShotBatch:
    """Episodes of so many of these patterns; class ids are their places."""
    random = torch.Generator().manual_seed(seed)
    class_ids = torch.stack([torch.randperm(len(of), generator=random)[:way] for _ in range(batch)])
    labels = torch.rand(batch, way * shot, generator=random).argsort(1) % way
    asked = torch.rand(batch, way * query, generator=random).argsort(1) % way
    shown, queries = (_images(of, class_ids, part, noise, random) for part in (labels, asked))
    return KShotBatch(Support(shown, labels, way), queries, asked, class_ids)


def stream(
    of: Tensor, batch: int = 2, way: int = 3, length: int = 9, *, noise: float = 0.5, seed: int = 1
) -> StreamBatch:
    """Shuffled streams in which every class comes up equally often."""
    random = torch.Generator().manual_seed(seed)
    class_ids = torch.stack([torch.randperm(len(of), generator=random)[:way] for _ in range(batch)])
    labels = torch.rand(batch, length, generator=random).argsort(1) % way
    images = _images(of, class_ids, labels, noise, random)
    return StreamBatch(images, labels, presentation(labels, way), class_ids, way)


def accuracy(learner: Learner, batch: KShotBatch) -> float:
    with torch.no_grad():
        return float((learner.eval().answer(batch).argmax(-1) == batch.query_labels).double().mean())


def train(learner: Learner, of: Tensor, steps: int, way: int, learning_rate: float = 1e-2) -> None:
    """Steps of Adam on one-shot episodes of these patterns."""
    optimizer = torch.optim.Adam(learner.train().parameters(), learning_rate)
    for step in range(steps):
        optimizer.zero_grad()
        learner.loss(kshot(of, batch=2, way=way, shot=1, query=2, noise=1.0, seed=step)).backward()
        optimizer.step()


def _images(of: Tensor, class_ids: Tensor, labels: Tensor, noise: float, random: torch.Generator) -> Tensor:
    chosen = of[class_ids.gather(1, labels)]
    return chosen + noise * torch.randn(chosen.shape, generator=random)
