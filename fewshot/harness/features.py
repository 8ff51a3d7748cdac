"""Features in place of images: each image of some episodes is embedded once, however often it is shown."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot.episodes.batch import EpisodeBatch, StreamBatch
from fewshot.episodes.source import EpisodeIndices, EpisodeSource
from fewshot.learners.embedding import EmbeddingLearner, embed_in_parts, images_at_once

FEATURE_BYTES = 2**30
"""More than this is not kept."""


class Features(NamedTuple):
    """values: (drawing, feature), of each drawing (an image, turned or not) that the episodes show;
    place: (quarter turn, image of the set) int64, the drawing's row among them.
    """

    values: Tensor
    place: Tensor


def embed_drawings(
    learner: EmbeddingLearner,
    source: EpisodeSource,
    episodes: Sequence[EpisodeIndices],
    device: torch.device,
) -> Features | None:
    """The features of all that the episodes show, on the learner's device; None where they are too large."""
    shown = torch.zeros(4, len(source.pool.image_set.images), dtype=torch.bool, device=source.device)
    for indices in episodes:
        shown[indices.turns, indices.images] = True
    turns, rows = shown.nonzero(as_tuple=True)
    values = None
    at_once = images_at_once(learner.image_shape)
    for first in range(0, len(rows), at_once):
        part = slice(first, first + at_once)
        features = embed_in_parts(learner, _images(source, rows[part], turns[part]).to(device))
        if values is None:
            if len(rows) * features[0].nbytes > FEATURE_BYTES:
                return None
            values = features.new_empty(len(rows), features.shape[1])
        values[part] = features
    assert values is not None, "an episode shows an image"
    place = shown.flatten().cumsum(0).sub(1).view_as(shown)
    return Features(values, place.to(values.device))


def with_features(indices: EpisodeIndices, features: Features) -> EpisodeBatch:
    """Episodes as `EpisodeSource.render` gives them, with (batch, image, feature) in place of images."""
    indices = indices.each(lambda part: part.to(features.values.device))
    shown = features.values[features.place[indices.turns, indices.images]]
    return indices.batch(shown[:, : indices.support], shown[:, indices.support :])


def _images(source: EpisodeSource, rows: Tensor, turns: Tensor) -> Tensor:
    """(image, channel, height, width): rendered as a stream of one class, whose labels nobody reads."""
    nothing = torch.zeros_like(rows).unsqueeze(0)
    stream = source.render(
        EpisodeIndices(nothing[:, :1], rows.unsqueeze(0), turns.unsqueeze(0), nothing, support=0)
    )
    assert isinstance(stream, StreamBatch)
    return stream.images[0]
