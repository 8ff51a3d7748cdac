"""The microscope: the score against planted readers, and a network that is watched as it answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fewshot.data.catalogue import load_dataset
from fewshot.data.split import ClassPool
from fewshot.episodes.batch import StreamBatch
from fewshot.episodes.protocol import Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.source import presentation
from fewshot.errors import EpisodeError, LearnerError
from fewshot.harness import microscope
from fewshot.harness.checkpoint import save_learner
from fewshot.harness.microscope import (
    find_learner_with_memory,
    item_shares,
    measure_attribution,
    watch_episode,
)
from fewshot.harness.watched import attribution, level, right_share
from fewshot.learners.embedding import EmbeddingLearner
from fewshot.learners.lstm import Lstm
from fewshot.learners.mann import Mann
from fewshot.learners.naming import named_labels
from fewshot.learners.registry import build_learner
from fewshot.memory.attribution import Visit
from fewshot.memory.cell import MemoryCell

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL: dict[str, Any] = {"widths": (4,), "embedding_size": 6, "hidden_size": 10}
ENCODER: dict[str, Any] = {"widths": (4,), "embedding_size": 6}
WITH_MEMORY: dict[str, dict[str, Any]] = {
    "mann": SMALL | {"num_slots": 12, "word_size": 5},
    "mann_sparse": SMALL | {"num_slots": 12, "word_size": 5, "slots_per_head": 2},
    "attention": ENCODER | {"hidden_size": 8, "read_heads": 2},
    "key_value": ENCODER | {"num_slots": 5},
    "nearest_feature": ENCODER,
}
every_memory = pytest.mark.parametrize("name", WITH_MEMORY)
LABELS = torch.tensor([[0, 1, 1, 0, 2, 1], [2, 2, 0, 2, 0, 1]])


@pytest.fixture
def pool(image_folder: Path) -> ClassPool:
    return load_dataset(str(image_folder)).split("folders").test


def mann(pool: ClassPool) -> Mann:
    torch.manual_seed(0)
    return Mann(pool.image_set.image_shape, 3, **SMALL, num_slots=12, word_size=5)


def with_memory(name: str, image_shape: tuple[int, int, int], options: dict[str, Any]) -> EmbeddingLearner:
    torch.manual_seed(0)
    learner = build_learner(name, image_shape, 3, options)
    assert isinstance(learner, EmbeddingLearner)
    return learner.eval()


def shares_of_a_reader(weights: torch.Tensor) -> NDArray[np.float32]:
    """Of a memory of a slot per step, whose head reads the slots with weights (batch, step, slot)."""
    batch, steps, slots = weights.shape
    written = torch.eye(slots).expand(batch, -1, -1)
    kept = torch.ones(batch, slots)
    seen = [Visit(weights[:, step], written[:, step], kept, None) for step in range(steps)]
    shares: NDArray[np.float32] = item_shares(seen).numpy()
    return shares


def score(weights: torch.Tensor, labels: torch.Tensor = LABELS) -> Any:
    seen = presentation(labels, 3).numpy()
    return attribution(shares_of_a_reader(weights), labels.numpy(), seen, labels.numpy())


def test_a_reader_of_the_right_images_alone_scores_one() -> None:
    right = (LABELS.unsqueeze(2) == LABELS.unsqueeze(1)).float()  # image i lies in slot i + 1
    weights = torch.cat([torch.zeros(2, 6, 1), right[..., :-1]], dim=2)
    told = score(weights)
    assert told.share.mean == 1
    assert told.foremost == 1
    assert set(told.by_instance.values()) == {1.0}


def test_a_reader_of_wrong_images_alone_scores_nothing() -> None:
    wrong = (LABELS.unsqueeze(2) != LABELS.unsqueeze(1)).float()
    weights = torch.cat([torch.zeros(2, 6, 1), wrong[..., :-1]], dim=2)
    assert score(weights).share.mean == 0
    assert score(weights).foremost == 0


def test_a_reader_without_preference_scores_the_level() -> None:
    told = score(torch.full((2, 6, 6), 1 / 6))
    assert told.share.mean == pytest.approx(told.level)
    shares = shares_of_a_reader(torch.full((2, 6, 6), 1 / 6))
    seen = presentation(LABELS, 3).numpy()
    np.testing.assert_allclose(right_share(shares, LABELS.numpy())[:, 1:], level(seen)[:, 1:], rtol=1e-6)


def test_the_score_of_two_short_streams_worked_out_by_hand() -> None:
    shares = np.zeros((2, 3, 3))
    shares[0, 1] = [1, 0, 0]  # a new class: does not count
    shares[0, 2] = [0.25, 0.75, 0]
    shares[1, 1] = [1, 0, 0]
    shares[1, 2] = [0.5, 0.5, 0]
    labels = np.array([[0, 1, 0], [1, 1, 1]])
    told = attribution(shares, labels, np.array([[1, 1, 2], [1, 2, 3]]), np.array([[0, 0, 1], [1, 1, 1]]))
    assert told.share.mean == pytest.approx((0.25 + 1 + 1) / 3)
    assert told.level == pytest.approx((1 / 2 + 1 + 1) / 3)
    assert told.by_instance == {2: pytest.approx((0.25 + 1) / 2), 3: 1}
    assert told.foremost == told.accuracy == pytest.approx(2 / 3)
    assert told.episodes == 2
    assert str(told).startswith("attribution: 75.0 ± ")
    assert str(told).endswith("(95 % CI over 2 episodes; without preference 83.3 %; 2nd presentation 62.5 %)")


def test_where_nothing_is_read_nothing_is_right() -> None:
    assert score(torch.zeros(2, 6, 6)).share.mean == 0


def test_reads_that_nobody_received_are_read_from_nowhere(pool: ClassPool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = SMALL | {"num_slots": 12, "word_size": 5, "intervention": "zero_reads"}
    learner = Mann(pool.image_set.image_shape, 3, **options)
    told = measure_attribution(learner, EpisodeSampler(pool, Stream(3, 9), 0), 2)
    assert told.share == (0, 0)
    assert told.foremost == 0
    assert str(told).startswith("attribution: 0.0 ± 0.0 % is read from the right class")


def test_what_was_written_at_the_first_step_belongs_to_no_image() -> None:
    first = torch.zeros(2, 6, 6)
    first[..., 0] = 1
    assert not shares_of_a_reader(first).any()


def test_streams_without_a_second_presentation_are_refused() -> None:
    with pytest.raises(EpisodeError, match="no class comes twice"):
        score(torch.zeros(1, 3, 3), torch.tensor([[2, 0, 1]]))


@every_memory
def test_a_watched_episode_is_the_one_that_is_answered(pool: ClassPool, name: str) -> None:
    learner = with_memory(name, pool.image_set.image_shape, WITH_MEMORY[name])
    source = EpisodeSampler(pool, Stream(3, 12, "random"), 0)
    watched, batch = watch_episode(learner, source, 5), source.batch(5, 1)
    assert isinstance(batch, StreamBatch)
    with torch.no_grad():
        np.testing.assert_array_equal(watched.answers, learner.stream(batch).argmax(-1)[0])
    np.testing.assert_array_equal(watched.labels, batch.labels[0])
    np.testing.assert_array_equal(watched.presentation, batch.presentation[0])
    scale = np.array(pool.image_set.std), np.array(pool.image_set.mean)
    np.testing.assert_allclose((watched.images / 255 - scale[1]) / scale[0], batch.images[0], atol=1e-5)
    assert watched.class_names == tuple(pool.class_name(int(number)) for number in batch.class_ids[0])


@every_memory
def test_whatever_the_memory_what_is_read_was_shown_before(pool: ClassPool, name: str) -> None:
    learner = with_memory(name, pool.image_set.image_shape, WITH_MEMORY[name])
    watched = watch_episode(learner, EpisodeSampler(pool, Stream(3, 12), 0), 0)
    shares = watched.shares
    assert not np.triu(shares).any()
    summed = shares.sum(axis=1)
    np.testing.assert_allclose(summed, summed.round(), atol=1e-5)  # 1, or 0 where nothing is read
    assert summed.max() == pytest.approx(1)
    assert set(watched.slots) <= set(range(watched.num_slots))
    assert watched.read_weights.shape == watched.write_weights.shape == watched.held.shape[:2]
    assert not watched.held[0].any()
    held = watched.held[1, watched.write_weights[1].argmax()]
    assert held.argmax() == watched.labels[0], "what was shown first is stored under its class"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("key_value", {"widths": (4,), "embedding_size": 20, "num_slots": 8}),
        ("nearest_feature", {"widths": (), "sharpness": 40.0}),
    ],
)
def test_of_drawings_that_are_alike_within_a_class_the_right_ones_are_read(
    name: str, options: dict[str, Any]
) -> None:
    """Before any training. Three drawings that have nothing in common, shown again and again."""
    learner, labels = with_memory(name, (1, 8, 8), options), LABELS.repeat(1, 2)
    drawings = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch = StreamBatch(drawings[labels], labels, presentation(labels, 3), labels[:, :3], 3)
    with torch.no_grad():
        _, watch = learner.watch_features(batch._replace(images=learner.embed(batch.images)))
    shares, seen = item_shares(watch.visits).numpy(), batch.presentation.numpy()
    told = attribution(shares, labels.numpy(), seen, labels.numpy())
    assert told.share.mean == pytest.approx(1, abs=1e-4)
    assert told.foremost == 1
    assert told.level < 0.5


def test_a_network_of_strings_is_watched_as_well(pool: ClassPool) -> None:
    torch.manual_seed(0)
    learner = Mann(pool.image_set.image_shape, 3, **SMALL, num_slots=12, word_size=5, labels="string").eval()
    source = EpisodeSampler(pool, Stream(4, 12, labels="string"), 0)
    watched, batch = watch_episode(learner, source, 2), source.batch(2, 1)
    assert isinstance(batch, StreamBatch)
    with torch.no_grad():
        np.testing.assert_array_equal(watched.answers, named_labels(learner, batch, learner.stream(batch))[0])
    assert watched.held.shape == (12, 12, 4)
    np.testing.assert_allclose(watched.shares[1:].sum(axis=1), 1, rtol=1e-5)


def test_a_watched_memory_adds_up(pool: ClassPool) -> None:
    watched = watch_episode(mann(pool), EpisodeSampler(pool, Stream(3, 12), 0), 0)
    assert watched.slots.tolist() == list(range(12))
    assert watched.usage is not None
    for weights in (watched.read_weights, watched.write_weights):
        np.testing.assert_allclose(weights.sum(axis=1), 4, rtol=1e-5)  # four heads
    assert not watched.shares[0].any()
    np.testing.assert_allclose(watched.shares[1:].sum(axis=1), 1, rtol=1e-5)
    assert not np.triu(watched.shares).any(), "what comes later is not read"
    assert not watched.held[0].any()
    stored = np.array([held.sum() for held in watched.held[:3]])
    np.testing.assert_allclose(stored, [0, 4, 8], atol=0.3)  # less what is erased
    assert set(watched.owner[0]) == {-1}
    assert watched.owner[1].max() == watched.labels[0]


def test_the_score_does_not_depend_on_how_many_go_side_by_side(
    pool: ClassPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, source = mann(pool).train(), EpisodeSampler(pool, Stream(3, 9), 0)
    together, done = measure_attribution(learner, source, 7, on_progress=lambda _: None), []
    monkeypatch.setattr(microscope, "EPISODES_AT_ONCE", 3)
    apart = measure_attribution(learner, source, 7, on_progress=done.append)
    assert apart.share == pytest.approx(together.share, abs=1e-6)
    assert (apart.level, apart.accuracy) == (together.level, together.accuracy)
    assert done == [3, 3, 1]
    assert learner.training, "the learner is left as it was"


def test_the_first_learner_with_a_memory_of_a_folder_is_found(
    pool: ClassPool, tiny_results: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    save_learner(mann(pool), path, "mann", SMALL | {"num_slots": 12, "word_size": 5})
    found, learner = find_learner_with_memory(path, "mann", {"num_slots": 20})
    assert found == path
    assert isinstance(learner.cell, MemoryCell)
    assert learner.cell.memory.num_slots == 20
    with pytest.raises(LearnerError, match="holds 'mann', not 'mann_paper'"):
        find_learner_with_memory(path, "mann_paper")
    with pytest.raises(LearnerError, match="only Prototypical, Lstm, Lstm, NearestNeighbour: choose one"):
        find_learner_with_memory(tiny_results)
    with pytest.raises(LearnerError, match=r"unknown learner of .* 'mann': there is lstm, nearest_neighbour"):
        find_learner_with_memory(tiny_results, "mann")


def test_a_learner_without_a_memory_is_not_watched(pool: ClassPool) -> None:
    batch = EpisodeSampler(pool, Stream(3, 9), 0).batch(0, 1)
    assert isinstance(batch, StreamBatch)
    learner = Lstm(pool.image_set.image_shape, 3, **SMALL)
    with pytest.raises(LearnerError, match="Lstm has no memory to look into"):
        learner.watch_features(batch)
