"""The whole audit: untouched results and suites pass, planted leaks are found, and the command says so."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fewshot.errors import LearnerError, RecordError
from fewshot.harness.audit.finding import Finding
from fewshot.harness.audit.tasks import carry_out, plan_audit
from fewshot.harness.record import (
    RECORDS_FILE,
    add_answers,
    add_draws,
    read_answers,
    read_draws,
    read_records,
    remove_draws,
)
from fewshot.harness.train import draws_digest
from fewshot.report.audit import lines, table
from fewshot.report.formats import write

GUARDS = {
    "the log has all that was drawn",
    "sides are apart on what was drawn",
    "test classes were never drawn before the end",
    "weights were chosen on validation classes",
    "no query tells about another",
    "labels asked for are not read",
    "a batch is its episodes side by side",
    "state is a value that goes in and out",
    "evaluation changes no parameter, buffer or mode",
    "features stand for images",
    "the same question has the same answer",
    "permuted support labels give chance",
    "no image is in both support and query",
    "a label is that of its image",
    "labels are permuted afresh",
    "first presentations are within the guesser's ceiling",
}


@pytest.fixture(autouse=True)
def data(own_cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data directory: records name the image folder, not its place."""
    monkeypatch.setenv("FEWSHOT_DATA", str(image_folder.parent))


@pytest.fixture
def results(tiny_results: Path, tmp_path: Path) -> Path:
    """A copy of the results, to tamper with."""
    return shutil.copytree(tiny_results, tmp_path / "tiny")


def audited(what: Path, jobs: int = 1) -> list[Finding]:
    return carry_out(plan_audit(what), jobs)


def failing(what: Path) -> dict[str, set[str]]:
    """The guards that fail, and of whom."""
    found: dict[str, set[str]] = {}
    for finding in audited(what):
        if not finding.holds:
            found.setdefault(finding.guard, set()).add(finding.subject)
    return found


def keep(folder: Path, learner: str, **fields: Any) -> None:
    """Leave only the records of a learner, with these fields changed."""
    path = folder / RECORDS_FILE
    read = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [one | fields for one in read if one["learner"] == learner]
    path.write_text("".join(json.dumps(one) + "\n" for one in kept))


def checkpoint_of(folder: Path, learner: str) -> Path:
    record = next(record for record in read_records(folder) if record.learner == learner)
    return folder / str(record.checkpoint)


def test_untouched_results_pass_every_guard(tiny_results: Path) -> None:
    findings = audited(tiny_results)
    assert {finding.guard for finding in findings} == GUARDS
    assert all(finding.holds for finding in findings), [str(one) for one in findings if not one.holds]
    weights = {record.checkpoint for record in read_records(tiny_results)}
    assert sum(finding.guard == "sides are apart on what was drawn" for finding in findings) == len(weights)


def test_a_suite_passes_before_it_is_run(tiny_suite: Path) -> None:
    findings = audited(tiny_suite)
    assert all(finding.holds for finding in findings), [str(one) for one in findings if not one.holds]
    assert {finding.guard for finding in findings} == GUARDS - {
        "the log has all that was drawn",
        "weights were chosen on validation classes",
        "first presentations are within the guesser's ceiling",
    }


def test_rows_whose_files_are_still_to_come_are_audited_without_them(
    tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tiny_suite.read_text()
    files = "results/chained/checkpoints"
    text += f'''
[[learner]]
id = "ridge"
options = {{ widths = [4] }}
start_from = "{files}/prototypical-0.safetensors"

[[learner]]
id = "ridge:adopted"
weights = "{files}/ridge-0.safetensors"
'''
    chained = tmp_path / "chained.toml"
    chained.write_text(text)
    monkeypatch.chdir(tmp_path)
    findings = audited(chained)
    assert {finding.subject for finding in findings} >= {"ridge", "ridge:adopted"}
    assert all(finding.holds for finding in findings), [str(one) for one in findings if not one.holds]
    chained.write_text(text.replace("/ridge-0", "/nobody-0"))
    with pytest.raises(LearnerError, match="no checkpoint results/chained/checkpoints/nobody-0"):
        plan_audit(chained)


def test_a_suite_that_trains_on_its_test_classes_is_found(tiny_suite: Path, tmp_path: Path) -> None:
    """By another split of the same images."""
    text = tiny_suite.read_text()
    head = text.index("[train]")
    folder = next(line for line in text.splitlines() if line.startswith("dataset"))
    leaky = tmp_path / "leaky.toml"
    leaky.write_text(f'{text[:head]}[train_data]\n{folder}\nsplit = "fraction"\n\n{text[head:]}')
    assert failing(leaky)["test classes were never drawn before the end"] >= {"prototypical", "lstm"}


def test_a_log_with_test_classes_is_found_though_the_record_agrees_with_it(results: Path) -> None:
    path = checkpoint_of(results, "prototypical")
    draws = [*read_draws(path), ("test", "test/00", 12)]
    add_draws(path, draws)
    keep(results, "prototypical", train_classes_digest=draws_digest(draws))
    assert failing(results) == {
        "test classes were never drawn before the end": {"prototypical seed 0"},
    }


def test_a_missing_log_is_found(results: Path) -> None:
    keep(results, "prototypical")
    remove_draws(checkpoint_of(results, "prototypical"))
    assert failing(results) == {"the log has all that was drawn": {"prototypical seed 0"}}


def test_a_choice_on_test_classes_is_found(results: Path) -> None:
    keep(results, "prototypical", selection="the best of every 3 by the accuracy over test classes")
    assert failing(results) == {"weights were chosen on validation classes": {"prototypical seed 0"}}


def test_answers_that_know_new_classes_are_found(results: Path) -> None:
    keep(results, "lstm")
    record = next(one for one in read_records(results) if one.protocol == "stream")
    table = read_answers(results, record)
    columns = table.to_pydict()
    pairs = zip(columns["label"], columns["answers"], strict=True)
    columns["answers"] = [[label] * len(answers) for label, answers in pairs]
    add_answers(results, str(record.answers), record.key, pa.Table.from_pydict(columns, schema=table.schema))
    (subjects,) = failing(results).values()
    assert subjects == {f"{record.learner} seed {record.train_seed}, 3-way stream of 9, exact counts"}


def test_tasks_can_be_sent_to_processes_side_by_side(tiny_results: Path) -> None:
    tasks = plan_audit(tiny_results)[-3:]
    done: list[int] = []
    assert carry_out(pickle.loads(pickle.dumps(tasks)), 1, done.append) == carry_out(tasks, 1)
    assert done == [1, 1, 1]


def test_what_is_not_there_is_wrong_input(results: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no results in"):
        plan_audit(tmp_path / "absent")
    with pytest.raises(RecordError, match="no suite"):
        plan_audit(tmp_path / "absent.toml")
    (results / RECORDS_FILE).write_text("")
    with pytest.raises(RecordError, match="no records in"):
        plan_audit(results)


def test_a_lost_checkpoint_is_wrong_input(results: Path) -> None:
    for path in (results / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(LearnerError, match="no checkpoint"):
        audited(results)


# --- The report ---------------------------------------------------------------------------------------------

FOUND = [
    Finding("no leak", "a", True, "20 % right", "mend it", 0.5),
    Finding("no leak", "b", True, "24 % right", "mend it", 0.01),
    Finding("no trick", "a", True, "none in 10", "stop it"),
    Finding("no trick", "b", True, "none in 10", "stop it"),
    Finding("no lie", "a", True, "none", "say so"),
    Finding("no lie", "b", False, "two", "say so"),
]


def test_the_report_names_what_came_nearest_and_what_fails_with_its_remedy() -> None:
    assert lines(FOUND) == [
        "holds   2 of 2   no leak",
        "      b: 24 % right",
        "holds   2 of 2   no trick",
        "      each: none in 10",
        "FAILS   1 of 2   no lie",
        "      b: two: say so",
    ]


def test_a_finding_reads_by_itself() -> None:
    assert str(FOUND[0]) == "holds  no leak: a: 20 % right"
    assert str(FOUND[-1]) == "FAILS  no lie: b: two; say so"


def test_the_table_has_them_all() -> None:
    assert "| b | no lie | no | two |" in write([table("Found", FOUND)], "md")
