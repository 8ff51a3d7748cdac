"""Somebody else's episodes: what is wrong with them is found, and what does not fit together is refused."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fewshot.data.catalogue import load_dataset
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import EpisodeError, FewshotError
from fewshot.harness.audit.given import GivenEpisode, audit_episodes

WAY = 5


def episodes(
    number: int = 300, classes: int = 64, seed: int = 0, in_order: bool = False
) -> Iterator[GivenEpisode]:
    """5-way 1-shot 2-query episodes as plain arrays."""
    random = np.random.default_rng(seed)
    for _ in range(number):
        ids = random.permutation(classes)[:WAY]
        labels = np.repeat(np.arange(WAY), 2)
        yield (
            random.random((WAY, 1, 4, 4)),
            random.permutation(WAY),
            random.random((2 * WAY, 1, 4, 4)),
            random.permutation(labels),
            np.sort(ids) if in_order else ids,
        )


def failing(given: Iterator[GivenEpisode] | list[GivenEpisode], **options: Any) -> dict[str, str]:
    return {found.guard: found.seen for found in audit_episodes(given, **options) if not found.holds}


def test_honest_episodes_pass() -> None:
    assert failing(episodes(), test_classes=range(64, 100)) == {}


def test_a_query_in_the_support_set_is_found_pixel_by_pixel() -> None:
    given = list(episodes(50))
    given[7][2][3] = given[7][0][1]
    assert failing(given) == {"no image is in both support and query": "1 episodes have one, pixel by pixel"}


def test_labels_in_the_order_of_class_ids_are_found() -> None:
    seen = failing(episodes(in_order=True))["labels are permuted afresh"]
    assert seen.startswith("label 0 is the lowest class in 100.0 % of 300 episodes")


def test_the_order_of_a_set_is_found() -> None:
    """easyfsl's habit: `list(set(ids))` numbers small ids mostly upwards."""
    given = [(*rest, list(set(ids.tolist()))) for *rest, ids in episodes()]
    seen = failing(given)["labels are permuted afresh"]
    assert 45 < float(seen.split(" in ")[1].split(" %")[0]) < 60


def test_classes_of_the_test_are_found_turned_or_not() -> None:
    given = [(*rest, [f"c{n:02}{'@90' * (n % 2)}" for n in ids]) for *rest, ids in episodes()]
    found = failing(given, test_classes={f"c{n:02}" for n in range(16)})
    (seen,) = found.values()
    assert 20 < float(seen.split(" %")[0]) < 30
    assert seen.endswith("of the images are of 16 test classes")
    assert failing(given, test_classes=["c64"]) == {}


def test_batches_and_tensors_are_taken_as_they_come() -> None:
    single = list(episodes(40))
    batches = [
        tuple(torch.tensor(np.stack(part)) for part in zip(*single[i : i + 8], strict=True))
        for i in range(0, 40, 8)
    ]
    assert audit_episodes(batches, test_classes=[3]) == audit_episodes(single, test_classes=[3])


def test_episodes_of_several_ways_go_together() -> None:
    narrow = [
        (a[:3], np.arange(3), b[:3], np.arange(3), ids[:3]) for a, _, b, _, ids in episodes(100, seed=1)
    ]
    assert failing([*episodes(100), *narrow]) == {}


def test_our_own_sampler_passes() -> None:
    pool = load_dataset("glyphs", image_size=28).split("default").train
    assert failing(EpisodeSampler(pool, KShot(5, 1, 2), episode_seed=0).batches(0, 200, 20)) == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda e: e[:4], "item 0 has 4 parts; an episode is (support_images, support_labels,"),
        (
            lambda e: (e[0][:2], *e[1:]),
            "support_images [2, 1, 4, 4] and support_labels [5] do not fit together",
        ),
        (lambda e: (*e[:3], e[3][:, None], e[4]), "query_labels [10, 1] do not fit together"),
        (lambda e: (e[0], e[1].astype(float), *e[2:]), "item 0: support_labels is float64 [5]: give whole"),
        (lambda e: (*e[:4], 3), "item 0: class_ids is int64 []: give one for each"),
        (lambda e: ([[1, 2], [3]], *e[1:]), "item 0: support_images is no array: "),
        (lambda e: (*e[:4], e[4][:3]), "support_labels lie in 0..4, and there are 3 class_ids"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: Any, says: str) -> None:
    with pytest.raises(EpisodeError) as caught:
        audit_episodes([change(next(episodes()))])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (7, "episodes should be of the type Iterable; got a int: give an iterator of episodes"),
        ([7], "item 0 should be of the type tuple or list; got a int: an episode is (support_images, "),
    ],
)
def test_what_is_no_episode_is_refused(given: Any, says: str) -> None:
    with pytest.raises(FewshotError) as caught:
        audit_episodes(given)
    assert str(caught.value).startswith(says)


def test_nothing_is_refused() -> None:
    with pytest.raises(EpisodeError, match="the iterator is empty or used up"):
        audit_episodes(iter(()))
