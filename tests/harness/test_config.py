"""Suites: what is read, and that whatever is wrong is said in one line."""

import copy
from pathlib import Path
from typing import Any

import pytest

from fewshot.episodes.protocol import KShot, Stream
from fewshot.errors import RecordError
from fewshot.harness.config import Suite, TrainSettings, parse_suite, read_suite

SUITE: dict[str, Any] = {
    "title": "Two learners",
    "data": {"dataset": "glyphs", "split": "default", "image_size": 28},
    "train": {"steps": 500, "batch": 4, "validate_on": {"protocol": "kshot", "way": 3}},
    "test": [
        {"protocol": "kshot", "way": 5, "rotated": [False, True]},
        {"protocol": "stream", "way": 5, "length": 50, "counts": "random", "episodes": 300},
    ],
    "learner": [
        {
            "id": "prototypical",
            "options": {"widths": [8, 8]},
            "train": {"batch": 2, "episodes": {"protocol": "kshot", "way": [5, 20], "shot": [1, 5]}},
        },
        {"id": "mann", "train_seeds": [0, 1, 2], "train": {"episodes": {"protocol": "stream"}}},
    ],
}


def parse(**changes: Any) -> Suite:
    return parse_suite(copy.deepcopy(SUITE) | changes, "two", "two.toml")


def with_first(section: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The suite's learners or tests, the first of them changed."""
    entries = copy.deepcopy(SUITE[section])
    return {section: [entries[0] | changes, *entries[1:]]}


def problem(**changes: Any) -> str:
    with pytest.raises(RecordError) as caught:
        parse(**changes)
    text = str(caught.value)
    assert text.startswith("two.toml: ")
    assert "\n" not in text
    return text


def test_a_suite_is_what_it_says() -> None:
    suite = parse()
    assert (suite.name, suite.data.image_size, suite.training_data) == ("two", 28, suite.data)
    kshot, stream = suite.test
    assert kshot.build() == KShot(5, 1, 15)
    assert (kshot.rotated, kshot.episodes) == ((False, True), 1000)
    assert stream.build() == Stream(5, 50, "random")
    assert (stream.rotated, stream.episodes) == ((False,), 300)
    assert suite.learner[1].train_seeds == (0, 1, 2)


def test_a_learners_training_overrides_the_shared_one_key_by_key() -> None:
    first, second = (learner.train for learner in parse().learner)
    assert (first.batch, second.batch) == (2, 4)
    assert first.steps == second.steps == 500
    assert first.episodes.build() == KShot((5, 20), (1, 5), 15)
    assert second.episodes.build() == Stream(5, 50)
    assert first.validate_on == second.validate_on is not None


def test_training_may_use_other_data() -> None:
    suite = parse(train_data={"dataset": "omniglot", "split": "vinyals"})
    assert (suite.data.dataset, suite.training_data.dataset) == ("glyphs", "omniglot")


@pytest.mark.parametrize(
    ("changes", "nearest"),
    [
        ({"titel": "x"}, "unknown key 'titel': did you mean 'title'?"),
        (
            {"data": {"dataset": "glyphs", "spilt": "default"}},
            "data: unknown key 'spilt': did you mean 'split'?",
        ),
        ({"train": {"stpes": 3}}, "train: unknown key 'stpes': did you mean 'steps'?"),
        (
            with_first("learner", {"train_seed": [0]}),
            "learner 'prototypical': unknown key 'train_seed': did you mean 'train_seeds'?",
        ),
        (
            with_first("learner", {"train": {"bacth": 3}}),
            "learner 'prototypical': train: unknown key 'bacth': did you mean 'batch'?",
        ),
        (
            with_first("learner", {"train": {"augment": {"angle_degree": 3}}}),
            "learner 'prototypical': train.augment: unknown key 'angle_degree': did you mean 'angle_degr",
        ),
        (
            with_first("learner", {"train": {"episodes": {"protocol": "stream", "lenght": 3}}}),
            "learner 'prototypical': train.episodes: unknown key 'lenght': did you mean 'length'?",
        ),
        (with_first("test", {"shots": 3}), "[[test]] 1: unknown key 'shots': did you mean 'shot'?"),
        (with_first("test", {"counts": "random"}), "[[test]] 1: unknown key 'counts'"),  # of streams
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(changes: dict[str, Any], nearest: str) -> None:
    assert nearest in problem(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"title": 3}, "title: Input should be a valid string (got 3)"),
        ({"data": "glyphs"}, "data: "),
        ({"train": 3}, "train: "),
        ({"train": {"steps": "many"}}, "learner 'prototypical': train.steps: "),
        (
            {"train": {"steps": 0}},
            "learner 'prototypical': train.steps: Input should be greater than 0 (got 0)",
        ),
        ({"train": {"learning_rate": float("inf")}}, "learner 'prototypical': train.learning_rate: "),
        ({"train": {"schedule": "linear"}}, "'constant' or 'cosine' (got 'linear')"),
        ({"train": {"augment": {"scale": 1.0}}}, "learner 'prototypical': train.augment.scale: "),
        ({"test": []}, "test: "),
        ({"learner": []}, "learner: "),
        ({"learner": [3]}, "two.toml: [[learner]] 1: "),
        (with_first("learner", {"train_seeds": []}), "learner 'prototypical': train_seeds: "),
        (
            with_first("learner", {"train_seeds": [-1]}),
            "'prototypical': train_seeds.0: Input should be greater",
        ),
        (
            with_first("learner", {"train_seeds": [2**63]}),
            "'prototypical': train_seeds.0: Input should be less",
        ),
        (with_first("test", {"episode_seed": -1}), "[[test]] 1: episode_seed: "),
        (with_first("learner", {"train_seeds": [1, 1]}), "'prototypical' names a train seed twice"),
        (
            with_first("learner", {"id": "mann"}),
            "learner 'mann' is there twice: tell them apart as in 'mann:b'",
        ),
        (with_first("learner", {"stream_episodes": 0}), "learner 'prototypical': stream_episodes: "),
        (with_first("test", {"protocol": "kshoot"}), "'kshoot'"),
        (with_first("test", {"way": [5, 10]}), "[[test]] 1: way: "),  # a figure has one way
        (with_first("test", {"rotated": []}), "[[test]] 1: rotated: "),
        (with_first("test", {"episodes": 0}), "[[test]] 1: episodes: "),
        ({"test": [{"way": 5}]}, '[[test]] 1: give a table with protocol = "kshot" or "stream"'),
    ],
)
def test_a_wrong_value_is_one_line_with_its_place(changes: dict[str, Any], says: str) -> None:
    assert says in problem(**changes)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 0}, "TrainSettings: steps: Input should be greater than 0 (got 0)"),
        ({"stpes": 3}, "TrainSettings: unknown key 'stpes': did you mean 'steps'? there is augment, batch,"),
        ({"augment": {"shaer": 3}}, "TrainSettings: augment: unknown key 'shaer': did you mean 'shear'?"),
        (
            {"augment": {"scale": 1}},
            "TrainSettings: augment.scale: Input should be less than or equal to 0.9 (got 1)",
        ),
        ({"episodes": KShot()}, 'TrainSettings: episodes: give a table with protocol = "kshot" or "stream"'),
        ({"curriculum": {}}, "TrainSettings: a curriculum leads to streams: give episodes of a length that"),
    ],
)
def test_settings_made_by_hand_are_refused_as_those_of_a_file_are(given: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordError) as caught:
        TrainSettings(**given)
    text = str(caught.value)
    assert text.startswith(says)
    assert "\n" not in text


@pytest.mark.parametrize("missing", ["title", "data", "test", "learner"])
def test_a_missing_section_is_named(missing: str) -> None:
    content = {key: value for key, value in SUITE.items() if key != missing}
    with pytest.raises(RecordError, match=f"two.toml: {missing}: Field required"):
        parse_suite(content, "two", "two.toml")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (with_first("test", {"way": 1}), "two.toml: [[test]] 1: way must be at least 2"),
        (
            {"test": [{"protocol": "stream", "way": 5, "length": 4}]},
            "[[test]] 1: 5 classes need a stream of length >= 5",
        ),
        ({"test": [{"protocol": "stream", "way": 5, "length": 48}]}, "choose length 45"),
        (
            {"train": {"validate_on": {"protocol": "kshot", "way": [9, 5]}}},
            "learner 'prototypical': train.validate_on: way must be",
        ),
        (
            with_first("learner", {"train": {"episodes": {"protocol": "kshot", "shot": 0}}}),
            "learner 'prototypical': train.episodes: shot must be at least 1",
        ),
    ],
)
def test_an_impossible_protocol_is_refused_wherever_it_stands(changes: dict[str, Any], says: str) -> None:
    assert says in problem(**changes)


def test_a_file_is_named_by_its_stem(tmp_path: Path) -> None:
    path = tmp_path / "quick.toml"
    path.write_text(
        'title = "Q"\ndata = { dataset = "glyphs", split = "default" }\n'
        '[[test]]\nprotocol = "kshot"\n[[learner]]\nid = "mann"\n'
    )
    suite = read_suite(path)
    assert (suite.name, suite.title) == ("quick", "Q")
    assert suite.learner[0].train == TrainSettings()


def test_a_missing_file_is_answered_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no suite .*absent.toml; there is: no TOML file there"):
        read_suite(tmp_path / "absent.toml")
    (tmp_path / "present.toml").touch()
    with pytest.raises(RecordError, match=r"there is: .*present.toml"):
        read_suite(tmp_path / "absent.toml")


@pytest.mark.parametrize("content", [b"title = \n", b"\xff\xfe", b"[data\n", b"a = 1\na = 2\n"])
def test_broken_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"^[^\n]*broken.toml is not a readable TOML file: [^\n]+$"):
        read_suite(path)


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is not a readable TOML file"):
        read_suite(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", "10"),
        ("steps", 10.0),
        ("learning_rate", "1e-3"),
        ("float16", "yes"),
        ("rotations", 1),
        ("augment", {"mirror": "on"}),
        ("episodes", {"protocol": "kshot", "way": "5"}),
    ],
)
def test_a_value_of_another_type_is_refused_with_its_place(key: str, value: Any) -> None:
    text = problem(**with_first("learner", {"train": {key: value}}))
    assert f"train.{key}" in text
    assert "should be a valid" in text
