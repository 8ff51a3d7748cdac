"""Episodes as learners see them, side by side in a batch. The shapes are written here, once.

Images are float32, normalised by the image set's mean and std; labels are int64 in 0..way-1 and mean
something only inside their episode; class ids are positions in the class pool, for the record and never
for a learner.
"""

from typing import NamedTuple

from torch import Tensor


class Support(NamedTuple):
    """What a learner may learn from.

    images: (batch, way * shot, channel, height, width); labels: (batch, way * shot), in shuffled order.
    """

    images: Tensor
    labels: Tensor
    way: int


class KShotBatch(NamedTuple):
    """Episodes of support and query.

    query_images: (batch, way * query, channel, height, width); query_labels: (batch, way * query), shuffled;
    class_ids: (batch, way), the class behind each label.
    """

    support: Support
    query_images: Tensor
    query_labels: Tensor
    class_ids: Tensor

    @property
    def way(self) -> int:
        return self.support.way


class StreamBatch(NamedTuple):
    """Episodes as sequences: name images[:, t], then be shown labels[:, t].

    images: (batch, length, channel, height, width); labels: (batch, length);
    presentation: (batch, length) int64, 1 where a class is seen for the first time, 2 for the second, ...;
    class_ids: (batch, way), the class behind each label.
    """

    images: Tensor
    labels: Tensor
    presentation: Tensor
    class_ids: Tensor
    way: int


EpisodeBatch = KShotBatch | StreamBatch


def some_episodes(batch: EpisodeBatch, which: slice) -> EpisodeBatch:
    """Those episodes of a batch, as a batch."""
    if isinstance(batch, KShotBatch):
        support = Support(batch.support.images[which], batch.support.labels[which], batch.way)
        return KShotBatch(
            support, batch.query_images[which], batch.query_labels[which], batch.class_ids[which]
        )
    images, labels, presentations, class_ids, way = batch
    return StreamBatch(images[which], labels[which], presentations[which], class_ids[which], way)
