"""Suites on a small image folder: only what is missing is made, and what cannot work is refused first."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fewshot.errors import DataError, EpisodeError, FewshotError, LearnerError, RecordError, SplitError
from fewshot.harness import job as one_job
from fewshot.harness import run as running
from fewshot.harness.checkpoint import file_sha256, load_learner
from fewshot.harness.config import Suite, parse_suite, read_suite
from fewshot.harness.job import Update, run_job
from fewshot.harness.plan import Job, load_split, training_key
from fewshot.harness.record import (
    DRAWS_FILE,
    RECORDS_FILE,
    Record,
    add_draws,
    answers_digest,
    read_answers,
    read_draws,
    read_records,
    remove_draws,
)
from fewshot.harness.run import run_suite, train_learner
from fewshot.harness.train import draws_digest
from fewshot.harness.turns import groups_in_turn
from fewshot.harness.verify import verify_records

pytestmark = pytest.mark.usefixtures("own_cache")

JOBS = ["prototypical", "lstm seed 0", "lstm seed 1", "nearest_neighbour"]

OWN_LEARNER = """
import torch
from fewshot import Learner

class Mean(Learner):
    trainable = False

    def __init__(self, image_shape, way, *, sign: float = 1.0):
        super().__init__(image_shape, way)
        self.sign = sign

    def start(self, batch, way):
        return torch.zeros(batch, way)

    def observe(self, state, image, label):
        brightness = image.flatten(1).mean(1, keepdim=True)
        return state.scatter(1, label.unsqueeze(1), brightness)

    def predict(self, state, images):
        return -self.sign * (images.flatten(2).mean(2, keepdim=True) - state.unsqueeze(1)).abs()
"""
OWN_BACKBONE = """
def flat(image_shape):
    return torch.nn.Flatten()
"""


@pytest.fixture
def suite(tiny_suite: Path) -> Suite:
    return read_suite(tiny_suite)


@pytest.fixture
def results(tiny_results: Path, tmp_path: Path) -> Path:
    """A copy of the results, to change at will."""
    return shutil.copytree(tiny_results, tmp_path / "tiny")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the jobs that make a checkpoint while the test runs."""
    ids: list[str] = []
    make = one_job.make_checkpoint

    def counted(job: Job, *rest: Any) -> None:
        ids.append(job.name)
        make(job, *rest)

    monkeypatch.setattr(one_job, "make_checkpoint", counted)
    return ids


def changed(tiny_suite: Path, **sections: Any) -> Suite:
    content = tomllib.loads(tiny_suite.read_text(encoding="utf-8"))
    return parse_suite(content | sections, "tiny", "tiny.toml")


def figures(records: list[Record]) -> dict[str, dict[str, Any]]:
    """All of the records, by key, but where and when they were made."""
    passing = {"created", "train_seconds", "checkpoint_sha256", "commit", "dirty", "machine"}
    return {record.key: record.model_dump(mode="json", exclude=passing) for record in records}


def logs(folder: Path) -> dict[str, list[tuple[str, str, int]]]:
    """The log of draws of each checkpoint."""
    return {path.name: read_draws(path) for path in (folder / "checkpoints").iterdir()}


def test_a_suite_has_a_record_for_each_learner_seed_and_test(suite: Suite, tiny_results: Path) -> None:
    records = read_records(tiny_results)
    assert len(records) == len(figures(records)) == 4 * 3
    assert {(r.learner, r.train_seed) for r in records} == {
        ("prototypical", 0),
        ("lstm", 0),
        ("lstm", 1),
        ("nearest_neighbour", None),
    }
    tests = {(r.protocol, r.rotated_test_classes, r.shot, r.length, r.counts) for r in records}
    assert tests == {
        ("kshot", False, 1, None, None),
        ("kshot", True, 1, None, None),
        ("stream", False, None, 9, "exact"),
    }
    for record in records:
        assert (record.suite, record.dataset, record.split, record.side) == (
            "tiny",
            "patterns",
            "folders",
            "test",
        )
        assert record.image_size == 12
        assert record.checkpoint is not None
        assert (tiny_results / record.checkpoint).is_file()
        assert read_answers(tiny_results, record).num_rows > 0
        untrained = record.learner == "nearest_neighbour"
        assert (record.train_dataset is None, record.selection is None) == (untrained, untrained)
        if not untrained:
            assert (record.train_steps, record.train_episodes) == (6, 12)
            assert record.selection is not None
            assert re.match(
                r"weights of step [36], the best of every 3 by the accuracy of 10 ", record.selection
            )


def test_curves_and_draws_lie_beside_the_records(tiny_results: Path) -> None:
    stems = {"prototypical-0", "lstm-0", "lstm-1"}
    assert {path.stem for path in (tiny_results / "curves").iterdir()} == stems
    made = {f"{stem}.safetensors" for stem in stems | {"nearest_neighbour-0"}}
    assert set(pq.read_table(tiny_results / DRAWS_FILE)["file"].to_pylist()) == made
    curve = (tiny_results / "curves" / "lstm-1.csv").read_text().splitlines()
    assert curve[0] == "learner,train_seed,step,episodes,seconds,loss,val_accuracy,val_second,train_accuracy"
    assert all(line.endswith(",") for line in curve[1:]), "training classes were not watched"
    assert [line.split(",")[:4] for line in curve[1:]] == [["lstm", "1", "3", "6"], ["lstm", "1", "6", "12"]]
    drawn = read_draws(tiny_results / "checkpoints" / "lstm-0.safetensors")
    assert {side for side, _, _ in drawn} == {"train", "val"}


def test_processes_side_by_side_give_the_same_figures_and_none_costs_another_its_records(
    tiny_suite: Path, tiny_results: Path, tmp_path: Path
) -> None:
    content = tomllib.loads(tiny_suite.read_text(encoding="utf-8"))
    hopeless = {
        "id": "prototypical:hopeless",
        "options": {"widths": [4]},
        "train": {"learning_rate": 1e30, "steps": 50},
    }
    seen: list[Update] = []
    with pytest.raises(LearnerError, match=r"^[^\n]*Prototypical[^\n]*diverged[^\n]*$"):
        run_suite(
            changed(tiny_suite, learner=[hopeless, *content["learner"]]),
            tmp_path / "two",
            jobs=2,
            on_update=seen.append,
        )
    assert figures(read_records(tmp_path / "two")) == figures(read_records(tiny_results))
    assert logs(tmp_path / "two") == logs(tiny_results)
    assert {update.job for update in seen} >= set(JOBS)
    assert sum(update.record is not None for update in seen) == 12


def test_a_job_hands_up_what_it_measured_and_writes_none_of_it(suite: Suite, tmp_path: Path) -> None:
    """Records, answers and logs of several jobs share files: one process writes them, locked or not."""
    settings = next(settings for settings in suite.learner if settings.id == "nearest_neighbour")
    seen: list[Update] = []
    run_job(Job(suite, settings, 0, tmp_path / "results", None, "cpu", 1), seen.append)
    made = [(update.record, update.answers) for update in seen if update.record]
    assert len(made) == 3
    for record, answers in made:
        assert record.answers_sha256 == answers_digest(answers)
    ((checkpoint, draws),) = (update.draws for update in seen if update.draws)
    assert checkpoint == tmp_path / "results" / "checkpoints" / "nearest_neighbour-0.safetensors"
    assert draws_digest(list(draws)) == made[0][0].train_classes_digest
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"checkpoints"}


def test_a_second_run_does_nothing(suite: Suite, results: Path, trained: list[str]) -> None:
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    seen: list[Update] = []
    assert run_suite(suite, results, jobs=1, on_update=seen.append) == []
    assert trained == []
    assert [(update.job, update.stage) for update in seen] == [(name, "recorded") for name in JOBS]
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_only_what_is_missing_is_made_again(suite: Suite, results: Path, trained: list[str]) -> None:
    path = results / RECORDS_FILE
    lines = path.read_text().splitlines(keepends=True)
    before = read_records(results)
    path.write_text("".join(lines[:4] + lines[5:]))
    checkpoints = {file: file.stat().st_mtime_ns for file in (results / "checkpoints").iterdir()}
    made = run_suite(suite, results, jobs=1)
    assert [record.key for record in made] == [before[4].key]
    assert figures(made) == figures([before[4]])
    assert trained == []
    assert {file: file.stat().st_mtime_ns for file in (results / "checkpoints").iterdir()} == checkpoints


def test_a_lost_checkpoint_is_trained_again_when_a_record_needs_it(
    suite: Suite, results: Path, trained: list[str]
) -> None:
    before = figures(read_records(results))
    lines = (results / RECORDS_FILE).read_text().splitlines(keepends=True)
    (results / RECORDS_FILE).write_text("".join(lines[:3]))
    (results / "checkpoints" / "lstm-1.safetensors").unlink()
    run_suite(suite, results, jobs=1)
    assert trained == ["lstm seed 1"]
    assert figures(read_records(results)) == before


@pytest.mark.parametrize("log", ["missing", "of an earlier training"])
def test_weights_are_trained_again_where_the_log_of_their_draws_was_not_written_any_more(
    suite: Suite, results: Path, trained: list[str], image_folder: Path, log: str
) -> None:
    """A run can be stopped after weights are stored, before they are calibrated or their log is written."""
    before = figures(read_records(results))
    checkpoint = results / "checkpoints" / "lstm-1.safetensors"
    lines = (results / RECORDS_FILE).read_text().splitlines(keepends=True)
    (results / RECORDS_FILE).write_text("".join(lines[:3]))
    if log == "missing":
        remove_draws(checkpoint)
    else:
        add_draws(checkpoint, read_draws(results / "checkpoints" / "lstm-0.safetensors")[:-1])
    run_suite(suite, results, jobs=1)
    assert trained == ["lstm seed 1"]
    assert figures(read_records(results)) == before
    assert {verdict.problem for verdict in verify_records(results, root=image_folder.parent, jobs=1)} == {
        None
    }


def test_a_killed_run_goes_on_and_ends_with_the_same_records(
    suite: Suite, tiny_results: Path, tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "killed"

    def kill(update: Update) -> None:
        if update.job == "lstm seed 0" and update.stage == "testing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, folder, jobs=1, on_update=kill)
    assert {record.learner for record in read_records(folder)} == {"prototypical"}
    run_suite(suite, folder, jobs=1)
    assert figures(read_records(folder)) == figures(read_records(tiny_results))
    assert list((own_cache / "runs").iterdir()) == []  # states of finished runs are deleted


def test_records_of_changed_training_take_the_place_of_the_old(
    tiny_suite: Path, results: Path, trained: list[str]
) -> None:
    content = tomllib.loads(tiny_suite.read_text(encoding="utf-8"))
    suite = changed(tiny_suite, train=content["train"] | {"learning_rate": 2e-3})
    made = run_suite(suite, results, jobs=1, only=("prototypical",))
    assert trained == ["prototypical"]
    assert len(made) == 3
    records = read_records(results)
    assert len(records) == 12
    assert {r.key for r in records if r.learner == "prototypical"} == {r.key for r in made}


def test_fresh_forgets_records_and_weights(suite: Suite, results: Path, trained: list[str]) -> None:
    (results / "notes.txt").write_text("mine")
    before = figures(read_records(results))
    made = run_suite(suite, results, jobs=1, fresh=True)
    assert trained == JOBS
    assert figures(made) == before
    assert (results / "notes.txt").read_text() == "mine"


def test_fresh_forgets_only_the_learners_to_run(suite: Suite, results: Path, trained: list[str]) -> None:
    before = read_records(results)
    draws = logs(results)
    made = run_suite(suite, results, jobs=1, fresh=True, only=("lstm",))
    assert trained == ["lstm seed 0", "lstm seed 1"]
    assert logs(results) == draws
    assert {record.learner for record in made} == {"lstm"}
    assert figures(read_records(results)) == figures(before)
    kept = [record for record in read_records(results) if record.learner != "lstm"]
    assert kept == [record for record in before if record.learner != "lstm"]


def test_only_runs_the_learners_named(suite: Suite, tmp_path: Path) -> None:
    made = run_suite(suite, tmp_path / "some", jobs=1, only=("nearest_neighbour",))
    assert {record.learner for record in made} == {"nearest_neighbour"}
    with pytest.raises(
        LearnerError, match=r"suite tiny has no learner 'maml'; it has prototypical, lstm, nearest"
    ):
        run_suite(suite, tmp_path / "some", jobs=1, only=("maml",))


def test_where_answering_is_expensive_fewer_streams_are_asked(tiny_suite: Path, tmp_path: Path) -> None:
    suite = changed(tiny_suite, learner=[{"id": "nearest_neighbour", "stream_episodes": 12}])
    made = run_suite(suite, tmp_path / "few", jobs=1)
    assert {(record.protocol, record.episodes) for record in made} == {("kshot", 30), ("stream", 12)}


def test_a_learner_of_a_fixed_way_skips_tests_of_another(tiny_suite: Path, tmp_path: Path) -> None:
    content = tomllib.loads(tiny_suite.read_text(encoding="utf-8"))
    suite = changed(
        tiny_suite, test=[*content["test"], {"protocol": "kshot", "way": 4, "query": 2, "episodes": 5}]
    )
    made = run_suite(suite, tmp_path / "ways", jobs=1, only=("lstm", "nearest_neighbour"))
    ways = {name: {r.way for r in made if r.learner == name} for name in ("lstm", "nearest_neighbour")}
    assert ways == {"lstm": {3}, "nearest_neighbour": {3, 4}}


def test_a_learner_of_ones_own_runs_from_its_module(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "own.py").write_text(OWN_LEARNER)
    monkeypatch.syspath_prepend(tmp_path)
    learners = [
        {"id": "my_package.own:Mean"},
        {"id": "my_package.own:Mean:worst", "options": {"sign": -1.0}},
    ]
    made = run_suite(changed(tiny_suite, learner=learners), tmp_path / "own", jobs=1)
    best, worst = (
        {r.accuracy for r in made if r.learner == each["id"] and r.protocol == "kshot"} for each in learners
    )
    assert min(best) > 1 / 3 > max(worst)
    assert (tmp_path / "own" / "checkpoints" / "my_package.own.Mean-0.safetensors").is_file()


def test_what_is_recorded_of_code_of_ones_own_says_how_to_measure_it_again(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(OWN_LEARNER + OWN_BACKBONE)
    monkeypatch.syspath_prepend(tmp_path)
    own_network = {"backbone": {"name": "own_parts:flat"}}
    learners = [
        {"id": "own_parts:Mean"},
        {"id": "nearest_feature", "options": own_network},
        {"id": "nearest_feature:ours", "options": {"widths": [4]}},
    ]
    suite, folder = changed(tiny_suite, learner=learners), tmp_path / "own"
    run_suite(suite, folder, jobs=1)

    def told() -> dict[tuple[str, str], str]:
        seen: list[Update] = []
        run_suite(suite, folder, jobs=1, on_update=seen.append)
        return {(update.job, update.stage): update.note for update in seen}

    assert told() == {
        ("own_parts:Mean", "recorded"): one_job.OWN_CODE_NOTE,
        ("nearest_feature", "recorded"): one_job.OWN_CODE_NOTE,
        ("nearest_feature:ours", "recorded"): "",
    }
    lines = (folder / RECORDS_FILE).read_text().splitlines(keepends=True)
    (folder / RECORDS_FILE).write_text("".join(lines[1:]))  # its weights are taken as they are
    assert told()["own_parts:Mean", "trained"] == one_job.OWN_CODE_NOTE


def test_training_on_other_data_is_recorded(tiny_suite: Path, image_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(image_folder, tmp_path / "other")
    suite = changed(tiny_suite, train_data={"dataset": str(other), "split": "folders"})
    made = run_suite(suite, tmp_path / "transfer", jobs=1, only=("prototypical",))
    assert {(r.dataset, r.train_dataset) for r in made} == {("patterns", "other")}


def test_photographs_and_grey_images_train_and_test_one_another(
    tiny_suite: Path, image_folder: Path, tmp_path: Path
) -> None:
    photographs = shutil.copytree(image_folder, tmp_path / "photographs")
    for path in photographs.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    grey = {"dataset": f"{image_folder}:rgb", "split": "folders"}
    suite = changed(tiny_suite, data=grey, train_data={"dataset": str(photographs), "split": "folders"})
    made = run_suite(suite, tmp_path / "results", jobs=1, only=("prototypical",))
    assert {(r.dataset, r.train_dataset) for r in made} == {("patterns:rgb", "photographs")}


# --- What cannot work is refused before anything long -------------------------------------------------------


@pytest.fixture
def nothing_long(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("something long was started")

    monkeypatch.setattr(running, "run_job", never)
    monkeypatch.setattr(running, "run_side_by_side", never)


def refusal(suite: Suite, folder: Path, kind: type[FewshotError]) -> str:
    with pytest.raises(kind) as caught:
        run_suite(suite, folder, jobs=1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("nothing_long")
def test_a_file_in_place_of_the_results_folder_is_refused(suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    text = refusal(suite, tmp_path / "taken", RecordError)
    assert text.startswith(f"cannot write {tmp_path / 'taken'}: ")
    with pytest.raises(RecordError, match="cannot write"):
        train_learner(suite, tmp_path / "taken")


@pytest.mark.usefixtures("nothing_long")
def test_a_results_folder_that_is_read_only_is_refused(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fewshot.harness.record.tempfile.TemporaryFile", denied)
    text = refusal(suite, tmp_path / "locked", RecordError)
    assert text.startswith(f"cannot write {tmp_path / 'locked'}: Permission denied; make it writable or ")


LEARNERS: list[tuple[dict[str, Any], type[FewshotError], str]] = [
    ({"id": "prototypcal"}, LearnerError, "unknown learner 'prototypcal': did you mean 'prototypical'?"),
    ({"id": "no.such.module:Learner"}, LearnerError, "No module named 'no'"),
    (
        {"id": "mann", "options": {"wrod_size": 3}},
        LearnerError,
        "unknown option of Mann 'wrod_size': did you mean 'word_size'?",
    ),
    ({"id": "mann", "options": {"word_size": "large"}}, LearnerError, "option word_size of Mann: "),
    ({"id": "mann", "options": {"usage_decay": float("inf")}}, LearnerError, "option usage_decay of Mann: "),
    (
        {"id": "prototypical", "options": {"widths": [4] * 6}},
        LearnerError,
        "give fewer widths",
    ),
    (
        {"id": "mann", "train": {"episodes": {"protocol": "kshot", "way": 40}}},
        EpisodeError,
        "40-way needs 40 classes; patterns/folders/train has 32",
    ),
    (
        {"id": "mann", "train": {"validate_on": {"protocol": "kshot", "way": 3, "shot": 5, "query": 5}}},
        EpisodeError,
        "5-shot with 5 queries needs 10: lower shot or query",
    ),
]


@pytest.mark.usefixtures("nothing_long")
@pytest.mark.parametrize(("learner", "kind", "says"), LEARNERS)
def test_a_learner_that_cannot_work_is_refused(
    tiny_suite: Path, tmp_path: Path, learner: dict[str, Any], kind: type[FewshotError], says: str
) -> None:
    suite = changed(tiny_suite, learner=[{"id": "nearest_neighbour"}, learner])
    assert says in refusal(suite, tmp_path / "results", kind)


@pytest.mark.usefixtures("nothing_long")
@pytest.mark.parametrize(
    ("test", "says"),
    [
        ({"protocol": "kshot", "way": 20}, "20-way needs 20 classes; patterns/folders/test has 5"),
        ({"protocol": "kshot", "way": 3, "query": 15}, "has 8 images; 1-shot with 15 queries needs 16"),
        ({"protocol": "stream", "way": 5, "length": 50}, "has 8 images; a stream of length 50"),
        ({"protocol": "kshot", "way": 6, "query": 2, "rotated": [True, False]}, "6-way needs 6 classes"),
    ],
)
def test_a_test_that_cannot_be_drawn_is_refused(
    tiny_suite: Path, tmp_path: Path, test: dict[str, Any], says: str
) -> None:
    suite = changed(tiny_suite, test=[test], learner=[{"id": "nearest_neighbour"}])
    assert says in refusal(suite, tmp_path / "results", EpisodeError)


STRINGS = {"protocol": "stream", "way": 3, "length": 9, "labels": "string"}


def test_tests_with_strings_are_answered_by_who_can_name_them(
    tiny_suite: Path, image_folder: Path, tmp_path: Path
) -> None:
    kinds = ({}, {"way": 5, "length": 10}, {"labels": "one_hot"})
    tests = [STRINGS | {"episodes": 10} | kind for kind in kinds]
    small = {"widths": [4], "embedding_size": 8, "hidden_size": 8}
    training = {"batch": 2, "steps": 2, "validate_every": 2, "validate_episodes": 5}
    learners = [
        {
            "id": "lstm:string",
            "options": small | {"labels": "string"},
            "train": training | {"episodes": STRINGS, "curriculum": {"first_way": 2, "every": 1}},
        },
        {"id": "lstm", "options": small, "train": {"episodes": STRINGS | {"labels": "one_hot"}} | training},
        {"id": "nearest_neighbour"},
    ]
    records = run_suite(changed(tiny_suite, test=tests, learner=learners), tmp_path / "tiny", jobs=1)
    assert sorted((r.learner, r.way, r.labels) for r in records) == [
        ("lstm", 3, "one_hot"),
        ("lstm:string", 3, "string"),
        ("lstm:string", 5, "string"),
        ("nearest_neighbour", 3, "one_hot"),
        ("nearest_neighbour", 3, "string"),
        ("nearest_neighbour", 5, "string"),
    ]
    assert {r.train_way for r in records if r.learner == "lstm:string"} == {(2, 3)}
    digests = {r.episodes_digest for r in records if r.way == 3}
    assert len(digests) == 2, "one for strings, one for units, whoever is asked"
    assert all(r.accuracy_by_instance[1] <= 0.1 for r in records if r.labels == "string")
    verdicts = list(verify_records(tmp_path / "tiny", root=image_folder.parent, jobs=1))
    assert [verdict.problem for verdict in verdicts] == [None] * 6
    assert "3-way stream, exact counts, string labels: 100.00 %" in str(verdicts[0])


def test_chains_are_recorded_verified_and_described(
    tiny_suite: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    tests = [
        {"protocol": "stream", "way": 3, "length": 6, "episodes": 10} | kind for kind in ({}, {"chain": 4})
    ]
    learners = [{"id": "nearest_neighbour"}, {"id": "count_guesser"}]
    records = run_suite(changed(tiny_suite, test=tests, learner=learners), folder, jobs=1)
    assert [r.chain for r in records] == [1, 4, 1, 4]
    for record in records:
        assert list(record.accuracy_by_link) == ([1, 2, 3, 4] if record.chain == 4 else [])
        assert list(record.accuracy_by_instance) == [1, 2]
    verdicts = list(verify_records(folder, root=image_folder.parent, jobs=1))
    assert [verdict.problem for verdict in verdicts] == [None] * 4
    assert "3-way stream, exact counts, chain of 4 episodes: 100.00 %" in str(verdicts[1])
    lines = (folder / RECORDS_FILE).read_text().splitlines()
    changed_line = json.loads(lines[1])
    changed_line["accuracy_by_link"]["2"] /= 2
    (folder / RECORDS_FILE).write_text("\n".join([lines[0], json.dumps(changed_line), *lines[2:]]) + "\n")
    problems = [verdict.problem for verdict in verify_records(folder, root=image_folder.parent, jobs=1)]
    assert problems == [None, "the recorded accuracy_by_link is not that of the recorded answers", None, None]


@pytest.mark.usefixtures("nothing_long")
def test_labels_of_training_that_do_not_fit_are_refused(tiny_suite: Path, tmp_path: Path) -> None:
    for labels, says in (
        ("string", "answers with strings"),
        ("one_hot", "answers with a unit for each label"),
    ):
        episodes = STRINGS | {"labels": "one_hot" if labels == "string" else "string"}
        learner = {"id": "lstm", "options": {"labels": labels}, "train": {"episodes": episodes}}
        assert says in refusal(changed(tiny_suite, learner=[learner]), tmp_path / "results", LearnerError)


@pytest.mark.usefixtures("nothing_long")
def test_a_learner_without_a_test_of_its_way_is_refused(tiny_suite: Path, tmp_path: Path) -> None:
    suite = changed(tiny_suite, test=[{"protocol": "kshot", "way": 4, "query": 2}])
    text = refusal(suite, tmp_path / "results", RecordError)
    assert text.startswith(
        "suite tiny has no test for 'lstm': Lstm was built for 3-way episodes and cannot answer 4-way ones"
    )


@pytest.mark.usefixtures("nothing_long")
def test_data_that_is_not_there_is_refused(tiny_suite: Path, image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    unknown = changed(tiny_suite, data={"dataset": "omniglott", "split": "lake"})
    assert "unknown dataset 'omniglott': did you mean 'omniglot'?" in refusal(unknown, folder, DataError)
    no_split = changed(tiny_suite, data={"dataset": str(image_folder), "split": "folder"})
    assert "unknown split of patterns 'folder': did you mean 'folders'?" in refusal(
        no_split, folder, SplitError
    )


@pytest.mark.usefixtures("nothing_long")
def test_training_images_of_another_shape_are_refused(
    tiny_suite: Path, image_folder: Path, tmp_path: Path
) -> None:
    other = {"dataset": str(image_folder), "split": "folders", "image_size": 10}
    text = refusal(changed(tiny_suite, train_data=other), tmp_path / "results", RecordError)
    assert (
        "suite tiny trains on images of (channel, height, width) (1, 10, 10) and tests on (1, 12, 12)" in text
    )


def test_a_key_is_a_key_of_what_has_a_meaning(suite: Suite, tiny_suite: Path, tmp_path: Path) -> None:
    """The same meaning has the same key wherever and on however many threads it is made."""
    split = load_split(suite.data, None)

    def key(of: Suite, learner: int = 0, seed: int = 0, **where: Any) -> str:
        place = {"folder": tmp_path, "root": None, "device": "cpu", "threads": 1, "known": frozenset()}
        return training_key(Job(of, of.learner[learner], seed, **(place | where)), split)

    assert key(suite) == key(suite, threads=2, folder=tmp_path / "other")
    content = json.loads(json.dumps(tomllib.loads(tiny_suite.read_text(encoding="utf-8"))))
    content["learner"][0]["id"] = "prototypical:renamed"
    assert key(parse_suite(content, "other name", "")) == key(suite)
    content["learner"][0]["options"]["widths"] = [4, 5]
    keys = {key(suite), key(suite, seed=1), key(suite, learner=1), key(parse_suite(content, "tiny", ""))}
    assert len(keys) == 4


def test_weights_of_another_checkpoint_answer_under_their_own_name(
    tiny_suite: Path, tiny_results: Path, image_folder: Path, tmp_path: Path, trained: list[str]
) -> None:
    recorded = shutil.copytree(tiny_results, tmp_path / "recorded")
    weights = recorded / "checkpoints" / "prototypical-0.safetensors"
    adopting = changed(tiny_suite, learner=[{"id": "prototypical:adopted", "weights": str(weights)}])
    made = {record.key: record for record in run_suite(adopting, tmp_path / "adopted", jobs=1)}
    assert trained == []
    original = [record for record in read_records(tiny_results) if record.learner == "prototypical"]
    facts = ("accuracy", "ci95", "episodes_digest", "train_steps", "train_classes_digest", "selection")
    assert [[getattr(record, fact) for fact in facts] for record in made.values()] == [
        [getattr(record, fact) for fact in facts] for record in original
    ]
    assert not made.keys() & {record.key for record in original}
    assert all(record.config["weights"] == str(weights) for record in made.values())
    # The file itself is named, not a copy of it, and to start over leaves it where it is.
    assert {(tmp_path / "adopted" / str(record.checkpoint)).resolve() for record in made.values()} == {
        weights
    }
    assert not (tmp_path / "adopted" / "checkpoints").exists()
    run_suite(adopting, tmp_path / "adopted", jobs=1, fresh=True)
    assert weights.is_file()
    # How it would have been trained is no part of what it means.
    row = {"id": "prototypical:adopted", "weights": str(weights), "train": {"steps": 77}}
    assert run_suite(changed(tiny_suite, learner=[row]), tmp_path / "adopted", jobs=1) == []
    verdicts = verify_records(tmp_path / "adopted", root=image_folder.parent, jobs=1)
    assert [verdict.problem for verdict in verdicts] == [None] * len(made)
    wrong = changed(tiny_suite, learner=[{"id": "lstm", "weights": str(weights)}])
    with pytest.raises(LearnerError, match="holds no 'lstm' but a Prototypical"):
        run_suite(wrong, tmp_path / "wrong", jobs=1)
    seeds = {
        "id": "lstm",
        "weights": str(weights.with_name("lstm-{seed}.safetensors")),
        "train_seeds": [0, 1],
    }
    both = run_suite(changed(tiny_suite, learner=[seeds]), tmp_path / "seeds", jobs=1)
    assert [(r.train_seed, Path(str(r.checkpoint)).name) for r in both] == [
        (seed, f"lstm-{seed}.safetensors") for seed in (0, 1) for _ in range(len(both) // 2)
    ]
    remove_draws(recorded / "checkpoints" / "lstm-1.safetensors")
    with pytest.raises(RecordError, match=r"the log of lstm-1\.safetensors in .* is missing: it says which"):
        run_suite(changed(tiny_suite, learner=[seeds]), tmp_path / "missing", jobs=1)


def chain(tiny_suite: Path, folder: Path, **changes: dict[str, Any]) -> Suite:
    """A row that answers with another's weights, which begins with the network of a third; the last first."""
    files = folder / "checkpoints"
    options = {"widths": read_suite(tiny_suite).learner[0].options["widths"]}
    few = {"learning_rate": 1e-3, "steps": 3}
    rows: list[dict[str, Any]] = [
        {"id": "ridge:adopted", "weights": str(files / "ridge-0.safetensors")},
        {
            "id": "ridge",
            "options": options,
            "train": few,
            "start_from": str(files / "prototypical-0.safetensors"),
        },
        {"id": "prototypical", "options": options, "train": few},
    ]
    return changed(tiny_suite, learner=[row | changes.get(row["id"].replace(":", "_"), {}) for row in rows])


@pytest.mark.parametrize("jobs", [1, 2])
def test_rows_that_take_the_weights_of_others_wait_for_them(
    tiny_suite: Path, image_folder: Path, tmp_path: Path, jobs: int
) -> None:
    folder = tmp_path / "chained"

    def problems() -> set[str | None]:
        return {v.problem for v in verify_records(folder, root=image_folder.parent, jobs=1)}

    suite = chain(tiny_suite, folder)
    made = run_suite(suite, folder, jobs=jobs)
    assert list(dict.fromkeys(record.learner for record in made)) == [
        "prototypical",
        "ridge",
        "ridge:adopted",
    ]
    assert problems() == {None}
    assert run_suite(suite, folder, jobs=jobs) == []
    # To start over makes all of them again, in turn: what is told of each is the new file's.
    again = run_suite(suite, folder, jobs=jobs, fresh=True)
    assert [(r.learner, r.accuracy) for r in again] == [(r.learner, r.accuracy) for r in made]
    assert {r.key for r in read_records(folder)} == {r.key for r in again}
    assert problems() == {None}
    # Files that are about to be replaced by those of another network stand in nobody's way.
    wider: dict[str, Any] = {"options": {"widths": [5]}}
    other = chain(tiny_suite, folder, prototypical=wider, ridge=wider)
    renewed = run_suite(other, folder, jobs=jobs)
    assert {r.key for r in read_records(folder)} == {r.key for r in renewed}
    assert problems() == {None}
    # What is lost is made again for who takes it, if it is among what is to run.
    (folder / "checkpoints" / "prototypical-0.safetensors").unlink()
    with pytest.raises(LearnerError, match=r"no checkpoint .*prototypical-0\.safetensors"):
        run_suite(other, folder, jobs=jobs, only=("ridge",))
    restored = run_suite(other, folder, jobs=jobs)
    assert {r.key for r in read_records(folder)} == {r.key for r in restored}
    assert [(r.learner, r.accuracy) for r in restored] == [(r.learner, r.accuracy) for r in renewed]
    assert problems() == {None}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ridge": {"options": {"width": [4]}}}, "learner 'ridge': unknown option of Ridge 'width'"),
        ({"ridge_adopted": {"options": {"width": [4]}}}, "'ridge:adopted': unknown option of Ridge 'width'"),
        ({"ridge_adopted": {"id": "lstm:adopted"}}, "'ridge' will make weights of Ridge, not of Lstm"),
        (
            {"ridge_adopted": {"train_seeds": [1]}},
            r"weights of 'ridge' have train seeds \(0,\), the row says \(1,\)",
        ),
        ({"prototypical": {"id": "nearest_neighbour", "options": {}}}, "no checkpoint .*prototypical-0"),
        ({"ridge": {"train": {"episodes": {"protocol": "kshot", "way": 99}}}}, "99-way needs 99 classes"),
    ],
)
def test_what_is_wrong_with_a_row_that_waits_is_said_before_anything_is_trained(
    changes: dict[str, dict[str, Any]], problem: str, tiny_suite: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "wrong"
    with pytest.raises(FewshotError, match=problem):
        run_suite(chain(tiny_suite, folder, **changes), folder, jobs=1)
    assert trained == []
    assert not folder.exists()


def test_a_row_that_waits_is_checked_against_the_file_once_it_is_there(
    tiny_suite: Path, tmp_path: Path, trained: list[str]
) -> None:
    """Whether a network fits is told by the file."""
    folder = tmp_path / "misfit"
    suite = chain(tiny_suite, folder, ridge={"options": {"widths": [3]}})
    with pytest.raises(LearnerError, match=r"learner 'ridge': the network of .* is not that of Ridge"):
        run_suite(suite, folder, jobs=1)
    assert trained == ["prototypical"]
    assert {record.learner for record in read_records(folder)} == {"prototypical"}


def test_options_to_answer_with_are_not_held_against_the_training_of_the_weights(
    tiny_suite: Path, tmp_path: Path, trained: list[str]
) -> None:
    """A network of averaged features is trained on windows, on which maps laid flat could not be."""
    folder = tmp_path / "windows"
    conv: dict[str, Any] = {"name": "conv", "averaged": True}
    augment = {"angle_degrees": 0.0, "shift": 0.1, "crop": 8}
    rows = [
        {
            "id": "prototypical:flat",
            "weights": str(folder / "checkpoints" / "prototypical-0.safetensors"),
            "options": {"backbone": conv | {"averaged": False}},
        },
        {
            "id": "prototypical",
            "options": {"widths": [4, 4], "backbone": conv},
            "train": {"steps": 3, "rotations": False, "augment": augment},
        },
    ]
    made = run_suite(changed(tiny_suite, learner=rows), folder, jobs=1)
    assert list(dict.fromkeys(record.learner for record in made)) == ["prototypical", "prototypical:flat"]


def test_rows_with_nothing_to_train_have_one_file(tiny_suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    weights = str(folder / "checkpoints" / "nearest_neighbour-{seed}.safetensors")
    rows = [
        {"id": "nearest_neighbour:b", "weights": weights, "train_seeds": [0, 1]},
        {"id": "nearest_neighbour"},
    ]
    made = run_suite(changed(tiny_suite, learner=rows), folder, jobs=1)
    assert {record.learner for record in made} == {"nearest_neighbour", "nearest_neighbour:b"}


def test_a_file_that_no_row_makes_is_missed_before_anything_is_trained(
    tiny_suite: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "seeds"
    several = {"weights": str(folder / "checkpoints" / "ridge-{seed}.safetensors"), "train_seeds": [0, 1]}
    with pytest.raises(LearnerError, match=r"no checkpoint .*ridge-1\.safetensors"):
        run_suite(chain(tiny_suite, folder, ridge_adopted=several), folder, jobs=1)
    assert trained == []


def test_rows_are_grouped_by_the_files_they_take(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups(rows: list[dict[str, Any]], folder: Path) -> list[list[str]]:
        found = groups_in_turn(list(changed(tiny_suite, learner=rows).learner), folder)
        return [[row.id for row in group] for group in found]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    taken = str(tmp_path / "here" / "checkpoints" / "lstm-{seed}.safetensors")
    rows = [
        {"id": "lstm:again", "weights": taken, "train_seeds": [0, 1]},
        {"id": "lstm", "train_seeds": [0, 1]},
    ]
    for folder in ("here", "link", tmp_path / "here"):
        assert groups(rows, Path(folder)) == [["lstm"], ["lstm:again"]]
    assert groups(rows, Path("elsewhere")) == [["lstm:again", "lstm"]]
    assert groups([{"id": "lstm"}, {"id": "ridge"}], Path("here")) == [["lstm", "ridge"]]


def test_rows_that_wait_for_each_other_are_refused(tiny_suite: Path, tmp_path: Path) -> None:
    files = tmp_path / "circle" / "checkpoints"
    rows = [
        {"id": "prototypical", "start_from": str(files / "ridge-0.safetensors")},
        {"id": "ridge", "start_from": str(files / "prototypical-0.safetensors")},
        {"id": "lstm"},
    ]
    circle = changed(tiny_suite, learner=rows)
    with pytest.raises(
        LearnerError, match="'prototypical' waits for 'ridge'; 'ridge' waits for 'prototypical'"
    ):
        run_suite(circle, tmp_path / "circle", jobs=1)
    own = [{"id": "ridge", "start_from": str(files / "ridge-0.safetensors")}]
    with pytest.raises(LearnerError, match="'ridge' waits for 'ridge'"):
        run_suite(changed(tiny_suite, learner=own), tmp_path / "circle", jobs=1)
    for starting, made in (("nearest_neighbour", "ridge"), ("ridge", "nearest_neighbour")):
        few: dict[str, Any] = {"ridge": {"options": {"widths": [4]}}}
        start = str(files / f"{made}-0.safetensors")
        barren = [
            {"id": starting, "start_from": start} | few.get(starting, {}),
            {"id": made} | few.get(made, {}),
        ]
        with pytest.raises(
            LearnerError, match="'nearest_neighbour' has nothing to train: leave out start_from"
        ):
            run_suite(changed(tiny_suite, learner=barren), tmp_path / "circle", jobs=1)
    assert not (tmp_path / "circle").exists()


def test_a_training_goes_on_from_the_network_of_another(
    tiny_suite: Path, tiny_results: Path, image_folder: Path, tmp_path: Path
) -> None:
    """Its network, the classes it drew and its digest come along; the rest of the learner is fresh."""
    start = shutil.copytree(tiny_results, tmp_path / "first") / "checkpoints" / "prototypical-0.safetensors"
    widths = read_suite(tiny_suite).learner[0].options["widths"]
    row = {"id": "ridge", "options": {"widths": widths}, "train": {"learning_rate": 1e-9, "steps": 3}}
    started = row | {"start_from": str(start)}
    (made, *_) = run_suite(changed(tiny_suite, learner=[started]), tmp_path / "on", jobs=1)
    assert made.config["start_from"] == str(start)
    assert (tmp_path / "on" / str(made.train_start)).resolve() == start
    assert made.train_start_sha256 == file_sha256(start)
    given, gone_on = (
        next(kernel.detach() for kernel in load_learner(path).parameters() if kernel.ndim == 4)
        for path in (start, tmp_path / "on" / str(made.checkpoint))
    )
    torch.testing.assert_close(given, gone_on, atol=0.05, rtol=0)  # both stored in whole steps
    afresh = run_suite(changed(tiny_suite, learner=[row]), tmp_path / "afresh", jobs=1)
    assert {record.key for record in afresh}.isdisjoint({made.key})
    assert "start_from" not in afresh[0].config
    drawn, before, alone = (
        {(side, name): count for side, name, count in read_draws(path)}
        for path in (
            tmp_path / "on" / str(made.checkpoint),
            start,
            tmp_path / "afresh" / str(afresh[0].checkpoint),
        )
    )
    assert drawn == {name: before.get(name, 0) + alone.get(name, 0) for name in before.keys() | alone.keys()}

    def problems() -> set[str | None]:
        return {
            verdict.problem for verdict in verify_records(tmp_path / "on", root=image_folder.parent, jobs=1)
        }

    assert problems() == {None}
    shutil.copy(start.with_name("lstm-0.safetensors"), start)
    (problem,) = problems()
    assert str(problem).endswith(
        ", with whose network training began, is another file now: its SHA-256 differs"
    )
    start.unlink()
    assert problems() == {None}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "ridge", "options": {"widths": [3]}}, "is not that of Ridge: "),
        (
            {"id": "lstm", "options": {"widths": []}},
            "has no network of images to begin with or to keep: leave out start_from and generations",
        ),
        ({"id": "nearest_neighbour"}, "it has nothing to train: leave out start_from"),
    ],
)
def test_what_a_training_cannot_begin_with_is_refused(
    row: dict[str, Any], problem: str, tiny_suite: Path, tiny_results: Path, tmp_path: Path
) -> None:
    start = str(tiny_results / "checkpoints" / "prototypical-0.safetensors")
    with pytest.raises(LearnerError, match=f"learner '{row['id']}': .*{problem}"):
        run_suite(changed(tiny_suite, learner=[row | {"start_from": start}]), tmp_path / "no", jobs=1)
    assert not (tmp_path / "no").exists()


def test_a_training_begins_with_weights_of_its_own_split_only(
    tiny_suite: Path, tiny_results: Path, image_folder: Path, tmp_path: Path
) -> None:
    start = str(tiny_results / "checkpoints" / "prototypical-0.safetensors")
    data = {"dataset": str(image_folder), "split": "fraction", "image_size": 12}
    row = {"id": "ridge", "start_from": start}
    with pytest.raises(LearnerError, match=r"was trained on .*: start from weights of the same split"):
        run_suite(changed(tiny_suite, data=data, learner=[row]), tmp_path / "no", jobs=1)
    with pytest.raises(RecordError, match="start_from names no checkpoint: give its path, or leave"):
        changed(tiny_suite, learner=[row | {"start_from": ""}])
    own = tomllib.loads(tiny_suite.read_text(encoding="utf-8"))["data"]
    larger = changed(tiny_suite, data=own | {"image_size": 16}, learner=[row])
    with pytest.raises(LearnerError, match=r"was trained on images of .* begin with weights of the same im"):
        run_suite(larger, tmp_path / "no", jobs=1)
    with pytest.raises(RecordError, match="leave out start_from, or weights"):
        changed(tiny_suite, learner=[row | {"weights": start}])


def test_a_memory_answers_with_other_numbers_of_slots(
    tiny_suite: Path, image_folder: Path, tmp_path: Path
) -> None:
    options = {"widths": [4], "embedding_size": 4, "hidden_size": 6, "word_size": 4, "num_slots": 16}
    stream = {"protocol": "stream", "way": 3, "length": 9}
    trained = changed(tiny_suite, learner=[{"id": "mann", "options": options, "train": {"episodes": stream}}])
    run_suite(trained, tmp_path / "trained", jobs=1)
    weights = str(tmp_path / "trained" / "checkpoints" / "mann-0.safetensors")
    rows = [
        {"id": f"mann:{slots}", "weights": weights, "options": {"num_slots": slots}} for slots in (4, 16, 64)
    ]
    lengths = [stream | {"length": length, "episodes": 30} for length in (6, 9, 24)]
    made = run_suite(changed(tiny_suite, learner=rows, test=lengths), tmp_path / "sizes", jobs=1)
    told = {(r.config["options"]["num_slots"], r.length): r.accuracy for r in made}
    assert len(told) == 9
    (as_trained,) = (r for r in read_records(tmp_path / "trained") if r.length == 9)
    assert told[16, 9] == as_trained.accuracy
    assert [r.config["options"]["word_size"] for r in made] == [4] * 9
    verdicts = verify_records(tmp_path / "sizes", root=image_folder.parent, jobs=1)
    assert [verdict.problem for verdict in verdicts] == [None] * 9


def test_classes_that_training_draws_are_no_test(
    tiny_suite: Path, tiny_results: Path, image_folder: Path, tmp_path: Path
) -> None:
    otherwise = {"dataset": str(image_folder), "split": "fraction", "image_size": 12}
    with pytest.raises(RecordError, match=r"would be tested on classes that its training draws: \d+ of the "):
        run_suite(changed(tiny_suite, train_data=otherwise), tmp_path / "other", jobs=1)
    weights = str(tiny_results / "checkpoints" / "prototypical-0.safetensors")
    adopting = {"data": otherwise, "learner": [{"id": "prototypical", "weights": weights}]}
    with pytest.raises(RecordError, match="would be tested on classes that its training draws"):
        run_suite(changed(tiny_suite, **adopting), tmp_path / "adopted", jobs=1)


def test_a_checkpoint_stands_for_the_seed_that_it_was_trained_with(
    tiny_suite: Path, tiny_results: Path, tmp_path: Path
) -> None:
    one = {"id": "lstm", "weights": str(tiny_results / "checkpoints" / "lstm-1.safetensors")}
    recorded = [r for r in read_records(tiny_results) if (r.learner, r.train_seed) == ("lstm", 1)]
    with pytest.raises(
        LearnerError, match=r"was trained with seed 1, the row of 'lstm' says 0: give train_see"
    ):
        run_suite(changed(tiny_suite, learner=[one]), tmp_path / "wrong", jobs=1)
    made = run_suite(changed(tiny_suite, learner=[one | {"train_seeds": [1]}]), tmp_path / "right", jobs=1)
    assert [(r.train_seed, r.accuracy) for r in made] == [(1, r.accuracy) for r in recorded]
    with pytest.raises(
        RecordError, match=r"2 train seeds need as many checkpoints: write \{seed\} in the path"
    ):
        changed(tiny_suite, learner=[one | {"train_seeds": [0, 1]}])
