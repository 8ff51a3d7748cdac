"""Guards on stored learners: each planted leak is found on real episodes, and honest learners pass."""

from pathlib import Path

import pytest
import torch

from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import ClassPool
from fewshot.episodes.protocol import KShot
from fewshot.episodes.sampler import EpisodeSampler
from fewshot.harness.audit.learners import PROMISES, audit_learner, permuted_labels_give_chance
from fewshot.learners.base import Learner
from fewshot.learners.check import PROMISES as ALL_PROMISES
from fewshot.learners.registry import build_learner
from tests.harness.audit import leaky

SHAPE, WAY = (1, 12, 12), 3
CHANCE = "permuted support labels give chance"

LEAKS: dict[type[leaky.ClassMeans], str] = {
    leaky.NormalisesQueriesTogether: "no query tells about another",
    leaky.NormalisesEpisodesTogether: "a batch is its episodes side by side",
    leaky.ReadsQueryLabels: CHANCE,
    leaky.LabelWithItsOwnImage: "labels asked for are not read",
    leaky.LooksOneStepAhead: "labels asked for are not read",
    leaky.RemembersTheLastEpisode: "state is a value that goes in and out",
    leaky.LearnsWhileItIsTested: "evaluation changes no parameter, buffer or mode",
}


@pytest.fixture(scope="module")
def pool(image_folder: Path) -> ClassPool:
    return load_image_folder(image_folder, 12).split("folders").test


def broken(learner: Learner, pool: ClassPool) -> dict[str, str]:
    """What fails, and what was seen."""
    found = audit_learner("x", learner, pool, WAY)
    return {finding.guard: finding.seen for finding in found if not finding.holds}


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: leak.__name__)
def test_each_leak_is_found(leak: type[leaky.ClassMeans], pool: ClassPool) -> None:
    assert LEAKS[leak] in broken(leak(SHAPE, WAY), pool)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("count_guesser", {}),
        ("prototypical", {"widths": (4, 4)}),
        ("lstm", {"widths": (4,), "hidden_size": 8}),
        ("mann", {"widths": (4,), "hidden_size": 8, "num_slots": 8, "labels": "string"}),
    ],
)
def test_honest_learners_pass(name: str, options: dict[str, object], pool: ClassPool) -> None:
    torch.manual_seed(0)
    assert broken(build_learner(name, SHAPE, WAY, options), pool) == {}
    assert broken(leaky.ClassMeans(SHAPE, WAY), pool) == {}


def test_what_is_seen_says_how_far_answers_may_move(pool: ClassPool) -> None:
    honest = {
        found.guard: found.seen for found in audit_learner("x", leaky.ClassMeans(SHAPE, WAY), pool, WAY)
    }
    assert honest["no query tells about another"] == (
        "so in 8 episodes, 95 % of the answers within 0.001 of the largest logit"
    )
    assert honest["evaluation changes no parameter, buffer or mode"] == "so in 8 episodes"
    leaking = broken(leaky.NormalisesQueriesTogether(SHAPE, WAY), pool)["no query tells about another"]
    assert leaking.endswith(" answers, by more than 0.001 of the largest logit")


def test_declared_transduction_is_no_leak(pool: ClassPool) -> None:
    assert broken(leaky.DeclaresItsTransduction(SHAPE, WAY), pool) == {}


def test_who_reads_the_labels_of_the_queries_is_right_whatever_the_support_set_says(pool: ClassPool) -> None:
    source = EpisodeSampler(pool, KShot(WAY, 1, 2), episode_seed=0)
    found = permuted_labels_give_chance("x", leaky.ReadsQueryLabels(SHAPE, WAY), source, 60)
    assert not found.holds
    assert found.seen == "100.0 % right in 60 episodes (chance 33.3 %)"
    assert permuted_labels_give_chance("x", leaky.ClassMeans(SHAPE, WAY), source, 60).holds


def test_the_promises_are_those_of_the_conformance_check() -> None:
    assert set(PROMISES) <= ALL_PROMISES.keys()
