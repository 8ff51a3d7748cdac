"""Trials: every candidate is trained and measured alike, on validation classes; the best trains all seeds."""

import copy
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fewshot.errors import LearnerError, RecordError
from fewshot.harness import trials as trying
from fewshot.harness.audit.draws import settings_are_the_best_tried
from fewshot.harness.audit.tasks import plan_audit
from fewshot.harness.config import TRIAL_SEED, Suite, parse_suite
from fewshot.harness.job import Update
from fewshot.harness.plan import fresh_learner, load_split
from fewshot.harness.record import RECORDS_FILE, add_draws, read_draws, read_records
from fewshot.harness.run import run_suite
from fewshot.harness.train import train
from fewshot.harness.trials import Trial, best_of, read_trials, recorded_trials
from fewshot.harness.verify import verify_records
from fewshot.report.table import render

CANDIDATES: list[dict[str, Any]] = [
    {"learning_rate": 1e-6},
    {"learning_rate": 3e-2, "options": {"widths": [8, 8]}},
]
STEPS = 4


@pytest.fixture(autouse=True)
def own(own_cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and the data directory of the image folder."""
    monkeypatch.setenv("FEWSHOT_DATA", str(image_folder.parent))
    return own_cache


def parse(tiny_suite: Path, *learners: dict[str, Any]) -> Suite:
    content = tomllib.loads(tiny_suite.read_text(encoding="utf-8"))
    train = content["train"] | {"trials": {"steps": STEPS, "candidates": copy.deepcopy(CANDIDATES)}}
    return parse_suite(content | {"train": train, "learner": list(learners)}, "tiny", "tiny.toml")


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "prototypical", "options": {"widths": [4, 4]}, "train_seeds": [0, 1]} | changes


@pytest.fixture
def suite(tiny_suite: Path) -> Suite:
    return parse(tiny_suite, row(), {"id": "nearest_neighbour"})


@pytest.fixture(scope="session")
def tried_results(
    tiny_suite: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Update]]:
    """Results with trials, and the news while they were made. Not to be changed: copy them first."""
    folder, seen = tmp_path_factory.mktemp("tried") / "tiny", list[Update]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSHOT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FEWSHOT_DATA", str(image_folder.parent))
        run_suite(
            parse(tiny_suite, row(), {"id": "nearest_neighbour"}), folder, jobs=1, on_update=seen.append
        )
    return folder, seen


@pytest.fixture
def results(tried_results: tuple[Path, list[Update]], tmp_path: Path) -> Path:
    """A copy of the results, to change at will."""
    return shutil.copytree(tried_results[0], tmp_path / "tiny")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of the trials that are run while the test runs."""
    rates: list[float] = []

    def counted(learner: Any, split: Any, settings: Any, **rest: Any) -> Any:
        rates.append(settings.learning_rate)
        return train(learner, split, settings, **rest)

    monkeypatch.setattr(trying, "train", counted)
    return rates


def test_trials_come_first_and_once_for_all_seeds(tried_results: tuple[Path, list[Update]]) -> None:
    stages = list(dict.fromkeys((update.job, update.stage) for update in tried_results[1]))
    assert stages[:4] == [
        ("prototypical", "trial 1/2"),
        ("prototypical", "trial 2/2"),
        ("prototypical seed 0", "training"),
        ("prototypical seed 0", "testing"),
    ]
    assert sum(stage.startswith("trial") for _, stage in stages) == 2
    folder = tried_results[0]
    assert [path.name for path in (folder / "trials").iterdir()] == ["prototypical.json"]


def test_a_trial_is_measured_as_weights_are_in_training(
    suite: Suite, tried_results: tuple[Path, list[Update]]
) -> None:
    held = read_trials(tried_results[0] / "trials" / "prototypical.json")
    assert (held.steps, held.train_seed) == (STEPS, TRIAL_SEED)
    assert [trial.candidate for trial in held.trials] == CANDIDATES
    split = load_split(suite.data, None)
    for candidate, trial in zip(CANDIDATES, held.trials, strict=True):
        tried = suite.learner[0].under(candidate)
        settings = tried.train.model_copy(update={"steps": STEPS, "validate_every": STEPS})
        log = train(fresh_learner(tried, TRIAL_SEED, split), split, settings, train_seed=TRIAL_SEED)
        assert trial.accuracy == pytest.approx(log.best_accuracy, abs=1e-7)
        assert trial.ci95 == pytest.approx(log.best_ci95, abs=1e-7)
    drawn = read_draws(tried_results[0] / "trials" / "prototypical.json")
    assert {side for side, *_ in drawn} == {"train", "val"}
    episodes = len(CANDIDATES) * STEPS * suite.learner[0].train.batch
    assert sum(count for side, _, count in drawn if side == "train") == 3 * episodes


def test_records_say_what_was_chosen_and_what_was_tried(tried_results: tuple[Path, list[Update]]) -> None:
    records = read_records(tried_results[0])
    held = read_trials(tried_results[0] / "trials" / "prototypical.json")
    chosen = held.trials[held.chosen].candidate
    for record in records:
        if record.learner == "nearest_neighbour":
            assert record.trials is None
            continue
        assert record.trials == "trials/prototypical.json"
        assert record.config["train"]["learning_rate"] == chosen["learning_rate"]
        assert record.config["options"]["widths"] == chosen.get("options", {"widths": [4, 4]})["widths"]
        assert record.config["train"]["trials"]["candidates"] == CANDIDATES
        assert record.selection is not None
        assert record.selection.startswith(f"learning_rate {chosen['learning_rate']}")
        assert ": best of 2 trials of 4 updates on validation classes; weights of step" in record.selection
    assert "Settings are the best on validation classes of 2 trials: prototypical." in render(records, "md")


def test_the_best_is_the_first_of_equals() -> None:
    accuracies = (0.5, 0.75, 0.75, 0.25)
    trials = [Trial(candidate={}, accuracy=each, ci95=None, seconds=0.0) for each in accuracies]
    assert best_of(trials) == 1


def test_a_second_run_tries_nothing(suite: Suite, results: Path, trained: list[float]) -> None:
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert run_suite(suite, results, jobs=1) == []
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    (results / RECORDS_FILE).write_text("")
    run_suite(suite, results, jobs=1)
    assert trained == []


def test_a_killed_run_goes_on_after_the_trials_that_are_done(
    suite: Suite, results: Path, tmp_path: Path, own_cache: Path
) -> None:
    def kill(update: Update) -> None:
        if update.stage == "trial 2/2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, tmp_path / "killed", jobs=1, on_update=kill)
    assert not (tmp_path / "killed" / "trials").exists()
    seen: list[Update] = []
    run_suite(suite, tmp_path / "killed", jobs=1, on_update=seen.append)
    assert {update.stage for update in seen if update.stage.startswith("trial")} <= {"trial 2/2"}
    held, again = (
        read_trials(folder / "trials" / "prototypical.json") for folder in (results, tmp_path / "killed")
    )
    timeless = {"trials": {"__all__": {"seconds"}}}
    assert again.model_dump(exclude=timeless) == held.model_dump(exclude=timeless)
    assert list((own_cache / "runs").iterdir()) == []


def test_learners_side_by_side_are_all_tried_before_any_is_trained(
    tiny_suite: Path, tmp_path: Path, results: Path
) -> None:
    rows = [row(), row(id="prototypical:cosine", options={"widths": [4, 4], "distance": "cosine"})]
    seen: list[Update] = []
    run_suite(parse(tiny_suite, *rows), tmp_path / "two", jobs=2, on_update=seen.append)
    trial = [update.stage.startswith("trial") for update in seen]
    assert trial == sorted(trial, reverse=True)
    alone = {record.key: record.accuracy for record in read_records(results) if record.train_seed is not None}
    together = {record.key: record.accuracy for record in read_records(tmp_path / "two")}
    assert len(together) == 2 * len(alone)
    assert {key: together[key] for key in alone} == alone


def test_fresh_forgets_the_trials(suite: Suite, results: Path, trained: list[float]) -> None:
    run_suite(suite, results, jobs=1, fresh=True)
    assert trained == [candidate["learning_rate"] for candidate in CANDIDATES]


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        ([{}], "learner 'prototypical': train.trials.candidates: Tuple should have at least 2 items"),
        ([{}, {"learning_rat": 1}], "candidate 2 of the trials: unknown key 'learning_rat': did you mean"),
        ([{"learning_rate": 0}, {}], "candidate 1 of the trials: learning_rate: Input should be greater"),
        (
            [{}, {"steps": 9}],
            "candidate 2 of the trials changes steps, by which all are compared: leave it out",
        ),
        (
            [{}, {"episodes": {"protocol": "kshot", "way": 4}}],
            "changes validate_on, by which all are compared",
        ),
        ([{}, {"options": 3}], "candidate 2 of the trials: options is a table of names and values"),
    ],
)
def test_candidates_that_cannot_be_compared_are_refused(
    tiny_suite: Path, candidates: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(RecordError) as caught:
        parse(tiny_suite, row(train={"trials": {"steps": 4, "candidates": candidates}}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_built_or_is_no_trial_is_refused_first(tiny_suite: Path, tmp_path: Path) -> None:
    wrong = {"trials": {"steps": 4, "candidates": [{}, {"options": {"width": [4]}}]}}
    with pytest.raises(LearnerError, match="unknown option of Prototypical 'width'"):
        run_suite(parse(tiny_suite, row(train=wrong)), tmp_path / "wrong", jobs=1)
    with pytest.raises(RecordError, match=rf"train seed {TRIAL_SEED} is that of trials: choose another"):
        parse(tiny_suite, row(train_seeds=[0, TRIAL_SEED]))


# --- What is changed is noticed -----------------------------------------------------------------------------


def changed_trials(folder: Path, change: Any) -> None:
    """Change what came of the trials, and the digest that the records have of it."""
    path = folder / "trials" / "prototypical.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put_chosen_last(content: dict[str, Any]) -> None:
    content["chosen"] = 1 - content["chosen"]


def make_the_chosen_worse(content: dict[str, Any]) -> None:
    content["trials"][content["chosen"]]["accuracy"] = 0.0


def leave_out_candidates(content: dict[str, Any]) -> None:
    content["trials"][0]["candidate"] = {}


def name_another_log(content: dict[str, Any]) -> None:
    content["classes_digest"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put_chosen_last, "was chosen, and"),
        (make_the_chosen_worse, "was chosen, and"),
        (leave_out_candidates, "has other trials than the record's settings"),
        (name_another_log, "is not the one that was recorded"),
    ],
)
def test_trials_that_do_not_agree_with_themselves_are_noticed(results: Path, change: Any, says: str) -> None:
    changed_trials(results, change)
    record = read_records(results)[0]
    with pytest.raises(RecordError, match="is not the file that was recorded: its SHA-256 differs"):
        recorded_trials(results, record)
    assert record.trials
    told = record.model_copy(update={"trials_sha256": trying.file_sha256(results / record.trials)})
    with pytest.raises(RecordError, match=says):
        recorded_trials(results, told)
    (finding,) = settings_are_the_best_tried("prototypical", results, told)
    assert not finding.holds


def test_a_record_of_other_settings_than_those_chosen_is_noticed(results: Path) -> None:
    record = read_records(results)[0]
    config = copy.deepcopy(record.config)
    config["train"]["learning_rate"] = 0.5
    with pytest.raises(RecordError, match="the record has other settings than those that"):
        recorded_trials(results, record.model_copy(update={"config": config}))
    with pytest.raises(RecordError, match=r"the record says \"weights of step 3\", and "):
        recorded_trials(results, record.model_copy(update={"selection": "weights of step 3"}))
    with pytest.raises(RecordError, match="settings that are to be tried, and names no trials"):
        recorded_trials(results, record.model_copy(update={"trials": None}))


def test_verification_holds_trials_against_records(results: Path) -> None:
    assert [verdict.problem for verdict in verify_records(results, jobs=1)] == [None] * 9
    (results / "trials" / "prototypical.json").unlink()
    problems = [str(verdict.problem) for verdict in verify_records(results, jobs=1)]
    assert sum("it says what was tried; restore it" in text for text in problems) == 6


def test_the_trials_of_another_folder_s_weights_are_found_beside_them(
    tiny_suite: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(results.parent)
    adopting = parse(tiny_suite, row(weights="tiny/checkpoints/prototypical-0.safetensors", train_seeds=[0]))
    run_suite(adopting, results.parent / "other", jobs=1)
    others = read_records(results.parent / "other")
    assert {record.trials for record in others} == {"trials/prototypical.json"}
    assert not (results.parent / "other" / "trials").exists()
    verdicts = list(verify_records(results.parent / "other", jobs=1))
    assert [verdict.problem for verdict in verdicts] == [None] * len(others) != []


def test_an_audit_names_the_trials_and_counts_what_they_drew(results: Path) -> None:
    guard = "settings are the best tried on validation classes"
    (finding,) = (each for each in plan_audit(results)[0]() if each.guard == guard)
    assert finding.holds
    assert "best of 2 trials of 4 updates on validation classes" in finding.seen
    path = results / "trials" / "prototypical.json"
    add_draws(path, [*read_draws(path), ("test", "test/00", 1)])
    failed = {each.guard for each in plan_audit(results)[0]() if not each.holds}
    assert failed >= {guard, "test classes were never drawn before the end"}
