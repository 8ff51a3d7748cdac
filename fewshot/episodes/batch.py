"""Episodes as learners see them, side by side in a batch. The shapes are written here, once.

Images are float32, normalised by the image set's mean and std; labels are int64 in 0..way-1 and mean
something only inside their episode; class ids are positions in the class pool, for the record and never
for a learner.

What somebody puts together is checked when it is made; what this package draws, or makes of a batch, fits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fewshot.errors import EpisodeError

Made = TypeVar("Made", bound="type[Support] | type[KShotBatch] | type[StreamBatch]")


def _checked(kind: Made) -> Made:
    """The class, which raises EpisodeError where its fields do not fit together; `_make` does not ask."""
    make = kind.__new__

    def made(cls: Any, *given: Any, **named: Any) -> Any:
        batch = make(cls, *given, **named)
        _check(batch)
        return batch

    kind.__new__ = made  # type: ignore[assignment,method-assign]
    return kind


@_checked
class Support(NamedTuple):
    """What a learner may learn from.

    images: (batch, way * shot, channel, height, width); labels: (batch, way * shot), in shuffled order.
    """

    images: Tensor
    labels: Tensor
    way: int


@_checked
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


@_checked
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
        return part._make(map(changed, part)) if isinstance(part, tuple) else part  # type: ignore[attr-defined]

    result: Batch = changed(batch)
    return result


def with_images(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with the same change made to its images alone."""
    if isinstance(batch, KShotBatch):
        support = batch.support._replace(images=change(batch.support.images))
        return batch._replace(support=support, query_images=change(batch.query_images))
    return batch._replace(images=change(batch.images))


def some_episodes(batch: Batch, which: slice) -> Batch:
    """Those episodes of a batch, as a batch."""
    return with_each(batch, lambda part: part[which])


def _check(batch: Support | KShotBatch | StreamBatch) -> None:
    """Raise EpisodeError, in one line, where images, labels and class ids do not fit together."""
    if isinstance(batch, Support):
        _check_labelled("", batch.images, batch.labels, batch.way)
        return
    links = 1
    if isinstance(batch, KShotBatch):
        if not isinstance(batch.support, Support):
            raise EpisodeError(f"support is a fewshot.Support; got {_told(batch.support)}")
        labels, images = batch.query_labels, batch.support.images
        _check_labelled("query_", batch.query_images, labels, batch.way)
        if _each(images) != _each(batch.query_images):
            raise EpisodeError(
                "support and query show images of one shape in as many episodes; got "
                f"{_told(images)} and {_told(batch.query_images)}"
            )
    else:
        labels, links = batch.labels, batch.chain
        _check_labelled("", batch.images, labels, batch.way)
        _check_shape("presentation", batch.presentation, "(batch, length)", labels.shape)
    _check_shape("class_ids", batch.class_ids, "(batch, way)", (len(labels), links * batch.way))


def _check_labelled(which: str, images: object, labels: object, way: object) -> None:
    if not (
        isinstance(images, Tensor)
        and isinstance(labels, Tensor)
        and images.is_floating_point()
        and labels.dtype == torch.int64
        and images.ndim > labels.ndim == 2
        and images.shape[:2] == labels.shape
    ):
        raise EpisodeError(
            f"{which}images are float (batch, image, channel, height, width) and {which}labels int64 (batch, "
            f"image); got {_told(images)} and {_told(labels)}: convert them, and put an axis in front where "
            "there is one episode"
        )
    low, high = (int(end) for end in labels.aminmax()) if labels.numel() else (0, 0)
    if not isinstance(way, int) or not 0 <= low <= high < way:
        raise EpisodeError(f"{which}labels lie in 0..way-1; got {low}..{high} and way {way!r}")


def _check_shape(name: str, given: object, words: str, shape: tuple[int, ...]) -> None:
    if not isinstance(given, Tensor) or given.shape != shape:
        raise EpisodeError(f"{name} are {words}, here {tuple(shape)}; got {_told(given)}")


def _each(images: Tensor) -> tuple[int, ...]:
    """How many episodes, and the shape of each image."""
    return len(images), *images.shape[2:]


def _told(given: object) -> str:
    """What something is, in words: the type of a tensor's numbers and its shape."""
    if isinstance(given, Tensor):
        return f"{str(given.dtype).removeprefix('torch.')} {tuple(given.shape)}"
    return f"a {type(given).__name__}"
