"""Guards on episodes as integers: each planted leak is found, and our sampler's episodes are let be."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import ClassPool
from fewshot.episodes.protocol import KShot, Protocol, Stream
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.episodes.source import EpisodeIndices
from fewshot.harness.audit.episodes import (
    audit_source,
    guessed,
    labels_are_permuted,
    labels_are_those_of_the_images,
    no_image_comes_twice,
)

WAY, EPISODES = 5, 400


@pytest.fixture(scope="module")
def pool(image_folder: Path) -> ClassPool:
    return load_image_folder(image_folder, 12).split("folders").train.with_rotations()


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def drawn(pool: ClassPool, protocol: Protocol) -> tuple[EpisodeSampler, EpisodeIndices]:
    source = EpisodeSampler(pool, protocol, episode_seed=0)
    return source, source.indices(0, 20)


@pytest.mark.parametrize(
    "protocol",
    [
        KShot(5, 1, 3),
        KShot((2, 6), (1, 3), 2),
        Stream(5, 20),
        Stream(5, 20, "random"),
        Stream(3, 9, labels="string", chain=4),
    ],
)
def test_our_sampler_passes(pool: ClassPool, protocol: Protocol) -> None:
    findings = audit_source("x", EpisodeSampler(pool, protocol, episode_seed=0), EPISODES)
    assert [finding.holds for finding in findings] == [True] * 3


def test_a_query_in_the_support_set_is_found(pool: ClassPool) -> None:
    _, indices = drawn(pool, KShot(5, 2, 3))
    images = indices.images.clone()
    images[7, -1] = images[7, 0]
    turns = indices.turns.clone()
    turns[7, -1] = turns[7, 0]
    planted = indices._replace(images=images, turns=turns)
    assert no_image_comes_twice("x", [indices]).holds
    finding = no_image_comes_twice("x", [indices, planted])
    assert not finding.holds
    assert finding.seen == "1 of 40 episodes show one twice"


def test_a_drawing_that_returns_is_found_within_a_link_of_a_chain_only(pool: ClassPool) -> None:
    _, indices = drawn(pool, Stream(3, 6, chain=2))
    for place, holds in ((6, True), (5, False)):
        images, turns = indices.images.clone(), indices.turns.clone()
        images[0, place], turns[0, place] = images[0, 0], turns[0, 0]
        assert no_image_comes_twice("x", [indices._replace(images=images, turns=turns)]).holds == holds


@pytest.mark.parametrize("protocol", [KShot(5, 1, 3), Stream(5, 20), Stream(3, 6, chain=2)])
def test_labels_that_do_not_stand_beside_their_images_are_found(pool: ClassPool, protocol: Protocol) -> None:
    source, indices = drawn(pool, protocol)
    assert labels_are_those_of_the_images("x", source, [indices]).holds
    shifted = indices._replace(labels=indices.labels.roll(1, dims=1))
    assert not labels_are_those_of_the_images("x", source, [shifted]).holds
    turned = indices._replace(turns=(indices.turns + 1) % 4)
    assert not labels_are_those_of_the_images("x", source, [turned]).holds


def chosen(random: np.random.Generator, classes: int = 40) -> np.ndarray:  # type: ignore[type-arg]
    """(EPISODES, WAY) classes in random order: honest labels."""
    return np.array([random.permutation(classes)[:WAY] for _ in range(EPISODES)])


def test_one_label_map_shared_by_all_episodes_is_found(random: np.random.Generator) -> None:
    """A class has its label once and for all; where two of an episode have the same, they take the next."""
    ids = chosen(random)
    wanted = random.integers(WAY, size=40)
    shared = np.array([row[np.argsort(wanted[row], kind="stable")] for row in ids])
    assert not labels_are_permuted("x", [shared]).holds


def test_classes_numbered_in_the_order_of_their_ids_are_found(random: np.random.Generator) -> None:
    finding = labels_are_permuted("x", [np.sort(chosen(random, 4000), axis=1)])
    assert not finding.holds
    assert "label 0 is the lowest class in 100.0 % of 400 episodes" in finding.seen
    assert not labels_are_permuted("x", [-np.sort(chosen(random, 4000), axis=1)]).holds


def test_one_set_of_classes_and_labels_for_a_whole_batch_is_found(random: np.random.Generator) -> None:
    assert not labels_are_permuted("x", [np.repeat(chosen(random)[:50], 16, axis=0)]).holds


def test_half_of_the_episodes_in_order_are_found(random: np.random.Generator) -> None:
    ids = chosen(random)
    ids[::2] = np.sort(ids[::2], axis=1)
    assert not labels_are_permuted("x", [ids]).holds


def test_honest_labels_are_seldom_suspected() -> None:
    """The chance of a finding is no less than how often it comes up."""
    few = [chosen(np.random.default_rng(seed))[:100] for seed in range(60)]
    chances = [labels_are_permuted("x", [ids]).chance or 0.0 for ids in few]
    assert min(chances) > 1e-3
    assert sum(chance < 0.1 for chance in chances) <= 6


def test_the_guesser_is_right_by_chance_on_average_whatever_came_before() -> None:
    orders = list(permutations(range(3)))
    means = [
        guessed(np.array([*before, order])) * 9 for before in ([orders[1], orders[4]],) for order in orders
    ]
    fixed = guessed(np.array([orders[1], orders[4]])) * 6
    assert np.mean([mean - fixed for mean in means]) == pytest.approx(1.0)


def test_the_guesser_counts_as_one_would_by_hand() -> None:
    """Keys not seen yet, and ties, are guessed as label 0."""
    assert guessed(np.array([[5, 7]])) == 1 / 2
    assert guessed(np.array([[5, 7], [5, 7]])) == 3 / 4
    assert guessed(np.array([[5, 7], [7, 5]])) == 1 / 4
    assert guessed(np.array([[5, 7], [7, 5], [7, 5]])) == 2 / 6


def test_turned_twins_in_one_episode_are_two_images(pool: ClassPool) -> None:
    indices = EpisodeIndices(*(torch.tensor([row]) for row in ([0, 8], [0, 0], [0, 1], [0, 1])), support=1)
    assert no_image_comes_twice("x", [indices]).holds
