"""Batches that somebody puts together: what does not fit is refused in one line when it is made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot.episodes.batch import KShotBatch, StreamBatch, Support, some_episodes
from fewshot.errors import EpisodeError

IMAGES, LABELS = torch.zeros(2, 6, 1, 4, 4), torch.tensor([[0, 1, 2, 0, 1, 2]] * 2)
CLASS_IDS = torch.arange(3).expand(2, -1)

Make = Callable[[Any, Any], Any]


def support(images: Any = IMAGES, labels: Any = LABELS, way: Any = 3) -> Support:
    return Support(images, labels, way)


def asked(images: Any, labels: Any) -> KShotBatch:
    return KShotBatch(support(), images, labels, CLASS_IDS)


def stream(images: Any = IMAGES, labels: Any = LABELS, **others: Any) -> StreamBatch:
    rest = {"presentation": (LABELS * 0 + 1), "class_ids": CLASS_IDS, "way": 3} | others
    return StreamBatch(images, labels, **rest)


def refusal(make: Callable[..., Any], *given: Any, **named: Any) -> str:
    with pytest.raises(EpisodeError) as caught:
        make(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("make", [support, asked, stream])
@pytest.mark.parametrize(
    ("images", "labels", "got"),
    [
        (IMAGES[0], LABELS[0], "got float32 (6, 1, 4, 4) and int64 (6,)"),
        (IMAGES.byte(), LABELS, "got uint8 (2, 6, 1, 4, 4) and int64 (2, 6)"),
        (IMAGES, LABELS.float(), "got float32 (2, 6, 1, 4, 4) and float32 (2, 6)"),
        (IMAGES, LABELS.int(), "got float32 (2, 6, 1, 4, 4) and int32 (2, 6)"),
        (IMAGES, LABELS[:, :5], "got float32 (2, 6, 1, 4, 4) and int64 (2, 5)"),
        (IMAGES.numpy(), LABELS, "got a ndarray and int64 (2, 6)"),
        (IMAGES, LABELS.tolist(), "got float32 (2, 6, 1, 4, 4) and a list"),
        (IMAGES, LABELS + 1, "labels lie in 0..way-1; got 1..3 and way 3"),
        (IMAGES, LABELS - 1, "labels lie in 0..way-1; got -1..1 and way 3"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(
    make: Make, images: Any, labels: Any, got: str
) -> None:
    assert got in refusal(make, images, labels)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    assert "way '3'" in refusal(support, way="3")
    assert "support is a fewshot.Support; got a tuple" in refusal(
        KShotBatch, (IMAGES, LABELS, 3), IMAGES, LABELS, CLASS_IDS
    )
    for other in (IMAGES[..., :3], IMAGES[:1]):
        said = refusal(asked, other, LABELS[: len(other)])
        assert said.endswith(f"got float32 (2, 6, 1, 4, 4) and float32 {tuple(other.shape)}")
    assert refusal(stream, presentation=LABELS[:, :5]) == (
        "presentation are (batch, length), here (2, 6); got int64 (2, 5)"
    )
    assert "class_ids are (batch, way), here (2, 3)" in refusal(stream, class_ids=CLASS_IDS[:1])
    assert "class_ids are (batch, way), here (2, 6)" in refusal(stream, chain=2)


def test_what_fits_is_made_of_any_floating_point_type_of_features_and_in_chains() -> None:
    features = torch.zeros(2, 6, 5, dtype=torch.float64)
    assert support(features).images is features
    chain = stream(class_ids=torch.arange(6).expand(2, -1), chain=2)
    assert [part.shape[0] for part in chain.links if isinstance(part, Tensor)] == [4] * 4
    assert len(some_episodes(asked(IMAGES, LABELS), slice(0, 1)).support.images) == 1
    np.testing.assert_equal(chain.places[0].numpy(), [0, 1, 2, 3, 4, 5])
