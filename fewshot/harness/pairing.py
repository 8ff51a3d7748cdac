"""Which records of two learners answered the same test episodes, and how the learners compare on them.

Episode i is a function of the class pool, the protocol, the episode seed and i alone (design decision 1). So
the records of one setting hold answers to the same episodes: to the first of them, where one was asked fewer.
That they are the same is said by the digests of as many episodes, and by the classes of their answers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from fewshot.errors import RecordError, unknown
from fewshot.harness.comparison import Answered, Compared, compare, holm
from fewshot.harness.config import DataSettings
from fewshot.harness.plan import load_split
from fewshot.harness.record import Record, answer_columns, read_answers, read_records

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


class Contender(NamedTuple):
    """A learner of a results folder."""

    folder: Path
    learner: str

    def __str__(self) -> str:
        return f"{self.learner} of {self.folder}"


def compare_learners(
    a: Contender,
    b: Contender,
    presentations: Sequence[int] = PRESENTATIONS,
    root: Path | None = None,
) -> list[Compared]:
    """Compare two learners in every setting that both were tested in; p-values are corrected over all rows.

    presentations: those of streams that are compared, beside all answers together. root: the data directory,
    asked only where turned classes are among the test classes, as a class and its turned copies are no
    independent evidence.

    Raises RecordError where a learner is not in its folder, where the two share no test, and where records of
    one setting are about different episodes.
    """
    tests_a, tests_b = _by_setting(a), _by_setting(b)
    shared = [setting for setting in tests_a if setting in tests_b]
    if not shared:
        raise RecordError(
            f"{a} and {b} were not tested on the same episodes ({_least_difference(tests_a, tests_b)}): "
            "give both the same tests in a suite, on images of one size"
        )
    rows = [
        row
        for setting in shared
        for row in _compare_setting(a, tests_a[setting], b, tests_b[setting], presentations, root)
    ]
    corrected = holm([row.comparison.p_value for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def _by_setting(contender: Contender) -> dict[Setting, list[Record]]:
    """The learner's records by what they were tested on, one for each training seed."""
    records = read_records(contender.folder)
    found: dict[Setting, list[Record]] = {}
    for record in records:
        if record.learner == contender.learner:
            found.setdefault(tuple(getattr(record, name) for name in _SETTING), []).append(record)
    if not found:
        names = {record.learner for record in records}
        raise RecordError(unknown(f"learner of {contender.folder}", contender.learner, names))
    for of_setting in found.values():
        of_setting.sort(key=lambda record: record.train_seed or 0)
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


def _compare_setting(
    a: Contender,
    records_a: list[Record],
    b: Contender,
    records_b: list[Record],
    presentations: Sequence[int],
    root: Path | None,
) -> list[Compared]:
    """The rows of one setting, their p-values not yet corrected."""
    episodes = _shared_episodes(a, b, records_a + records_b)
    parents = _parents(records_a[0], root)
    answers = [_read(a.folder, record, episodes, parents) for record in records_a]
    answers += [_read(b.folder, record, episodes, parents) for record in records_b]
    # A learner may have been asked at some presentations only: what counts is what all were asked.
    common = reduce(np.intersect1d, [columns["query"] for columns in answers])
    answers = [_chosen(columns, common) for columns in answers]
    first = answers[0]
    for columns in answers:
        if any((columns[name] != first[name]).any() for name in ("class_id", "count")):
            raise RecordError(_other_episodes(a, b, "the classes of their answers differ"))
    correct = np.stack([columns["correct"] for columns in answers])
    seeds = len(records_a)
    found = compare(
        first["episode"],
        first["class_id"],
        first["presentation"],
        first["count"],
        Answered(correct[:seeds], trained=records_a[0].train_seed is not None),
        Answered(correct[seeds:], trained=records_b[0].train_seed is not None),
        presentations if records_a[0].protocol == "stream" else (),
        same_trainings=_same_trainings(records_a, records_b),
    )
    return [
        Compared(tuple(records_a), tuple(records_b), k, episodes, comparison, comparison.p_value)
        for k, comparison in found.items()
    ]


def _same_trainings(a: list[Record], b: list[Record]) -> bool:
    """Whether both answered with the same weights, seed by seed."""
    weights = [[(record.train_seed, record.checkpoint_sha256) for record in records] for records in (a, b)]
    return weights[0] == weights[1] and None not in weights[0][0]


def _shared_episodes(a: Contender, b: Contender, records: list[Record]) -> int:
    """How many episodes, the first ones, all records answered; RecordError where they are not the same."""
    digests = {(record.episodes, record.episodes_digest) for record in records}
    if len(digests) > len({episodes for episodes, _ in digests}):
        raise RecordError(_other_episodes(a, b, "the digests of their episodes differ"))
    if len({record.method_versions.get("sampler") for record in records}) > 1:
        raise RecordError(_other_episodes(a, b, "different versions of the sampler drew them"))
    return min(record.episodes for record in records)


def _other_episodes(a: Contender, b: Contender, reason: str) -> str:
    return f"{a} and {b} were not tested on the same episodes: {reason}; run both again with one version"


def _parents(record: Record, root: Path | None) -> NDArray[np.int64] | None:
    """What `answer_columns` has to know of a record's classes; of turned ones the images' split says it."""
    if not record.rotated_test_classes:
        return None
    settings = DataSettings(dataset=record.dataset, split=record.split, image_size=record.image_size)
    pool = load_split(settings, root).side(record.side).with_rotations()
    if pool.digest != record.data_digest:
        raise RecordError(
            f"the images or the classes of {record.dataset}, split {record.split}, are not those recorded: "
            "give the data directory that holds them"
        )
    return pool.class_index.numpy()


def _read(folder: Path, record: Record, episodes: int, parents: NDArray[np.int64] | None) -> Columns:
    """The columns of a record's answers in its first episodes, and a number for the query of each row."""
    table = read_answers(folder, record)
    table = table.filter(pc.less(table["episode"], episodes))
    columns = answer_columns(table, parents)
    columns = {name: values.astype(np.int64) for name, values in columns.items()}
    label = np.asarray(table["label"].to_numpy())
    query = (columns["episode"] << 32) + (label.astype(np.int64) << 16) + columns["presentation"]
    return columns | {"query": query}


def _chosen(columns: Columns, queries: NDArray[np.int64]) -> Columns:
    """The rows of these queries; rows are in their order (ANSWERS_SCHEMA)."""
    rows = np.searchsorted(columns["query"], queries)
    return {name: values[rows] for name, values in columns.items()}
