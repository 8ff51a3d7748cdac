"""Which records of two learners answered the same test episodes, and how the learners compare on them.

Episode i is a function of the class pool, the protocol, the episode seed and i alone (design decision 1). So
the records of one setting hold answers to the same episodes: to the first of them, where one was asked fewer.
That they are the same is said by the digests of as many episodes, and by the classes of their answers.

Importing this takes no torch: tables compare learners too. Only where turned classes are among the test
classes of a split without a committed list does it take the images, to know which classes are turned copies.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fewshot.data.class_lists import class_list, listed_splits
from fewshot.errors import RecordError, unknown
from fewshot.harness.comparison import Answered, Compared, compare, holm
from fewshot.harness.record import Record, answer_columns, read_all_answers, read_records

PRESENTATIONS = (1, 2, 3, 5, 10)

# What test episodes are drawn from, and how. At another size the images are other pixels: another class pool.
_SETTING = (
    "dataset",
    "split",
    "side",
    "rotated_test_classes",
    "image_size",
    "protocol",
    "way",
    "shot",
    "query",
    "length",
    "counts",
    "labels",
    "chain",
    "within_group",
    "episode_seed",
)

Setting = tuple[Any, ...]
Columns = dict[str, NDArray[Any]]
Parents = NDArray[np.int64] | None


class Contender(NamedTuple):
    """A learner of a results folder."""

    folder: Path
    learner: str

    def __str__(self) -> str:
        return f"{self.learner} of {self.folder}"


class Tested(NamedTuple):
    """How a learner answered in one setting: a record and the columns of its answers per training seed."""

    contender: Contender
    records: Sequence[Record]
    answers: list[Columns]


class Pair(NamedTuple):
    """Two learners of one results folder, by their records in one setting, and where they are compared.

    instance: the presentation in a stream; None for all answers.
    """

    a: tuple[Record, ...]
    b: tuple[Record, ...]
    instance: int | None


def compare_learners(
    a: Contender,
    b: Contender,
    presentations: Sequence[int] = PRESENTATIONS,
    root: Path | None = None,
) -> list[Compared]:
    """Compare two learners in every setting that both were tested in; p-values are corrected over all rows.

    presentations: those of streams that are compared, beside all answers together. root: the data directory,
    asked only where turned classes are among the test classes and no committed list says how many there are,
    as a class and its turned copies are no independent evidence.

    Raises RecordError where a learner is not in its folder, where the two share no test or are in no stream
    asked at any of the presentations, and where records of one setting are about different episodes.
    """
    tests_a, tests_b = _by_setting(a), _by_setting(b)
    shared = [test for test in tests_a if test in tests_b]
    if not shared:
        raise RecordError(
            f"{a} and {b} were not tested on the same episodes ({_least_difference(tests_a, tests_b)}): "
            "give both the same tests in a suite, on images of one size"
        )
    rows = []
    for test in shared:
        record = tests_a[test][0]
        parents = _parents(record, root)
        of_a, of_b = (
            _tested(side, tests[test], read_all_answers(side.folder, tests[test]), parents)
            for side, tests in ((a, tests_a), (b, tests_b))
        )
        rows += _compare(of_a, of_b, (None, *presentations) if record.protocol == "stream" else (None,))
    streams = any(tests_a[test][0].protocol == "stream" for test in shared)
    if streams and presentations and not {row.instance for row in rows} & set(presentations):
        raise RecordError(
            f"presentation {', '.join(map(str, presentations))} is in no stream that {a} and {b} share: "
            "`fewshot table` shows those that were"
        )
    return _corrected(rows)


def compare_pairs(folder: Path, pairs: Iterable[Pair]) -> list[Compared]:
    """Compare each pair of records of one folder, reading each once; p-values are corrected over all pairs.

    Raises RecordError where two have no answers to the same episodes, where answers are missing, and where it
    would take the images to say which turned classes are one.
    """
    pairs = list(pairs)
    sides = {records[0].key: records for a, b, _ in pairs for records in (a, b)}
    tables = read_all_answers(folder, [record for records in sides.values() for record in records])
    tested = {
        key: _tested(Contender(folder, records[0].learner), records, tables, _listed_parents(records[0]))
        for key, records in sides.items()
    }

    def compare_pair(pair: Pair) -> Compared:
        a, b = tested[pair.a[0].key], tested[pair.b[0].key]
        found = _compare(a, b, (pair.instance,))
        if not found:
            raise RecordError(_other_episodes(a, b, f"they share no answer at presentation {pair.instance}"))
        return found[0]

    return _corrected([compare_pair(pair) for pair in pairs])


def setting(record: Record) -> Setting:
    """What a record's test episodes are drawn from, and how: learners of one setting can be compared."""
    return tuple(getattr(record, name) for name in _SETTING)


def _corrected(rows: Sequence[Compared]) -> list[Compared]:
    corrected = holm([row.comparison.p_value for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def _by_seed(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: record.train_seed or 0)


def _by_setting(contender: Contender) -> dict[Setting, list[Record]]:
    """The learner's records by what they were tested on, one for each training seed."""
    records = read_records(contender.folder)
    found: dict[Setting, list[Record]] = {}
    for record in records:
        if record.learner == contender.learner:
            found.setdefault(setting(record), []).append(record)
    if not found:
        names = {record.learner for record in records}
        raise RecordError(unknown(f"learner of {contender.folder}", contender.learner, names))
    for of_setting in found.values():
        seeds = [record.train_seed for record in of_setting]
        if len(seeds) > len(set(seeds)):
            raise RecordError(
                f"{contender} has two records of one test and train seed: delete those of the configuration "
                "that is not meant"
            )
    return found


def _least_difference(a: Iterable[Setting], b: Iterable[Setting]) -> str:
    """ "image_size 20 and 28": what the two settings that are most alike do not share."""
    differing = (
        [f"{name} {x} and {y}" for name, x, y in zip(_SETTING, *pair, strict=True) if x != y]
        for pair in product(a, b)
    )
    fewest = min(differing, key=len)
    return ", ".join(fewest)


def _compare(a: Tested, b: Tested, instances: Sequence[int | None]) -> list[Compared]:
    """The rows of two learners in one setting, their p-values not yet corrected."""
    episodes = _shared_episodes(a, b)
    answers = [_first(columns, episodes) for columns in (*a.answers, *b.answers)]
    first = answers[0]
    if not all(np.array_equal(columns["query"], first["query"]) for columns in answers):
        # A learner may have been asked at some presentations only: what counts is what all were asked.
        common = reduce(np.intersect1d, [columns["query"] for columns in answers])
        answers = [_chosen(columns, common) for columns in answers]
        first = answers[0]
    for columns in answers:
        if any((columns[name] != first[name]).any() for name in ("class_id", "count")):
            raise RecordError(_other_episodes(a, b, "the classes of their answers differ"))
    correct = np.stack([columns["correct"] for columns in answers])
    seeds = len(a.records)
    found = compare(
        first["episode"],
        first["class_id"],
        first["presentation"],
        first["count"],
        Answered(correct[:seeds], trained=a.records[0].train_seed is not None),
        Answered(correct[seeds:], trained=b.records[0].train_seed is not None),
        instances,
        same_trainings=_same_trainings(a.records, b.records),
    )
    return [
        Compared(tuple(a.records), tuple(b.records), k, episodes, comparison, comparison.p_value)
        for k, comparison in found.items()
    ]


def _same_trainings(a: Sequence[Record], b: Sequence[Record]) -> bool:
    """Whether both answered with the same weights, seed by seed."""
    weights = [[(record.train_seed, record.checkpoint_sha256) for record in records] for records in (a, b)]
    return weights[0] == weights[1] and None not in weights[0][0]


def _shared_episodes(a: Tested, b: Tested) -> int:
    """How many episodes, the first ones, all records answered; RecordError where they are not the same."""
    records = [*a.records, *b.records]
    digests = {(record.episodes, record.episodes_digest) for record in records}
    if len(digests) > len({episodes for episodes, _ in digests}):
        raise RecordError(_other_episodes(a, b, "the digests of their episodes differ"))
    if len({record.method_versions.get("sampler") for record in records}) > 1:
        raise RecordError(_other_episodes(a, b, "different versions of the sampler drew them"))
    return min(record.episodes for record in records)


def _other_episodes(a: Tested, b: Tested, reason: str) -> str:
    who = f"{a.contender} and {b.contender}"
    return f"{who} were not tested on the same episodes: {reason}; run both again with one version"


def _parents(record: Record, root: Path | None) -> Parents:
    """What `answer_columns` has to know of a record's classes, from the images where no list says it."""
    if not record.rotated_test_classes or record.split in listed_splits(record.dataset):
        return _listed_parents(record)
    from fewshot.harness.config import DataSettings  # all that takes torch
    from fewshot.harness.plan import load_split

    settings = DataSettings(dataset=record.dataset, split=record.split, image_size=record.image_size)
    pool = load_split(settings, root).side(record.side).with_rotations()
    if pool.digest != record.data_digest:
        raise RecordError(
            f"the images or the classes of {record.dataset}, split {record.split}, are not those recorded: "
            "give the data directory that holds them"
        )
    return pool.class_index.numpy()


def _listed_parents(record: Record) -> Parents:
    """The same, of upright classes (None) and of the turned ones of a committed list.

    Class c of an upright pool, turned r times, is class r * classes + c (`ClassPool.with_rotations`).
    """
    if not record.rotated_test_classes:
        return None
    if record.split not in listed_splits(record.dataset):
        raise RecordError(
            f"no committed list says which turned classes of {record.dataset}, split {record.split}, are one"
        )
    classes = len(class_list(record.dataset, record.split, record.side))
    return np.tile(np.arange(classes), 4)


def _tested(
    contender: Contender, records: Sequence[Record], tables: Mapping[str, pa.Table], parents: Parents
) -> Tested:
    records = _by_seed(records)
    return Tested(contender, records, [_columns(tables[record.key], parents) for record in records])


def _columns(table: pa.Table, parents: Parents) -> Columns:
    """The columns of a record's answers, and a number for the query of each row."""
    columns = answer_columns(table, parents)
    columns = {name: values.astype(np.int64) for name, values in columns.items()}
    label = np.asarray(table["label"].to_numpy())
    query = (columns["episode"] << 32) + (label.astype(np.int64) << 16) + columns["presentation"]
    return columns | {"query": query}


def _first(columns: Columns, episodes: int) -> Columns:
    """The rows of the first so many episodes."""
    rows = columns["episode"] < episodes
    if rows.all():
        return columns
    return {name: values[rows] for name, values in columns.items()}


def _chosen(columns: Columns, queries: NDArray[np.int64]) -> Columns:
    """The rows of these queries; rows are in their order (ANSWERS_SCHEMA)."""
    rows = np.searchsorted(columns["query"], queries)
    return {name: values[rows] for name, values in columns.items()}
