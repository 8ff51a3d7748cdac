import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot.data.image_set import ImageSet
from fewshot.data.split import ClassPool
from fewshot.episodes.batch import KShotBatch, StreamBatch
from fewshot.episodes.image_lists import read_image_lists, write_image_lists
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.errors import EpisodeError


@pytest.fixture
def pool() -> ClassPool:
    """Eight classes of twelve images; the drawers' names are the same in every class."""
    images = (torch.arange(96 * 25) * 7919 % 256).to(torch.uint8).view(96, 1, 5, 5)
    image_set = ImageSet(
        name="synthetic",
        images=images,
        class_names=tuple(f"Gre\u010dko\u2028 {c // 4}/character{c:02d}" for c in range(8)),
        class_start=torch.arange(9) * 12,
        image_names=tuple(f"drawer{row % 12:02d}" for row in range(96)),
        source="a test",
        licence="none",
        mean=(0.1,),
        std=(0.3,),
        digest="synthetic",
    )
    return ClassPool(image_set, "all", "test", torch.arange(2, 8), torch.zeros(6, dtype=torch.int64))


PROTOCOLS = [KShot(4, 2, 3), Stream(3, 12), Stream(3, 14, "random")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rotated", [False, True])
def test_what_is_written_is_read(pool: ClassPool, tmp_path: Path, protocol: Protocol, rotated: bool) -> None:
    pool = pool.with_rotations() if rotated else pool
    sampler = EpisodeSampler(pool, protocol, 3)
    write_image_lists(tmp_path / "lists.jsonl", sampler, 20)
    source = read_image_lists(tmp_path / "lists.jsonl", pool)
    assert len(source) == 20
    assert source.protocol == protocol
    assert source.digest(20) == sampler.digest(20)
    for ours, theirs in zip(source.batches(0, 20, 6), sampler.batches(0, 20, 6), strict=True):
        if isinstance(ours, StreamBatch) and isinstance(theirs, StreamBatch):
            assert torch.equal(ours.images, theirs.images)
            assert torch.equal(ours.presentation, theirs.presentation)
        elif isinstance(ours, KShotBatch) and isinstance(theirs, KShotBatch):
            assert torch.equal(ours.support.images, theirs.support.images)
            assert torch.equal(ours.query_labels, theirs.query_labels)
        assert torch.equal(ours.class_ids, theirs.class_ids)
    assert [path.name for path in tmp_path.iterdir()] == ["lists.jsonl"], "no temporary file stays"


def lines(pool: ClassPool) -> list[dict[str, Any]]:
    """Two right episodes of two classes, one shot and one query, written by hand."""
    a, b = pool.class_name(4), pool.class_name(1)
    return [
        {
            "classes": [a, b],
            "support": [f"{b}/drawer00", f"{a}/drawer01"],
            "query": [f"{a}/drawer02", f"{b}/drawer02"],
        },
        {
            "classes": [b, a],
            "support": [f"{b}/drawer03", f"{a}/drawer04"],
            "query": [f"{a}/drawer05", f"{b}/drawer06"],
        },
    ]


def write(path: Path, episodes: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(episode) for episode in episodes) + "\n", encoding="utf-8")
    return path


def test_labels_follow_the_file(pool: ClassPool, tmp_path: Path) -> None:
    source = read_image_lists(write(tmp_path / "lists.jsonl", lines(pool)), pool)
    indices = source.indices(0, 2)
    assert indices.class_ids.tolist() == [[4, 1], [1, 4]]
    assert indices.labels.tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    # Position 4 of the pool is the image set's class 6, whose images begin at row 72.
    assert indices.images.tolist() == [[36, 73, 74, 38], [39, 76, 77, 42]]
    assert source.protocol == KShot(2, 1, 1)


def broken(pool: ClassPool, **changes: Any) -> list[dict[str, Any]]:
    first, second = lines(pool)
    return [first, {key: value for key, value in (second | changes).items() if value is not None}]


def test_wrong_files_are_one_clear_line(pool: ClassPool, tmp_path: Path) -> None:
    a, b, outside = pool.class_name(4), pool.class_name(1), pool.image_set.class_names[0]
    _, right = lines(pool)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"classes": [a, f"{b}x"]}, f"no class {b}x in synthetic/all/test: did you mean {b}?"),
        ({"classes": [a, outside]}, f"no class {outside} in synthetic/all/test"),
        ({"classes": [a, a]}, "a class is listed twice"),
        (
            {"classes": [a], "support": [f"{a}/drawer01"], "query": [f"{a}/drawer02"]},
            "way must be at least 2",
        ),
        ({"support": [f"{a}/drawer99", f"{b}/drawer00"]}, f"no image {a}/drawer99 in synthetic/all/test"),
        (
            {"support": [f"{pool.class_name(0)}/drawer01", f"{b}/drawer00"]},
            'of a class that "classes" does not list',
        ),
        ({"query": [right["support"][0], f"{a}/drawer07"]}, f"image {right['support'][0]} is listed twice"),
        ({"support": right["support"][:1]}, "support has 0 images of one class and 1 of another"),
        ({"support": [], "query": right["query"]}, "shot must be at least 1"),
        (
            {"query": [*right["query"], f"{a}/drawer09", f"{b}/drawer09"]},
            "this episode is 2-way 1-shot with 2 queries, the first is 2-way 1-shot with 1 queries",
        ),
        ({"support": None, "query": None, "stream": right["query"]}, "this episode is a stream of 2 images"),
        ({"query": None}, 'an episode has "classes", "support" and "query"'),
        ({"qeury": []}, 'an episode has "classes", "support" and "query"'),
        ({"query": "drawer"}, '"query" must be a list of names'),
        ({"query": [3, 4]}, '"query" must be a list of names'),
    ]
    for changes, message in cases:
        path = write(tmp_path / "lists.jsonl", broken(pool, **changes))
        with pytest.raises(EpisodeError) as error:
            read_image_lists(path, pool)
        assert f"{path}, line 2: " in str(error.value)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_files_that_are_no_lists(pool: ClassPool, tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    with pytest.raises(EpisodeError, match="cannot read image lists from"):
        read_image_lists(path, pool)
    path.write_text("\n\n", encoding="utf-8")
    with pytest.raises(EpisodeError, match="lists no episodes"):
        read_image_lists(path, pool)
    path.write_text("<html>", encoding="utf-8")
    with pytest.raises(EpisodeError, match="line 1: not JSON"):
        read_image_lists(path, pool)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EpisodeError, match="cannot read image lists from"):
        read_image_lists(path, pool)


@pytest.mark.parametrize("place", ["nowhere/lists.jsonl", "file/lists.jsonl", "folder", "x" * 300])
def test_a_path_that_cannot_be_written_is_one_clear_line(pool: ClassPool, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    with pytest.raises(EpisodeError, match=r"cannot write image lists to .*folder that exists") as error:
        write_image_lists(tmp_path / place, EpisodeSampler(pool, PROTOCOLS[0], 3), 2)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_episodes_beyond_the_file_and_what_a_file_has_no_place_for(pool: ClassPool, tmp_path: Path) -> None:
    source = read_image_lists(write(tmp_path / "lists.jsonl", lines(pool)), pool)
    with pytest.raises(EpisodeError, match="the file has 2: ask for fewer"):
        source.batch(1, 2)
    varying = EpisodeSampler(pool, KShot((2, 4), 1, 1), 0)
    with pytest.raises(EpisodeError, match="fix way and shot"):
        write_image_lists(tmp_path / "varying.jsonl", varying, 5)
    strings = EpisodeSampler(pool, Stream(3, 6, labels="string"), 0)
    chain = EpisodeSampler(pool, Stream(3, 6, chain=2), 0)
    for source in (strings, chain):
        with pytest.raises(EpisodeError, match="has no strings and no chains"):
            write_image_lists(tmp_path / "more.jsonl", source, 5)
