"""Records: what was measured, of what, by what; one JSON object per line, and the answers beside them.

A results folder holds `records.jsonl` and, for each set of test episodes, one Parquet file with the answers
of all records measured on it: which class was asked for is the same for all of them, and takes room once.
One more has the logs of the classes that its trainings and trials drew, whose names are the same as well.
Nothing here needs torch: tables and plots read records in a moment, on machines that could not train.
"""

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fewshot.errors import RecordError

RECORDS_FILE = "records.jsonl"
LINE_REMEDY = "restore the line, or delete it and run again"

ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("episode", pa.int32(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("label", pa.int16(), nullable=False),
        pa.field("presentation", pa.int16(), nullable=False),
        pa.field("correct", pa.int16(), nullable=False),
        pa.field("count", pa.int16(), nullable=False),
        pa.field("answers", pa.list_(pa.field("element", pa.int16(), nullable=False)), nullable=False),
    ]
)
"""One row per (episode, class, presentation or query group), sorted by episode, label and presentation.

class_id: position in the class pool; label: the class's label in this episode; presentation: 0 for K-shot,
else 1 for the first time the class is seen; correct of count answers are right; answers: the label answered
for each query, in episode order, -1 for a string that no class of the episode has, and for any wrong answer
that is not kept as a label (`kept_answers`). A presentation that was not asked has no row. In a chain, label
and answers are link * way + the label within the link, and a presentation is one within the link.
"""
QUICK_EPISODES = 200
"""As many of the first episodes are answered again by `fewshot verify`, without `--full`."""
MOST_LABELS = 20_000
"""As many answers of a record are kept as labels at most, a hundred of each of these episodes."""
_HELD_SCHEMA = pa.schema(
    [
        pa.field("record", pa.string(), nullable=False),
        *(field for field in ANSWERS_SCHEMA if field.name not in {"correct", "count"}),
    ]
)
"""The answers of all records of a file: `record` says whose a row holds. correct and count follow."""
_LABELS, _WRONG_BY = "labels", "wrong_by"
"""In a file `wrong_by` stands for the answers: 0 for the right label, else how many labels further the answer
is, counted in a circle of as many as the column `labels` says; that number where the answer is -1.
Most are then 0, and what is asked later is less often wrong: rows are sorted by record, presentation, episode
and label. A tenth less than answers in the order of episodes, which earlier versions wrote and which are read
as well.
"""

DRAWS_FILE = "draws.parquet"
DRAWS_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("side", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("count", pa.int32(), nullable=False),
    ]
)
"""One row per (file, class) drawn, the rows of a file one after another as the trainer counted them.

file: name of what was made, a checkpoint or what came of trials; side: of the split, "train" or "val"; class:
name, with the turn; count: times drawn, above 0.
"""
Draws = Sequence[tuple[str, str, int]]
"""A log of draws: (side, class name, times drawn) of every class drawn."""

_Rounded = AfterValidator(lambda value: round(value, 6))  # a hundred times finer than a table prints
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _Rounded]
HalfWidth = Annotated[float, Field(ge=0, allow_inf_nan=False), _Rounded]
Range = int | tuple[int, int]


class Record(BaseModel):
    """One learner configuration, trained with one seed, measured under one protocol.

    A field that a later version adds carries a default, so that older records stay readable; it is written
    only where it is not at its default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    key: str
    """`record_key` of what gives the result its meaning; one record per key in a folder."""
    suite: str
    """The suite's name, which is also the results folder's."""

    learner: str
    """Learner id of design section 4, with a variant after a colon: "mann:no_tie"."""
    config: dict[str, Any]
    """Options of the learner and of its training, as the suite gives them."""
    backbone: str | None
    """Network from image to features; None for learners on pixels."""
    image_size: int
    """Side of the square images, in pixels."""
    dataset: str
    """Dataset of the test episodes."""
    split: str
    """Class split of that dataset."""
    side: Literal["test", "val"]
    """Side of the split that the episodes are drawn from."""
    rotated_test_classes: bool
    """Whether classes turned by 90, 180 and 270 degrees are among the test classes."""
    data_digest: str
    """Digest of the class pool: images, split, side and rotation (SHA-256)."""

    protocol: Literal["kshot", "stream"]
    """Support and query, or a stream of images named before their label is shown."""
    way: int
    """Classes per episode."""
    shot: int | None = None
    """Support images per class; None for streams."""
    query: int | None = None
    """Query images per class; None for streams."""
    length: int | None = None
    """Images per stream; None for K-shot."""
    counts: Literal["exact", "random"] | None = None
    """How often each class comes in a stream; None for K-shot."""
    labels: Literal["one_hot", "string"] | None = None
    """How labels are shown in a stream; None for K-shot."""
    chain: int = 1
    """How many streams follow one another without wiping, as one episode."""
    within_group: bool = False
    """Whether all classes of an episode come from one group (alphabet)."""
    episodes: int = Field(gt=0)
    """Number of test episodes."""
    episode_seed: int
    """Seed of the test episodes."""
    episodes_digest: str
    """Digest of the test episodes: images, turns, order and labels (SHA-256)."""

    train_dataset: str | None
    """Dataset trained on; None for learners that are not trained, like all train_* below."""
    train_split: str | None
    """Class split of the training dataset."""
    train_protocol: Literal["kshot", "stream"] | None
    """Protocol of the training episodes."""
    train_way: Range | None
    """Classes per training episode; (least, largest) where it varies."""
    train_shot: Range | None
    """Support images per class in training; (least, largest) where it varies; None for streams."""
    train_seed: int | None
    """Seed of weights and training episodes."""
    train_steps: int | None
    """Optimiser updates of the whole training; `selection` says whose weights were kept."""
    train_episodes: int | None
    """Training episodes of the whole training."""
    train_seconds: float | None
    """Wall-clock time of the training, in seconds, validation included."""
    train_device: str | None = None
    """What the training ran on: "cpu", or the GPU's name; both, in order, where it was stopped and went on
    elsewhere; None where it was not yet written down."""
    train_classes_digest: str | None = None
    """Digest of the trainer's log of every (side, class) drawn (SHA-256)."""
    train_start: str | None = None
    """The checkpoint whose network the training began with, relative to the results folder; its draws are in
    the log too. None where it began afresh."""
    train_start_sha256: str | None = None
    """SHA-256 of that file."""
    selection: str | None
    """How the weights, and settings that were tried, were chosen on validation classes; None where there was
    no choice."""
    trials: str | None = None
    """What came of trials of settings: a file, relative to the results folder that has the checkpoint; None
    where there were none."""
    trials_sha256: str | None = None
    """SHA-256 of that file."""

    device: str
    """Where the episodes were answered: "cpu" or the accelerator's name."""
    threads: int
    """Threads that torch used."""
    transductive: bool
    """Whether a query's answer may depend on the other queries."""

    accuracy: Fraction
    """Correct answers over answers given, a fraction."""
    accuracy_by_instance: dict[int, Fraction] = {}
    """Stream: accuracy at each presentation of a class that the learner was asked at, a fraction."""
    accuracy_by_link: dict[int, Fraction] = {}
    """Chain: accuracy at presentations 2 and later in each of its streams, 1 the first; a fraction."""
    ci95: HalfWidth | None
    """Half width of the 95 % interval over episodes, a fraction."""
    ci95_classes: HalfWidth | None
    """Half width of the 95 % interval over test classes crossed with episodes, a fraction."""
    ci95_by_instance: dict[int, HalfWidth | None] = {}
    """Stream: ci95 at each presentation."""
    ci95_classes_by_instance: dict[int, HalfWidth | None] = {}
    """Stream: ci95_classes at each presentation."""
    answers: str | None = None
    """Parquet file, relative to the results folder, whose rows that name `key` are the answers."""
    answers_sha256: str | None = None
    """`answers_digest` of those rows."""

    checkpoint: str | None
    """Weights that were measured, relative to the results folder (another's where they were given as
    `weights`); None where there are none."""
    checkpoint_sha256: str | None
    """SHA-256 of that file."""
    commit: str | None
    """Commit of the checkout that measured; None outside a checkout."""
    dirty: bool | None
    """Whether the package differed from that commit."""
    versions: dict[str, str]
    """Versions of python, fewshot, torch and numpy."""
    method_versions: dict[str, int] = {}
    """Integer versions of the learner, the sampler and the reader: raised by hand when figures may move."""
    machine: dict[str, str | int] = {}
    """CPU model, number of logical cores, platform."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When the record was made, UTC."""


_ALWAYS_WRITTEN = {"shot", "query", "counts", "labels", "accuracy_by_instance"}


def _left_out(record: Record) -> set[str]:
    """The fields that are not written: those at their default, but for the first version's."""
    return {
        name
        for name, field in Record.model_fields.items()
        if name not in _ALWAYS_WRITTEN and not field.is_required() and getattr(record, name) == field.default
    }


def record_key(meaning: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of what gives a result its meaning (design decision 6).

    meaning: nested mappings, lists and scalars; the order of keys does not matter.
    """
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_writable(folder: Path) -> None:
    """Try to write where a results folder is or would be made, before anything that takes long.

    Nothing is left there: whoever is refused for another reason finds no empty folder. Raises RecordError
    where it fails.
    """
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise RecordError(f"cannot write {folder}: {nearest} is a file; choose another results folder")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise RecordError(_unwritable(folder, error)) from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole, making its folder where missing: a crash leaves the old one or the new one.

    Raises RecordError where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RecordError(_unwritable(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def append_record(folder: Path, record: Record) -> None:
    """Add a record to a results folder, in place of the one with the same key if there is one.

    The file is replaced whole, so that a reader or a killed writer never leaves half a line. Lines of
    other records are kept as they are.
    """
    path = folder / RECORDS_FILE
    line = record.model_dump_json(exclude=_left_out(record))
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        lines = _lines(path) if path.exists() else []
        keys = [_parse(path, number, old)["key"] for number, old in enumerate(lines, 1)]
        if record.key in keys:
            lines[keys.index(record.key)] = line
        else:
            lines.append(line)
        replace_file(path, "".join(f"{text}\n" for text in lines).encode())


def remove_records(folder: Path, records: Sequence[Record]) -> None:
    """Delete records and their answers from a results folder; lines of other records are kept as they are."""
    if not records:
        return
    gone = {record.key for record in records}
    path = folder / RECORDS_FILE
    with _locked(folder):
        kept = [
            line
            for number, line in enumerate(_lines(path), 1)
            if _parse(path, number, line)["key"] not in gone
        ]
        replace_file(path, "".join(f"{line}\n" for line in kept).encode())
        for file in {record.answers for record in records if record.answers}:
            answers = folder / file
            if answers.exists():
                _write_answers(answers, _without(_read_answers_file(answers), "record", gone))


def read_records(folder: Path) -> list[Record]:
    """The records of a results folder, in the order in which they were first added.

    Fields that this version does not know are left out, so that older code reads newer records.
    """
    path = folder / RECORDS_FILE
    try:
        lines = _lines(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError(
            f"no results in {folder}: there is no {RECORDS_FILE}; make them with `fewshot run`"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}; restore the file") from error
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, 1):
        fields = _parse(path, number, line)
        try:
            record = Record.model_validate({k: v for k, v in fields.items() if k in Record.model_fields})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RecordError(f"{path}:{number}: field {where!r}: {first['msg']}; {LINE_REMEDY}") from error
        if record.key in records:
            raise RecordError(
                f"{path}:{number}: key {record.key} is there twice; delete one of the two lines"
            )
        records[record.key] = record
    return list(records.values())


def draws_name(made: Path) -> str:
    """How messages name the log of the classes drawn to make a file of a results folder."""
    return f"the log of {made.name} in {_draws_file(made)}"


def add_draws(made: Path, draws: Draws) -> None:
    """Put the log of the classes drawn to make a file beside those of the other files of its results folder.

    made: the checkpoint, or what came of trials, whose earlier log this one replaces.
    """
    path = _draws_file(made)
    sides, names, counts = ([row[column] for row in draws] for column in range(3))
    own = pa.table([[made.name] * len(draws), sides, names, counts], schema=DRAWS_SCHEMA)
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        _write_draws(path, pa.concat_tables([_without(_read_draws_file(path), "file", {made.name}), own]))


def remove_draws(made: Path) -> None:
    """Delete the log of the classes drawn to make a file of a results folder, where there is one."""
    path = _draws_file(made)
    if path.exists():
        with _locked(path.parent):
            _write_draws(path, _without(_read_draws_file(path), "file", {made.name}))


def has_draws(made: Path) -> bool:
    """Whether there is a log of the classes drawn to make a file of a results folder."""
    return made.name in _read_draws_file(_draws_file(made))["file"].to_pylist()


def read_draws(made: Path) -> list[tuple[str, str, int]]:
    """The log of the classes drawn to make a file of a results folder.

    Raises RecordError where it is missing or no such log.
    """
    table = _read_draws_file(_draws_file(made))
    own = table.filter(pc.equal(table["file"], made.name))
    if not len(own):
        raise RecordError(f"{draws_name(made)} is missing: it says which classes were drawn; restore it")
    return list(zip(*(own[name].to_pylist() for name in ("side", "class", "count")), strict=True))


def _draws_file(made: Path) -> Path:
    return made.parents[1] / DRAWS_FILE


def _read_draws_file(path: Path) -> pa.Table:
    """All logs of a results folder; none where there is no file."""
    try:
        return pq.read_table(path).cast(DRAWS_SCHEMA)
    except FileNotFoundError:
        return DRAWS_SCHEMA.empty_table()
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{path} has no logs of the classes drawn: {reason}; restore the file") from error


def _write_draws(path: Path, table: pa.Table) -> None:
    _write_table(path, table, dictionary=["file", "side"], split=["count"])


def answers_file(episodes_digest: str) -> str:
    """Where the answers to test episodes are kept, relative to the results folder."""
    return f"answers/{episodes_digest[:16]}.parquet"


def add_answers(folder: Path, file: str, key: str, table: pa.Table) -> None:
    """Put the answers of one evaluation (ANSWERS_SCHEMA) beside those of other records on the same episodes.

    file: `answers_file`; key: of the record, whose earlier answers they replace.
    """
    path = folder / file
    table = table.cast(ANSWERS_SCHEMA)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        others = [_without(_read_answers_file(path), "record", {key})] if path.exists() else []
        own = table.add_column(0, _HELD_SCHEMA.field("record"), pa.array([key] * len(table)))
        _write_answers(path, pa.concat_tables([*others, own.select(_HELD_SCHEMA.names).cast(_HELD_SCHEMA)]))


def read_answers(folder: Path, record: Record) -> pa.Table:
    """The answers of one evaluation (ANSWERS_SCHEMA); RecordError where there are none."""
    return read_all_answers(folder, [record])[record.key]


def read_all_answers(folder: Path, records: Iterable[Record]) -> dict[str, pa.Table]:
    """The answers of evaluations, by their records' keys, each file read once; raises as `read_answers`."""
    files: dict[str, pa.Table] = {}
    found = {}
    for record in records:
        if record.answers is None:
            raise RecordError(f"record {record.key} of {folder} keeps no answers: run it again")
        path = folder / record.answers
        if record.answers not in files:
            files[record.answers] = _read_answers_file(path)
        table = files[record.answers]
        own = table.filter(pc.equal(table["record"], record.key))
        if not len(own):
            raise RecordError(
                f"no answers of record {record.key} in {path}; restore the file or evaluate again"
            )
        found[record.key] = _counted(own)
    return found


def _counted(held: pa.Table) -> pa.Table:
    """The answers of one record, in their order, with how many of each row are right."""
    held = held.sort_by([(name, "ascending") for name in ("episode", "label", "presentation")])
    rows, labels, answers = _each_answer(held, "answers")
    right = answers == labels
    counted = {
        "correct": np.bincount(rows[right], minlength=len(held)),
        "count": np.bincount(rows, minlength=len(held)),
    }
    columns = {name: held[name] for name in held.column_names} | counted
    return pa.table({name: columns[name] for name in ANSWERS_SCHEMA.names}).cast(ANSWERS_SCHEMA)


def _each_answer(table: pa.Table, column: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each answer in a column of lists: its row, that row's label, and what is listed."""
    rows, listed = (np.asarray(of(table[column])) for of in (pc.list_parent_indices, pc.list_flatten))
    return rows, table["label"].to_numpy()[rows], listed


def kept_answers(table: pa.Table) -> pa.Table:
    """Answers (ANSWERS_SCHEMA) as a results folder keeps them: those of the first episodes as labels.

    After QUICK_EPISODES, or MOST_LABELS answers, -1 stands for any wrong one. That suffices for all figures
    and tests, and for answering all episodes again; which wrong label it was takes most of a file's room.
    """
    rows, labels, answers = _each_answer(table, "answers")
    late = (table["episode"].to_numpy()[rows] >= QUICK_EPISODES) | (np.arange(len(rows)) >= MOST_LABELS)
    return _with_lists(table, "answers", "answers", np.where(late & (answers != labels), -1, answers))


def answers_digest(table: pa.Table) -> str:
    """SHA-256 of the rows of one evaluation, however they are stored: its columns one after another."""
    digest = hashlib.sha256()
    for field in ANSWERS_SCHEMA:
        column = table[field.name]
        whole = pa.types.is_list(field.type)
        for values in (pc.list_value_length(column), pc.list_flatten(column)) if whole else (column,):
            array = np.asarray(values.to_numpy())
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _read_answers_file(path: Path) -> pa.Table:
    """The answers of all records of a file (_HELD_SCHEMA)."""
    try:
        table = pq.read_table(path)
        return (_from_wrong_by(table) if _WRONG_BY in table.column_names else table).cast(_HELD_SCHEMA)
    except FileNotFoundError as error:
        raise RecordError(f"no answers in {path}; restore the file or evaluate again") from error
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"cannot read the answers in {path}: {reason}; restore the file") from error


def _to_wrong_by(table: pa.Table) -> pa.Table:
    """Answers (_HELD_SCHEMA) as a file has them."""
    table = table.sort_by([(name, "ascending") for name in ("record", "presentation", "episode", "label")])
    _, labels, answers = _each_answer(table, "answers")
    number = 1 + max(labels.max(initial=0), answers.max(initial=0))
    wrong_by = np.where(answers < 0, number, (answers - labels) % number)
    table = table.add_column(table.num_columns - 1, _LABELS, pa.array(np.full(len(table), number, np.int16)))
    return _with_lists(table, "answers", _WRONG_BY, wrong_by)


def _from_wrong_by(table: pa.Table) -> pa.Table:
    """Answers (_HELD_SCHEMA) of what a file has."""
    rows, labels, wrong_by = _each_answer(table, _WRONG_BY)
    number = table[_LABELS].to_numpy()[rows]
    answers = np.where(wrong_by == number, -1, (labels + wrong_by) % number)
    return _with_lists(table.drop_columns(_LABELS), _WRONG_BY, "answers", answers)


def _with_lists(table: pa.Table, column: str, name: str, values: NDArray[Any]) -> pa.Table:
    """A table with other values in its last column, which is one of lists, and with a new name for it."""
    field = ANSWERS_SCHEMA.field("answers").with_name(name)
    ends = np.cumsum(pc.list_value_length(table[column]).to_numpy(), dtype=np.int32)
    lists = pa.ListArray.from_arrays(np.append(np.int32(0), ends), pa.array(values, pa.int16()), field.type)
    return table.drop_columns(column).append_column(field, lists)


def _without(table: pa.Table, column: str, values: set[str]) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table[column], pa.array(sorted(values), pa.string()))))


def _write_answers(path: Path, table: pa.Table) -> None:
    columns = ["episode", "class_id", "label", "presentation", _LABELS, f"{_WRONG_BY}.list.element"]
    _write_table(path, _to_wrong_by(table), dictionary=["record"], split=columns)


def _write_table(path: Path, table: pa.Table, dictionary: list[str], split: list[str]) -> None:
    """Write a table whole; without any rows, there is no file.

    dictionary: columns of few texts; split: columns of numbers, whose bytes are stored by their place.
    """
    if not len(table):
        path.unlink(missing_ok=True)
        return
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        # One page a column, in which Brotli finds the episodes of one record again in the next, and the names
        # of one log: half the room of a file for each record, a sixth of that of one for each log. Measured
        # against dictionaries, plain values, zstd, and levels 9 (a quarter larger) and 10 (a twentieth larger
        # in a third of the time, which is 3 seconds for the 2.4 million answers of one file).
        compression="brotli",
        compression_level=11,
        data_page_size=1 << 30,
        row_group_size=1 << 26,
        max_rows_per_page=1 << 26,
        use_dictionary=dictionary,
        use_byte_stream_split=split,
        # Neither statistics nor Arrow's own schema: nothing reads them, and a small file is a tenth of them.
        write_statistics=False,
        store_schema=False,
    )
    replace_file(path, sink.getvalue().to_pybytes())


def answer_columns(table: pa.Table, parents: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
    """The columns of answers that `statistics.summarise` takes, by name.

    parents: (class,), the class of the image set that each class of the pool is, turned or not: a class and
    its turned copies are no independent evidence, so intervals over classes resample parents. None where all
    classes are upright, each its own parent.
    """
    names = ("episode", "class_id", "presentation", "correct", "count")
    columns = {name: np.asarray(table[name].to_numpy()) for name in names}
    return columns if parents is None else columns | {"class_id": parents[columns["class_id"]]}


def accuracy_by_link(table: pa.Table, way: int) -> dict[int, float]:
    """Accuracy at presentations 2 and later in each link of chains, 1 the first; empty for single streams.

    A memory is empty where a chain begins, and full of what is no longer of use in every later link.
    """
    names = ("label", "presentation", "correct", "count")
    label, presentation, correct, count = (np.asarray(table[name].to_numpy()) for name in names)
    link = label // way
    if not link.any():
        return {}
    known = presentation > 1
    right, asked = (np.bincount(link[known], weights=values[known]) for values in (correct, count))
    return {int(k) + 1: float(right[k] / asked[k]) for k in np.flatnonzero(asked)}


def provenance() -> dict[str, Any]:
    """The fields commit, dirty, versions and machine of a record; they name no host, user or path.

    Call it once when a process starts: later the checkout may differ from the code that is running.
    """
    commit, dirty = _checkout()
    packages = ("fewshot", "torch", "numpy")
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count() or 1,
            "platform": f"{platform.system()} {platform.machine()}",
        },
    }


def _checkout() -> tuple[str, bool] | tuple[None, None]:
    """Commit of the checkout that holds this package, and whether the package differs from it.

    Only the package counts: a suite that is running changes the results folder, not the code.
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=package,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "errors.py")  # the package may be installed in another checkout
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    """Not str.splitlines: that also splits at characters that JSON leaves as they are."""
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    return text.split("\n") if text else []


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{path}:{number}: not a JSON object ({error}); {LINE_REMEDY}") from error
    if not isinstance(fields, dict) or "key" not in fields:
        raise RecordError(f"{path}:{number}: a record is a JSON object with a key; {LINE_REMEDY}")
    return fields


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time. The folder itself is locked, so that a killed process leaves no lock behind.

    Where a system cannot lock a folder (Windows, some network file systems) there is no lock. A run needs
    none: however many processes measure, the one that started them writes.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"cannot write {path}: {error.strerror or error}; make it writable or choose another results folder"
    )
