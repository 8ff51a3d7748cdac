import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

import fewshot
import fewshot.harness.record
from fewshot.errors import RecordError
from fewshot.harness.record import (
    ANSWERS_SCHEMA,
    DRAWS_FILE,
    DRAWS_SCHEMA,
    QUICK_EPISODES,
    RECORDS_FILE,
    Record,
    add_answers,
    add_draws,
    answer_columns,
    answers_digest,
    answers_file,
    append_record,
    check_writable,
    kept_answers,
    provenance,
    read_answers,
    read_draws,
    read_records,
    record_key,
    remove_draws,
    remove_records,
    replace_file,
)

PACKAGE = Path(fewshot.__file__).parent

FIELDS = {
    "key": "0123456789abcdef",
    "suite": "quickstart",
    "learner": "mann:no_tie",
    "config": {"options": {"slots": 128}, "train": {"learning_rate": 1e-3}},
    "backbone": "conv4-64",
    "image_size": 28,
    "dataset": "omniglot",
    "split": "vinyals",
    "side": "test",
    "rotated_test_classes": False,
    "data_digest": "d" * 64,
    "protocol": "stream",
    "way": 5,
    "length": 50,
    "counts": "exact",
    "labels": "one_hot",
    "episodes": 1000,
    "episode_seed": 1,
    "episodes_digest": "e" * 64,
    "train_dataset": "omniglot",
    "train_split": "vinyals",
    "train_protocol": "stream",
    "train_way": (5, 20),
    "train_shot": None,
    "train_seed": 0,
    "train_steps": 40_000,
    "train_episodes": 640_000,
    "train_seconds": 3600.5,
    "selection": "best of every 500 steps",
    "device": "cpu",
    "threads": 1,
    "transductive": False,
    "accuracy": 0.9375,
    "accuracy_by_instance": {1: 0.36, 2: 0.93, 10: 0.981},
    "ci95": 0.002,
    "ci95_classes": 0.004,
    "ci95_by_instance": {1: 0.01, 2: 0.01, 10: None},
    "ci95_classes_by_instance": {1: 0.02, 2: 0.02, 10: None},
    "checkpoint": "checkpoints/mann.safetensors",
    "checkpoint_sha256": "c" * 64,
    **provenance(),
}
# What design section 4 demands; a field that came later must be readable when it is missing.
FIRST_FIELDS = """
    key suite learner config backbone image_size dataset split side rotated_test_classes data_digest
    protocol way shot query counts labels episodes episode_seed episodes_digest
    train_dataset train_split train_protocol train_way train_shot train_seed train_steps train_episodes
    train_seconds selection device threads transductive
    accuracy accuracy_by_instance ci95 ci95_classes
    checkpoint checkpoint_sha256 commit dirty versions created
""".split()  # noqa: SIM905


def make_record(**changes):
    return Record(**(FIELDS | changes))


def answers_table(episodes=3, way=2):
    rows = episodes * way
    columns = {
        "episode": np.repeat(np.arange(episodes), way),
        "class_id": np.arange(rows) % 7,
        "label": np.tile(np.arange(way), episodes),
        "presentation": np.zeros(rows, int),
        "correct": np.ones(rows, int),
        "count": np.full(rows, 2),
        "answers": [[row % way, -1] for row in range(rows)],
    }
    return pa.table(columns).cast(ANSWERS_SCHEMA)


def test_records_come_back_as_they_were_written(tmp_path):
    first, second = make_record(), make_record(key="b", learner="prototypical", train_way=None)
    append_record(tmp_path / "new", first)
    append_record(tmp_path / "new", second)
    assert read_records(tmp_path / "new") == [first, second]


def test_presentations_are_string_keys_in_json(tmp_path):
    append_record(tmp_path, make_record())
    line = json.loads((tmp_path / RECORDS_FILE).read_text())
    assert line["accuracy_by_instance"] == {"1": 0.36, "2": 0.93, "10": 0.981}
    assert set(FIRST_FIELDS) <= set(line)
    assert not {"trials", "accuracy_by_link", "answers"} & set(line), "at their defaults"


def test_a_record_with_the_same_key_is_replaced_in_its_place(tmp_path):
    for record in (make_record(), make_record(key="b"), make_record(accuracy=0.5)):
        append_record(tmp_path, record)
    assert [(r.key, r.accuracy) for r in read_records(tmp_path)] == [(FIELDS["key"], 0.5), ("b", 0.9375)]


def test_a_line_separator_inside_a_text_is_no_new_record(tmp_path):
    record = make_record(selection="best\u2028of\nall\x85")
    append_record(tmp_path, record)
    append_record(tmp_path, make_record(key="b"))
    assert read_records(tmp_path)[0] == record


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", 93.75),
        ("ci95", -0.1),
        ("ci95", float("nan")),
        ("episodes", 0),
        ("side", "train"),
        ("acuracy", 0.5),
    ],
)
def test_what_no_record_can_say_is_refused_on_write(field, value):
    with pytest.raises(ValidationError, match=field):
        make_record(**{field: value})


def test_every_field_is_described():
    assert [name for name, field in Record.model_fields.items() if not field.description] == []


def test_an_older_record_without_later_fields_is_readable(tmp_path):
    fields = json.loads(make_record().model_dump_json())
    older = {name: fields[name] for name in FIRST_FIELDS}
    (tmp_path / RECORDS_FILE).write_text(json.dumps(older) + "\n")
    (record,) = read_records(tmp_path)
    assert record.accuracy == 0.9375
    assert record.answers is None


def test_fields_of_a_later_version_are_left_out_on_reading_and_kept_on_appending(tmp_path):
    later = json.loads(make_record().model_dump_json()) | {"energy_joules": 5}
    (tmp_path / RECORDS_FILE).write_text(json.dumps(later) + "\n")
    append_record(tmp_path, make_record(key="b"))
    assert [record.key for record in read_records(tmp_path)] == [FIELDS["key"], "b"]
    assert '"energy_joules": 5' in (tmp_path / RECORDS_FILE).read_text()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not a JSON object"),
        ("", "not a JSON object"),
        ("<<<<<<< HEAD", "not a JSON object"),
        ("[]", "a record is a JSON object with a key"),
        ('{"key": "b"}', "field 'suite': Field required"),
        (make_record(key="b").model_dump_json().replace("0.9375", "93.75"), "field 'accuracy'"),
        (make_record().model_dump_json(), "key 0123456789abcdef is there twice"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, problem):
    append_record(tmp_path, make_record())
    path = tmp_path / RECORDS_FILE
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RecordError) as caught:
        read_records(tmp_path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_names_the_remedy(tmp_path):
    with pytest.raises(RecordError, match=r"no results in .*; make them with `fewshot run`"):
        read_records(tmp_path / "missing")


def test_a_crash_before_the_rename_leaves_the_old_records(tmp_path, monkeypatch):
    append_record(tmp_path, make_record())
    before = (tmp_path / RECORDS_FILE).read_bytes()

    def crash(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        append_record(tmp_path, make_record(key="b"))
    assert (tmp_path / RECORDS_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_FILE]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewshot.harness.record.os.fsync", full)
    with pytest.raises(RecordError, match=r"cannot write .*file: No space left on device"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_lose_no_record(tmp_path):
    code = (
        "import json, sys; from pathlib import Path\n"
        "from fewshot.harness.record import Record, append_record\n"
        "record = Record.model_validate_json(sys.stdin.read())\n"
        "for i in range(40): append_record(Path(sys.argv[1]), record.model_copy("
        "update={'key': sys.argv[2] + str(i)}))\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for process in processes:
        process.stdin.write(make_record().model_dump_json())
        process.stdin.close()
    assert [process.wait() for process in processes] == [0, 0]
    keys = {record.key for record in read_records(tmp_path)}
    assert keys == {f"{name}{i}" for name in "ab" for i in range(40)}


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_in_the_folders_place_is_refused_in_one_line(tmp_path, place):
    (tmp_path / "file").touch()
    for write in (check_writable, lambda folder: append_record(folder, make_record())):
        with pytest.raises(RecordError) as caught:
            write(tmp_path / place)
        assert str(caught.value).startswith(f"cannot write {tmp_path / place}: ")
        assert "choose another results folder" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    # As root, permission bits do not bind: the refusal is simulated.
    monkeypatch.setattr("fewshot.harness.record.tempfile.TemporaryFile", refuse)
    with pytest.raises(RecordError, match="Permission denied; make it writable or choose another"):
        check_writable(tmp_path)


def with_answers(folder, key, table, digest="e" * 64):
    file = answers_file(digest)
    add_answers(folder, file, key, table)
    record = make_record(key=key, answers=file, answers_sha256=answers_digest(table))
    append_record(folder, record)
    return record


def test_answers_come_back_as_they_were_written(tmp_path):
    first = with_answers(tmp_path, "a", answers_table())
    second = with_answers(tmp_path, "b", answers_table(way=3))
    assert [path.name for path in (tmp_path / "answers").iterdir()] == ["eeeeeeeeeeeeeeee.parquet"]
    assert read_answers(tmp_path, first).equals(answers_table())
    assert read_answers(tmp_path, second).equals(answers_table(way=3))
    again = with_answers(tmp_path, "a", answers_table(episodes=1))
    assert read_answers(tmp_path, again).equals(answers_table(episodes=1))
    assert read_answers(tmp_path, second).equals(answers_table(way=3))


def test_answers_after_the_first_episodes_are_kept_as_right_or_wrong():
    episodes = [QUICK_EPISODES - 1, QUICK_EPISODES, QUICK_EPISODES + 1]
    columns = {
        "episode": episodes,
        "class_id": [7, 8, 9],
        "label": [0, 2, 1],
        "presentation": [1, 1, 1],
        "correct": [1, 1, 0],
        "count": [3, 3, 1],
        "answers": [[0, 3, -1], [2, 0, -1], [3]],
    }
    table = pa.table(columns).cast(ANSWERS_SCHEMA)
    kept = kept_answers(table)
    assert kept["answers"].to_pylist() == [[0, 3, -1], [2, -1, -1], [-1]]
    assert kept.drop_columns("answers").equals(table.drop_columns("answers"))
    assert kept_answers(kept).equals(kept)


def test_no_more_than_so_many_answers_are_kept_as_labels(monkeypatch):
    monkeypatch.setattr(fewshot.harness.record, "MOST_LABELS", 7)
    lists = pa.array([[1, 2]] * 6, ANSWERS_SCHEMA.field("answers").type)
    table = answers_table(episodes=2, way=3).set_column(6, ANSWERS_SCHEMA.field("answers"), lists)
    kept = kept_answers(table)["answers"].to_pylist()  # of labels 0, 1, 2, 0, 1, 2
    assert kept == [[1, 2], [1, 2], [1, 2], [1, -1], [1, -1], [-1, 2]]


def test_a_file_of_answers_says_whose_each_row_is(tmp_path):
    record = with_answers(tmp_path, "a", answers_table())
    with_answers(tmp_path, "b", answers_table(way=3))
    columns = pq.read_table(tmp_path / record.answers).to_pydict()
    assert list(columns) == ["record", "episode", "class_id", "label", "presentation", "labels", "wrong_by"]
    assert columns["record"] == ["a"] * 6 + ["b"] * 9
    # Of labels 0 to 2, the right one and -1, which no class has.
    assert columns["wrong_by"] == [[0, 3]] * 15


def test_a_file_says_by_how_many_labels_an_answer_is_wrong_and_has_what_is_asked_early_first(tmp_path):
    columns = {
        "episode": [0, 0, 0, 1],
        "class_id": [7, 7, 9, 8],
        "label": [0, 0, 3, 2],
        "presentation": [1, 2, 1, 1],
        "correct": [1, 0, 0, 0],
        "count": [1, 2, 1, 1],
        "answers": [[0], [-1, 3], [1], [-1]],
    }
    table = pa.table(columns).cast(ANSWERS_SCHEMA)
    record = with_answers(tmp_path, "a", table)
    stored = pq.read_table(tmp_path / record.answers)
    assert stored["labels"].to_pylist() == [4] * 4
    assert [stored[name].to_pylist() for name in ("presentation", "episode", "label", "wrong_by")] == [
        [1, 1, 1, 2],
        [0, 0, 1, 0],
        [0, 3, 2, 0],
        [[0], [2], [4], [4, 3]],
    ]
    assert read_answers(tmp_path, record).equals(table)


def test_answers_of_an_earlier_version_are_read_and_kept(tmp_path):
    table = answers_table()
    record = make_record(key="a", answers=answers_file("e" * 64))
    path = tmp_path / record.answers
    path.parent.mkdir()
    earlier = table.drop_columns(["correct", "count"]).add_column(0, "record", pa.array(["a"] * len(table)))
    pq.write_table(earlier, path)
    assert read_answers(tmp_path, record).equals(table)
    other = with_answers(tmp_path, "b", answers_table(way=3))
    assert read_answers(tmp_path, record).equals(table)
    assert read_answers(tmp_path, other).equals(answers_table(way=3))


def test_answers_of_removed_records_go_and_others_stay(tmp_path):
    first, second = (with_answers(tmp_path, key, answers_table()) for key in "ab")
    remove_records(tmp_path, [first])
    with pytest.raises(RecordError, match=r"no answers of record a in .*; restore the file"):
        read_answers(tmp_path, first)
    assert read_answers(tmp_path, second).equals(answers_table())
    remove_records(tmp_path, [second])
    assert not list((tmp_path / "answers").iterdir())


def test_the_digest_of_answers_is_that_of_their_rows_however_they_are_held():
    table = answers_table()
    pieces = pa.concat_tables([table.slice(0, 2), table.slice(2)])
    assert answers_digest(pieces) == answers_digest(table)
    # Pinned: it is compared with that of recorded answers.
    assert answers_digest(table)[:16] == "26358144633511bb"
    for column, field in enumerate(ANSWERS_SCHEMA):
        other = table[field.name].take(np.arange(len(table))[::-1])
        if other != table[field.name]:
            assert answers_digest(table.set_column(column, field, other)) != answers_digest(table), field.name


def test_the_columns_that_statistics_take():
    parents = np.arange(answers_table()["class_id"].to_numpy().max() + 1)
    assert set(answer_columns(answers_table(), parents)) == {
        "episode",
        "class_id",
        "presentation",
        "correct",
        "count",
    }


def test_missing_and_damaged_answers_are_refused_in_one_line(tmp_path):
    with pytest.raises(RecordError, match=r"keeps no answers: run it again"):
        read_answers(tmp_path, make_record())
    with pytest.raises(RecordError, match=r"no answers in .*; restore the file"):
        read_answers(tmp_path, make_record(answers="answers/a.parquet"))
    record = with_answers(tmp_path, "a", answers_table())
    path = tmp_path / record.answers
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"<html>", whole[:4] + b"\xff" * 100 + whole[104:]):
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=r"cannot read the answers in .*; restore the file"):
            read_answers(tmp_path, record)
        with pytest.raises(RecordError, match=r"cannot read the answers in .*; restore the file"):
            add_answers(tmp_path, record.answers, "b", answers_table())
        assert path.read_bytes() == damaged, "what may yet be restored is not written over"
    path.write_bytes(whole)
    pq.write_table(pq.read_table(path).drop_columns("labels"), path)
    with pytest.raises(RecordError, match=r"cannot read the answers in .*labels.*; restore the file"):
        read_answers(tmp_path, record)


@pytest.mark.parametrize(("accuracy", "kilobytes"), [(0.98, 10), (0.4, 24)])
def test_answers_of_a_thousand_streams_are_small_and_smaller_beside_others(tmp_path, accuracy, kilobytes):
    table = answers_of_streams(accuracy)
    record = with_answers(tmp_path, "a", table)
    alone = (tmp_path / record.answers).stat().st_size
    assert alone < 1000 * kilobytes
    for key in "bcd":
        with_answers(tmp_path, key, answers_of_streams(accuracy, seed=ord(key)))
    assert (tmp_path / record.answers).stat().st_size < 4 * (alone - 5000)


def answers_of_streams(accuracy, seed=1):
    """A learner's answers, all of whom see the same classes."""
    random = np.random.default_rng(seed)
    rows = 1000 * 5 * 10
    label = np.tile(np.repeat(np.arange(5), 10), 1000)
    right = random.random(rows) < accuracy
    answer = np.where(right, label, (label + random.integers(1, 5, rows)) % 5)
    classes = np.argsort(np.random.default_rng(0).random((1000, 1692)), axis=1)[:, :5]
    columns = {
        "episode": np.repeat(np.arange(1000), 50),
        "class_id": np.repeat(classes.ravel(), 10),
        "label": label,
        "presentation": np.tile(np.arange(1, 11), 5000),
        "correct": right.astype(int),
        "count": np.ones(rows, int),
        "answers": list(answer.reshape(-1, 1)),
    }
    return pa.table(columns).cast(ANSWERS_SCHEMA)


def draws_of(seed, classes=4000):
    """A log in the order of a trainer: training classes, then classes to choose weights by."""
    random = np.random.default_rng(seed)
    names = [f"alphabet{number // 40:02}/character{number % 40:02}" for number in range(classes)]
    sides = ["train"] * (classes - 400) + ["val"] * 400
    return list(zip(sides, names, random.integers(1, 256, classes).tolist(), strict=True))


def test_logs_of_draws_come_back_as_they_were_written(tmp_path):
    weights, trials = tmp_path / "checkpoints" / "mann-0.safetensors", tmp_path / "trials" / "mann-0.json"
    first, second = [("val", "a@90", 3), ("train", "b", 70_000)], draws_of(2)
    add_draws(weights, first)
    add_draws(trials, second)
    assert [path.name for path in tmp_path.iterdir()] == [DRAWS_FILE]
    assert pq.read_table(tmp_path / DRAWS_FILE).column_names == DRAWS_SCHEMA.names
    assert (read_draws(weights), read_draws(trials)) == (first, second)
    add_draws(weights, draws_of(3))
    assert (read_draws(weights), read_draws(trials)) == (draws_of(3), second)
    remove_draws(trials)
    assert read_draws(weights) == draws_of(3)
    with pytest.raises(RecordError, match=r"the log of mann-0\.json in .* is missing: it says which classes"):
        read_draws(trials)
    remove_draws(weights)
    assert list(tmp_path.iterdir()) == []
    remove_draws(weights)


def test_damaged_logs_of_draws_are_refused_in_one_line_and_not_written_over(tmp_path):
    made = tmp_path / "checkpoints" / "mann-0.safetensors"
    with pytest.raises(RecordError, match=r"the log of mann-0\.safetensors in .* is missing"):
        read_draws(made)
    add_draws(made, draws_of(1))
    path = tmp_path / DRAWS_FILE
    whole = path.read_bytes()
    pq.write_table(answers_table(), path)
    for damaged in (whole[: len(whole) // 2], b"<html>", path.read_bytes()):
        path.write_bytes(damaged)
        for use in (read_draws, remove_draws, lambda made: add_draws(made, draws_of(2))):
            with pytest.raises(RecordError, match=r"^[^\n]* has no logs of .*; restore the file$"):
                use(made)
        assert path.read_bytes() == damaged


def test_classes_are_named_once_and_the_same_draws_take_no_room(tmp_path):
    room = []
    for number, seed in enumerate((1, 1, 2)):
        add_draws(tmp_path / "checkpoints" / f"mann-{number}.safetensors", draws_of(seed))
        room.append((tmp_path / DRAWS_FILE).stat().st_size)
    assert room[1] < room[0] + 300
    assert room[2] < room[1] + 4000 + 300, "a byte for each count"


def test_record_key_depends_on_meaning_and_not_on_order():
    meaning = {"way": 5, "train": {"seed": 0, "rates": [0.1, 0.2]}}
    # Pinned: a key that moves makes every recorded result look missing.
    assert record_key(meaning) == "5a35ad760f5f6ce8"
    assert record_key({"train": {"rates": (0.1, 0.2), "seed": 0}, "way": 5}) == record_key(meaning)
    assert record_key(meaning | {"way": 6}) != record_key(meaning)


def test_provenance_says_versions_and_names_no_place():
    facts = provenance()
    Record(**(FIELDS | facts))
    assert set(facts["versions"]) == {"python", "fewshot", "torch", "numpy"}
    assert facts["machine"]["cores"] >= 1
    assert str(Path.home()) not in json.dumps(facts)


def test_the_commit_is_that_of_the_checkout_that_holds_the_package(tmp_path):
    package = tmp_path / "fewshot"
    for name in ("__init__.py", "errors.py", "harness/__init__.py", "harness/record.py"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text((PACKAGE / name).read_text() if "__" not in name else "")

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit_and_dirty():
        code = "from fewshot.harness.record import provenance as p; print(p()['commit'], p()['dirty'])"
        options = {"cwd": tmp_path, "check": True, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, "-Bc", code], **options).stdout.strip()

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "-m", "a checkout of something else")
    assert commit_and_dirty() == "None None"
    git("add", "fewshot")
    git("commit", "--quiet", "-m", "the package")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "records.jsonl").touch()  # a suite that is running
    assert commit_and_dirty() == f"{git('rev-parse', 'HEAD')} False"
    (package / "errors.py").write_text((package / "errors.py").read_text() + "\n")
    assert commit_and_dirty() == f"{git('rev-parse', 'HEAD')} True"


def test_reading_records_needs_no_torch():
    code = "import sys, fewshot.harness.record, fewshot.harness.statistics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
