"""Episodes as learners see them, side by side in a batch. The shapes are written here, once.

Images are float32, normalised by the image set's mean and std; labels are int64 in 0..way-1 and mean
something only inside their episode; class ids are positions in the class pool, for the record and never
for a learner.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
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
    class_ids: (batch, way), the class behind each label;
    codes: (batch, way, letter) int64, the string of each label, where labels are strings;
    chain: of how many links an episode consists. Each has its share of the length and classes of its own, so
    that class_ids are (batch, chain * way) and codes likewise, link by link; labels and presentations are
    those within the link.
    """

    images: Tensor
    labels: Tensor
    presentation: Tensor
    class_ids: Tensor
    way: int
    codes: Tensor | None = None
    chain: int = 1

    @property
    def places(self) -> Tensor:
        """(batch, length): where each step's class stands among class_ids and codes: link * way + label."""
        length = self.labels.shape[1]
        link = torch.arange(length, device=self.labels.device) // (length // self.chain)
        return link * self.way + self.labels

    @property
    def strings(self) -> Tensor:
        """(batch, length, letter): the string shown after each image, where labels are strings."""
        assert self.codes is not None
        return self.codes.gather(1, self.places.unsqueeze(-1).expand(-1, -1, self.codes.shape[-1]))

    @property
    def links(self) -> "StreamBatch":
        """The links of all episodes, in their order, each as an episode of its own."""

        def apart(part: Tensor) -> Tensor:
            return part.reshape(len(part) * self.chain, part.shape[1] // self.chain, *part.shape[2:])

        return with_each(self, apart)._replace(chain=1)


EpisodeBatch = KShotBatch | StreamBatch
Batch = TypeVar("Batch", bound=EpisodeBatch)


def with_each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with the same change made to every tensor."""

    def changed(part: Any) -> Any:
        if isinstance(part, Tensor):
            return change(part)
        return type(part)(*map(changed, part)) if isinstance(part, tuple) else part

    result: Batch = changed(batch)
    return result


def some_episodes(batch: Batch, which: slice) -> Batch:
    """Those episodes of a batch, as a batch."""
    return with_each(batch, lambda part: part[which])
