"""What the tests of both libraries ask of a source of tasks."""

import torch

from fewshot.data.split import ClassPool
from fewshot.interop.images import PoolImages
from fewshot.interop.source import TaskEpisodes


def check_classes_behind_labels(source: TaskEpisodes, pool: ClassPool) -> None:
    """Each image of its episodes is the pool's, of the class that stands behind its label."""
    images, labels = zip(*PoolImages(pool), strict=True)
    stored, labels = torch.stack(images).flatten(1), torch.tensor(labels)
    for batch in source.batches(0, 6, 4):
        for shown, named in (batch.support[:2], batch[1:3]):
            same = (shown.flatten(2).unsqueeze(2) == stored).all(-1)
            assert (same.sum(-1) == 1).all()
            assert torch.equal(labels[same.int().argmax(-1)], batch.class_ids.gather(1, named))
