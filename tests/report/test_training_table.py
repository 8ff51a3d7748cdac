"""What learners were trained on: images of every kind of episode, seeds merged, others' weights left out."""

from typing import Any

import pytest

from fewshot.errors import RecordError
from fewshot.harness.record import Record
from fewshot.report.training_table import render
from tests.report.test_table import kshot


def trained(learner: str, episodes: dict[str, Any], seconds: float = 90.0, **fields: Any) -> Record:
    settings = {"episodes": episodes, "curriculum": fields.pop("curriculum", None)}
    facts = {
        "config": {"options": {}, "train": settings},
        "train_protocol": episodes["protocol"],
        "train_way": episodes["way"],
        "train_shot": episodes.get("shot"),
        "train_steps": 100,
        "train_episodes": 1600,
        "train_seconds": seconds,
    }
    return kshot(learner, 0.9, **(facts | fields))


def rows(records: list[Record]) -> list[list[str]]:
    lines = render(records, "md").splitlines()[4:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_images_are_those_shown() -> None:
    """By hand: 1,600 episodes of 5 (1 + 15); of 50 images; of 10 to 20 ways and 1 to 5 shots; chains of 3."""
    given = [
        ("maml", {"protocol": "kshot", "way": 5, "shot": 1, "query": 15}),
        ("mann", {"protocol": "stream", "way": 5, "length": 50}),
        ("prototypical", {"protocol": "kshot", "way": (10, 20), "shot": (1, 5), "query": 2}),
        ("key_value", {"protocol": "stream", "way": 5, "length": 50, "chain": 3}),
    ]
    images = {row[0]: row[4] for row in rows([trained(*one) for one in given])}
    assert images == {"maml": "130,000", "mann": "80,000", "prototypical": "120,000", "key_value": "240,000"}


def test_a_curriculum_is_counted_as_it_grew() -> None:
    """Ways 5, 6, 7, 8 for 25 updates each, ten images a class, 16 episodes an update: 104,000."""
    episodes = {"protocol": "stream", "way": 8, "length": 80}
    (row,) = rows([trained("mann", episodes, curriculum={"first_way": 5, "every": 25})])
    assert row[4] == "100,000"


def test_seeds_are_one_row_and_their_time_is_a_mean() -> None:
    episodes = {"protocol": "stream", "way": 5, "length": 50}
    same = [trained("mann", episodes, seconds, train_seed=seed) for seed, seconds in enumerate((60.0, 420.0))]
    assert rows(same) == [["mann", "5-way streams", "100", "1,600", "80,000", "4 min", "2"]]


def test_who_answers_with_the_weights_of_another_has_no_row() -> None:
    episodes = {"protocol": "stream", "way": 5, "length": 50}
    own = trained("mann", episodes)
    config = own.config | {"weights": {"sha256": "0"}}
    adopted = own.model_copy(update={"learner": "mann:zero_reads", "config": config})
    assert [row[0] for row in rows([own, adopted])] == ["mann"]
    with pytest.raises(
        RecordError, match=r"^no learner was trained for these results: leave --training out$"
    ):
        render([adopted], "text")


def test_what_a_training_began_with_is_named() -> None:
    episodes = {"protocol": "kshot", "way": 5, "shot": 1, "query": 15}
    start = {"train_start": "../first/checkpoints/simpleshot-0.safetensors", "train_start_sha256": "0"}
    told = render([trained("ridge", episodes, **start), trained("maml", episodes)], "md")
    assert "Begun with the network of another training, that of simpleshot of first: ridge." in told
    own = {"train_start": "checkpoints/simpleshot-0.safetensors", "train_start_sha256": "0"}
    told = render([trained("ridge", episodes, **own)], "md")
    assert "Begun with the network of another training, that of simpleshot of hand_made: ridge." in told
    bare = {"train_start": "../simpleshot-0.safetensors", "train_start_sha256": "0"}
    told = render([trained("ridge", episodes, **bare)], "md")
    assert "Begun with the network of another training, that of simpleshot-0: ridge." in told


def test_a_gpu_is_named() -> None:
    episodes = {"protocol": "stream", "way": 5, "length": 50}
    for device in ("H100", "H100, then cpu"):
        told = render([trained("mann", episodes, train_device=device)], "text")
        assert f"Not on a CPU alone: mann ({device})." in told
    assert "Not on a CPU" not in render([trained("mann", episodes)], "text")
