"""Batches made in the background while the caller works."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from fewshot.data.image_set import ImageSet
from fewshot.data.split import ClassPool
from fewshot.episodes.batch import EpisodeBatch
from fewshot.episodes.protocol import Stream
from fewshot.episodes.sampler import EpisodeSampler

SPANS = [(0, 2), (4, 3), (9, 1), (2, 2)]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


@dataclass
class Watched:
    """A sampler that notes what it made and where, and fails where it is told to."""

    fails_at: int = -1
    made: list[int] = field(default_factory=list)
    places: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        images = torch.arange(40, dtype=torch.uint8).view(40, 1, 1, 1).expand(-1, 1, 3, 3).contiguous()
        classes = torch.arange(5)
        image_set = ImageSet(
            name="numbered",
            images=images,
            class_names=tuple(f"all/{c}" for c in range(5)),
            class_start=torch.arange(6) * 8,
            image_names=tuple(map(str, range(40))),
            source="a test",
            licence="none",
            mean=(0.0,),
            std=(1.0,),
            digest="numbered",
        )
        pool = ClassPool(image_set, "all", "train", classes, torch.zeros_like(classes))
        self.source = EpisodeSampler(pool, Stream(5, 20), 0)
        self.plain_batch = self.source.batch
        self.source.batch = self.batch  # type: ignore[method-assign]

    def batch(self, start: int, count: int) -> EpisodeBatch:
        self.places.add(threading.get_ident())
        if start == self.fails_at:
            raise ValueError("told to")
        self.made.append(start)
        return self.plain_batch(start, count)


def background_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("episodes ahead")]


def test_the_batches_are_the_same_and_in_order(threads: int) -> None:
    watched = Watched()
    for made, span in zip(watched.source.ahead(iter(SPANS)), SPANS, strict=True):
        expected = watched.plain_batch(*span)
        assert all(torch.equal(*pair) for pair in zip(made[:4], expected[:4], strict=True))
    assert (threading.get_ident() in watched.places) == (threads == 1)
    assert not background_threads()


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.usefixtures("threads")
def test_the_next_batch_is_made_before_it_is_asked_for() -> None:
    watched = Watched()
    batches = watched.source.ahead(SPANS)
    next(batches)
    patience = time.monotonic() + 10
    while len(watched.made) < 2 and time.monotonic() < patience:
        time.sleep(0.001)
    assert watched.made == [0, 4], "one ahead, and no more than one"
    batches.close()
    assert not background_threads()
    assert watched.made == [0, 4]


def test_what_goes_wrong_is_raised_where_it_belongs(threads: int) -> None:
    batches = Watched(fails_at=9).source.ahead(SPANS)
    assert [len(next(batches).class_ids), len(next(batches).class_ids)] == [2, 3]
    with pytest.raises(ValueError, match="told to"):
        next(batches)
    assert not background_threads()


@pytest.mark.usefixtures("threads")
def test_a_caller_who_fails_leaves_no_thread() -> None:
    def work() -> None:
        for _ in Watched().source.batches(0, 10, 2):
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        work()
    assert not background_threads()


@pytest.mark.usefixtures("threads")
def test_nothing_to_make() -> None:
    assert list(Watched().source.ahead([])) == []
    assert not background_threads()
