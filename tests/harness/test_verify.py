"""Verification: untouched results agree; whatever is changed in them is noticed and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from fewshot.data.catalogue import load_dataset
from fewshot.episodes.protocol import KShot, Stream
from fewshot.errors import DataError, RecordError
from fewshot.harness import verify as verifying
from fewshot.harness.checkpoint import checkpoint_facts, load_learner, save_learner
from fewshot.harness.record import (
    DRAWS_FILE,
    RECORDS_FILE,
    Record,
    add_answers,
    add_draws,
    answer_columns,
    answers_digest,
    read_answers,
    read_records,
    remove_draws,
)
from fewshot.harness.statistics import summarise
from fewshot.harness.train import draws_digest
from fewshot.harness.verify import Verdict, protocol_of, verify_record, verify_records


@pytest.fixture(autouse=True)
def data(own_cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data directory: records name the image folder, not its place."""
    monkeypatch.setenv("FEWSHOT_DATA", str(image_folder.parent))


@pytest.fixture
def results(tiny_results: Path, tmp_path: Path) -> Path:
    """A copy of the results, to tamper with."""
    return shutil.copytree(tiny_results, tmp_path / "tiny")


def change(folder: Path, number: int, **fields: Any) -> None:
    """Change fields of one line of the records."""
    path = folder / RECORDS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[number] |= fields
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def number_of(folder: Path, learner: str, protocol: str) -> int:
    records = read_records(folder)
    return next(
        i for i, record in enumerate(records) if (record.learner, record.protocol) == (learner, protocol)
    )


def problem(folder: Path, number: int, full: bool = False) -> str:
    """The problem of one record, in one line, once all others are known to agree."""
    verdicts = list(verify_records(folder, jobs=1, full=full))
    assert [i for i, verdict in enumerate(verdicts) if verdict.problem] == [number]
    text = verdicts[number].problem
    assert text is not None
    assert "\n" not in text
    assert str(verdicts[number]).startswith(f"DIFFERS  {verdicts[number].record.learner}  ")
    return text


@pytest.mark.parametrize("full", [False, True])
def test_untouched_results_agree(tiny_results: Path, full: bool) -> None:
    verdicts = list(verify_records(tiny_results, jobs=1, full=full))
    assert [verdict.record for verdict in verdicts] == read_records(tiny_results)
    for verdict in verdicts:
        assert (verdict.same_answers, verdict.difference, verdict.problem) == (1.0, 0.0, None)
        assert verdict.episodes == 30
        assert str(verdict).startswith(f"agrees   {verdict.record.learner}  ")


def test_the_first_episodes_are_enough_unless_all_are_asked_for(
    tiny_results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "QUICK_EPISODES", 7)
    record = read_records(tiny_results)[0]
    assert verify_record(tiny_results, record, None, full=False).episodes == 7
    assert verify_record(tiny_results, record, None, full=True).episodes == 30


@pytest.mark.parametrize("protocol", ["kshot", "stream"])
def test_a_changed_accuracy_is_noticed(results: Path, protocol: str) -> None:
    number = number_of(results, "prototypical", protocol)
    change(results, number, accuracy=read_records(results)[number].accuracy - 0.01)
    assert problem(results, number) == "the recorded accuracy is not that of the recorded answers"


def test_a_changed_accuracy_of_one_presentation_is_noticed(results: Path) -> None:
    number = number_of(results, "lstm", "stream")
    by_instance = read_records(results)[number].accuracy_by_instance
    change(results, number, accuracy_by_instance=by_instance | {2: by_instance[2] / 2})
    assert problem(results, number) == "the recorded accuracy_by_instance is not that of the recorded answers"


@pytest.mark.parametrize("field", ["ci95", "ci95_classes"])
def test_a_changed_interval_is_noticed(results: Path, field: str) -> None:
    number = number_of(results, "nearest_neighbour", "kshot")
    change(results, number, **{field: 0.0001})
    assert problem(results, number) == f"the recorded {field} is not that of the recorded answers"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: add_draws(path, [("train", "something", 3)]), "is not the one that was recorded"),
        (remove_draws, "is missing: it says which classes were drawn"),
    ],
)
def test_a_changed_log_of_the_classes_drawn_is_noticed(
    results: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(results / "checkpoints" / "prototypical-0.safetensors")
    verdicts = list(verify_records(results, jobs=1))
    for verdict in verdicts:
        assert (says in str(verdict.problem)) == (verdict.record.learner == "prototypical")


@pytest.mark.parametrize(
    ("content", "says"), [(b"no log", "has no logs of the classes drawn"), (None, "is missing")]
)
def test_a_damaged_or_missing_file_of_logs_is_noticed(
    results: Path, content: bytes | None, says: str
) -> None:
    path = results / DRAWS_FILE
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert all(says in str(verdict.problem) for verdict in verify_records(results, jobs=1))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("test", "test/00", 1), "says that test classes were drawn in training"),
        (("val", "test/00@90", 1), "1 of the test classes were drawn in training (test/00, ...)"),
    ],
)
def test_a_log_that_says_test_classes_were_drawn_is_noticed(
    results: Path, row: tuple[str, str, int], says: str
) -> None:
    """Even where the record and the checkpoint were made with it."""
    rows = [("train", "train/00", 3), row]
    add_draws(results / "checkpoints" / "nearest_neighbour-0.safetensors", rows)
    number = number_of(results, "nearest_neighbour", "kshot")
    record = read_records(results)[number]
    path = results / str(record.checkpoint)
    facts = checkpoint_facts(path)
    training = json.loads(facts["training"]) | {"train_classes_digest": draws_digest(rows)}
    digest = save_learner(load_learner(path), path, record.learner, {}, training=json.dumps(training))
    change(results, number, checkpoint_sha256=digest, train_classes_digest=draws_digest(rows))
    verdict = verify_record(results, read_records(results)[number], None, full=False)
    assert str(verdict.problem).endswith(says)


def with_changed_answers(folder: Path, number: int, rows: int) -> str:
    """Turn right answers of the first rows into wrong ones, counted as such, with figures to match."""
    record = read_records(folder)[number]
    assert record.answers is not None
    table = read_answers(folder, record)
    columns = table.to_pydict()
    for row in range(rows):
        answers = [(label + 1) % record.way for label in columns["answers"][row]]
        columns["answers"][row] = answers
        columns["correct"][row] = sum(answer == columns["label"][row] for answer in answers)
    changed = pa.Table.from_pydict(columns, schema=table.schema)
    add_answers(folder, record.answers, record.key, changed)
    parents = load_dataset(record.dataset).split(record.split).test.class_index.numpy()
    summary = summarise(**answer_columns(changed, parents))
    change(folder, number, **vars(summary))
    return answers_digest(changed)


def test_a_changed_answer_is_noticed_by_the_digest(results: Path) -> None:
    number = number_of(results, "nearest_neighbour", "kshot")
    with_changed_answers(results, number, rows=1)
    assert problem(results, number).endswith(
        ".parquet are not those that were recorded: their SHA-256 differs"
    )


def test_changed_answers_are_noticed_even_where_digest_and_figure_were_made_to_match(results: Path) -> None:
    number = number_of(results, "nearest_neighbour", "kshot")
    change(results, number, answers_sha256=with_changed_answers(results, number, rows=3))
    assert problem(results, number).startswith("only 9")
    assert problem(results, number).endswith(" % of the answers are those recorded")


def test_answers_beyond_the_first_episodes_are_noticed_in_full(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "QUICK_EPISODES", 1)
    number = number_of(results, "nearest_neighbour", "kshot")
    record = read_records(results)[number]
    rows = read_answers(results, record).filter(pc.field("episode") == 0).num_rows
    change(results, number, answers_sha256=with_changed_answers(results, number, rows=rows + 3))
    assert "only " in problem(results, number, full=True)


def test_lost_answers_are_noticed(results: Path) -> None:
    number = number_of(results, "lstm", "kshot")
    lost = read_records(results)[number].answers
    (results / str(lost)).unlink()
    for verdict in verify_records(results, jobs=1):
        assert str(verdict.problem).startswith("no answers in ") == (verdict.record.answers == lost)


@pytest.mark.parametrize("place", ["header", "weights"])
def test_changed_bytes_of_a_checkpoint_are_noticed_in_every_record_of_it(results: Path, place: str) -> None:
    path = results / "checkpoints" / "lstm-1.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(b'"lstm"') + 2 if place == "header" else -3] ^= 1
    path.write_bytes(content)
    verdicts = list(verify_records(results, jobs=1))
    damaged = [(v.record.learner, v.record.train_seed) == ("lstm", 1) for v in verdicts]
    assert sum(damaged) == 3
    assert [verdict.problem is not None for verdict in verdicts] == damaged
    assert all("is damaged" in str(verdict.problem) for verdict in verdicts if verdict.problem)


def test_a_checkpoint_put_in_place_of_another_is_noticed(results: Path) -> None:
    folder = results / "checkpoints"
    shutil.copy(folder / "lstm-0.safetensors", folder / "lstm-1.safetensors")
    problems = [verdict.problem for verdict in verify_records(results, jobs=1) if verdict.problem]
    assert len(problems) == 3
    assert all(
        text.endswith("lstm-1.safetensors is not the file that was recorded: its SHA-256 differs")
        for text in problems
    )
    shutil.copy(folder / "prototypical-0.safetensors", folder / "lstm-1.safetensors")
    problems = [verdict.problem for verdict in verify_records(results, jobs=1) if verdict.problem]
    assert all("holds 'prototypical', not 'lstm'" in text for text in problems)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"data_digest": "0" * 64}, "the images or the class split are not those recorded"),
        ({"rotated_test_classes": True}, "the images or the class split are not those recorded"),
        ({"side": "val"}, "the images or the class split are not those recorded"),
        ({"episodes_digest": "0" * 64}, "the episodes are not those recorded: the sampler draws others"),
        ({"episode_seed": 1}, "the episodes are not those recorded"),
        ({"query": 3}, "the episodes are not those recorded"),
        ({"episodes": 29}, "the episodes are not those recorded"),
        ({"transductive": True}, "the record says transductive True, the checkpoint False"),
        ({"backbone": "Conv4"}, "the record says backbone 'Conv4', the checkpoint None"),
        ({"train_steps": 9}, "the record says train_steps 9, the checkpoint None"),
        ({"train_classes_digest": "0" * 64}, "the record says train_classes_digest '000"),
        ({"checkpoint": None}, "the record names no checkpoint"),
        ({"answers": None}, "keeps no answers: run it again"),
        ({"learner": "prototypical"}, "holds 'nearest_neighbour', not 'prototypical'"),
        ({"split": "fraction"}, "the images or the class split are not those recorded"),
    ],
)
def test_a_record_that_says_something_else_is_noticed(
    results: Path, fields: dict[str, Any], says: str
) -> None:
    number = number_of(results, "nearest_neighbour", "kshot")
    change(results, number, **fields)
    assert says in problem(results, number)


def test_a_record_that_says_other_options_than_the_checkpoint_is_noticed(results: Path) -> None:
    number = number_of(results, "lstm", "kshot")
    config = read_records(results)[number].config
    change(results, number, config=config | {"options": config["options"] | {"hidden_size": 7}})
    assert "the record says option hidden_size 7, the checkpoint " in problem(results, number)


def test_changed_images_are_noticed(results: Path, image_folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(image_folder, tmp_path / image_folder.name)
    for number in range(len(read_records(results))):
        change(results, number, dataset=str(copied))
    assert not any(verdict.problem for verdict in verify_records(results, jobs=1))
    changed = copied / "test" / "00" / "0.png"
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    verifying.recorded_split.cache_clear()
    for verdict in verify_records(results, jobs=1):
        assert "the data digest differs" in str(verdict.problem)


def test_a_learner_that_answers_otherwise_now_is_noticed(
    tiny_results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of code that should have raised a version."""
    load: Callable[..., Any] = verifying.load_learner

    def other(path: Path, expect: str) -> Any:
        learner = load(path, expect)
        predict = learner.predict
        learner.predict = lambda state, images: -predict(state, images)
        return learner

    monkeypatch.setattr(verifying, "load_learner", other)
    record = read_records(tiny_results)[0]
    assert record.protocol == "kshot"
    assert "% of the answers are those recorded" in str(
        verify_record(tiny_results, record, None, False).problem
    )


@pytest.mark.parametrize(
    ("same", "difference", "says"),
    [
        (0.998, 0.001, None),
        (0.9979, 0.0, "only 99.79 % of the answers are those recorded"),
        (0.999, 0.0011, "accuracy differs by 0.11 points"),
    ],
)
def test_the_limits_are_those_of_the_design(
    tiny_results: Path, monkeypatch: pytest.MonkeyPatch, same: float, difference: float, says: str | None
) -> None:
    monkeypatch.setattr(verifying, "_measure_again", lambda *_: (same, difference))
    verdict = verify_record(tiny_results, read_records(tiny_results)[0], None, False)
    assert verdict == Verdict(verdict.record, 30, same, difference, says)


def test_processes_side_by_side_find_the_same(results: Path) -> None:
    number = number_of(results, "lstm", "kshot")
    change(results, number, accuracy=0.5)
    alone, together = (list(verify_records(results, jobs=jobs)) for jobs in (1, 2))
    assert alone == together
    assert alone[number].problem


def test_without_records_or_images_there_is_nothing_to_verify(results: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no results in "):
        list(verify_records(tmp_path / "absent"))
    change(results, 0, dataset="absent")
    with pytest.raises(DataError, match="unknown dataset 'absent'"):
        list(verify_records(results, jobs=1))
    (results / RECORDS_FILE).write_text("")
    with pytest.raises(RecordError, match="no records in "):
        list(verify_records(results, jobs=1))


def test_the_protocol_is_that_of_the_record(tiny_results: Path) -> None:
    def protocol(record: Record) -> KShot | Stream:
        return KShot(3, 1, 2) if record.protocol == "kshot" else Stream(3, 9, "exact")

    for record in read_records(tiny_results):
        assert protocol_of(record) == protocol(record)
