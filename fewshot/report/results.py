"""Results: records of the same configuration merged over training seeds, in the order people read them."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Protocol, TypeVar

from fewshot.episodes.labels import label_count
from fewshot.errors import RecordError
from fewshot.harness.record import Record, record_key
from fewshot.harness.statistics import over_seeds

LEARNERS = (
    "mann",
    "mann_paper",
    "mann_ntm",
    "mann_dnc",
    "mann_sparse",
    "key_value",
    "attention",
    "lstm",
    "feedforward",
    "prototypical",
    "matching",
    "relation",
    "siamese",
    "maml",
    "fomaml",
    "anil",
    "metasgd",
    "reptile",
    "ridge",
    "logistic",
    "baseline",
    "baseline_pp",
    "simpleshot",
    "meta_baseline",
)
"""Learner ids in the order of rows; a learner of one's own comes after them, before REFERENCES."""

REFERENCES = ("nearest_feature", "nearest_neighbour", "count_guesser")
"""Learners that learn little or nothing, at the foot of every table."""

TRANSDUCTIVE_MARK = "†"
TRANSDUCTIVE_NOTE = (
    f"{TRANSDUCTIVE_MARK} transductive: an answer may depend on the other queries of its episode; "
    "not comparable with rows without the mark."
)

# What a record measures and how its learner was made, except for the training seed.
_MEANING = (
    "suite",
    "learner",
    "backbone",
    "image_size",
    "dataset",
    "split",
    "side",
    "rotated_test_classes",
    "data_digest",
    "protocol",
    "way",
    "shot",
    "query",
    "length",
    "counts",
    "labels",
    "chain",
    "within_group",
    "episodes",
    "episodes_digest",
    "train_dataset",
    "train_split",
    "train_protocol",
    "train_way",
    "train_shot",
    "transductive",
    "config",
)


# What the long tables say of a test in any case, as far as `added_columns` asks.
_TOLD = (
    "dataset",
    "split",
    "side",
    "rotated_test_classes",
    "protocol",
    "way",
    "shot",
    "counts",
    "labels",
)


class Figure(NamedTuple):
    """An accuracy with half widths of its 95 % intervals, in per cent.

    Over episodes, over test classes crossed with episodes, and over training seeds.
    """

    accuracy: float
    ci95: float | None
    ci95_classes: float | None
    ci95_seeds: float | None


@dataclass(frozen=True)
class Result:
    """One learner configuration under one protocol.

    records: one per training seed.
    figures: by presentation for a stream; under None for K-shot.
    links: of chains, the accuracy at presentations 2 and later in each link, 1 the first, in per cent.
    """

    records: tuple[Record, ...]
    figures: dict[int | None, Figure]
    links: dict[int, float]

    @property
    def record(self) -> Record:
        """One of the records, for what they have in common."""
        return self.records[0]

    @property
    def train_seeds(self) -> int:
        return len({record.train_seed for record in self.records})


class Measured(Protocol):
    """Whatever was measured in the setting that its record tells."""

    @property
    def record(self) -> Record: ...


AnyMeasured = TypeVar("AnyMeasured", bound=Measured)


def merge_seeds(records: Iterable[Record]) -> list[Result]:
    """Merge records that differ by training seed only: the mean accuracy and the mean half widths.

    The seeds answer the same episodes, so that their errors may go together: the mean half width is then
    an upper bound of the mean's own, and says nothing about other training seeds.

    Raises RecordError where there are no records.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        fields = record.model_dump(include=set(_MEANING), mode="json")
        groups.setdefault(json.dumps(fields, sort_keys=True), []).append(record)
    if not groups:
        raise RecordError("no records to report: make some with `fewshot run benchmarks/<suite>.toml`")
    results = [_merge(group) for group in groups.values()]
    return sorted(results, key=lambda result: _order(result.record))


def format_figure(figure: Figure) -> str:
    """ "97.9 ± 0.2": one digit, or two where the interval would read as zero."""
    if figure.ci95 is None:
        return f"{figure.accuracy:.1f}"
    digits = 1 if figure.ci95 >= 0.05 else 2
    return f"{figure.accuracy:.{digits}f} ± {figure.ci95:.{digits}f}"


def as_printed(percentage: float) -> str:
    """One digit, as papers print; two where they gave two."""
    return f"{percentage:.1f}" if round(percentage, 1) == percentage else f"{percentage:.2f}"


def counted(number: int, noun: str) -> str:
    """ "1 comparison", "2 comparisons"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_gap(points: float) -> str:
    """ "+12.2", "−0.2" or "0.0": ours minus theirs, in points."""
    rounded = round(points, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def learner_rank(learner: str) -> tuple[int, str]:
    """Where a learner stands among others: by method, variants after the plain one, numbers by their size."""
    base = learner.partition(":")[0]
    name = re.sub(r"\d+", lambda number: number[0].zfill(9), learner)
    if base in REFERENCES:
        return len(LEARNERS) + 1 + REFERENCES.index(base), name
    return LEARNERS.index(base) if base in LEARNERS else len(LEARNERS), name


def row_labels(results: Iterable[Result]) -> list[str]:
    """What each result's row is called among these: the learner, and whatever else tells it from the others.

    Results with the same label belong into one row: no two of them share a setting.
    """
    results = list(results)
    labels = [_plain_label(result.record) for result in results]
    sizes = {result.record.image_size for result in results}
    if len(sizes) > 1:
        labels = [f"{label} {_size(result)}" for label, result in zip(labels, results, strict=True)]
    for describe in (_backbone, _training, _configuration, _key):
        crowded = _crowded(labels, results)
        told = [describe(result) for result in results]
        kinds = {(label, words) for label, words in zip(labels, told, strict=True)}
        helpful = {label for label in crowded if sum(named == label for named, _ in kinds) > 1}
        labels = [
            f"{label}{words}" if label in helpful else label
            for label, words in zip(labels, told, strict=True)
        ]
    return [
        f"{label} {TRANSDUCTIVE_MARK}" if result.record.transductive else label
        for label, result in zip(labels, results, strict=True)
    ]


def grouped(
    results: Iterable[AnyMeasured], key: Callable[[Record], tuple[object, ...]]
) -> list[list[AnyMeasured]]:
    """Results with the same key side by side, in the order of the first of each."""
    groups: dict[tuple[object, ...], list[AnyMeasured]] = {}
    for result in results:
        groups.setdefault(key(result.record), []).append(result)
    return list(groups.values())


def added_columns(records: Iterable[Record], names: Iterable[str]) -> list[str]:
    """Those of the fields `names` in which tests differ that are alike in what a long table always says."""
    tests = [(tuple(getattr(record, told) for told in _TOLD), record) for record in records]
    alike = len({test for test, _ in tests})
    return [name for name in names if len({(test, getattr(record, name)) for test, record in tests}) > alike]


def test_set(record: Record) -> tuple[object, ...]:
    """What the test episodes of a record are drawn from."""
    return record.dataset, record.split, record.side, record.rotated_test_classes, record.within_group


def stream_setting(record: Record) -> tuple[object, ...]:
    """What makes streams comparable, besides what they are drawn from."""
    return *test_set(record), record.way, record.length, record.counts, record.labels, record.chain


def describe_test_set(results: Sequence[Measured]) -> str:
    """ "omniglot 28×28, split vinyals (test), upright classes"."""
    record = results[0].record
    turned = "upright and turned classes" if record.rotated_test_classes else "upright classes"
    group = ", within one alphabet" if record.within_group else ""
    sizes = " and ".join(f"{size}×{size}" for size in sorted({r.record.image_size for r in results}))
    return f"{record.dataset} {sizes}, split {record.split} ({record.side}), {turned}{group}"


def file_name(results: Sequence[Measured]) -> str:
    """ "omniglot-vinyals-test-rotated": what the episodes are drawn from, in the name of a file."""
    record = results[0].record
    turned = "-rotated" if record.rotated_test_classes else ""
    group = "-within_group" if record.within_group else ""
    name = f"{record.dataset}-{record.split}-{record.side}{turned}{group}"
    # A file's name has no slash, and cannot have a colon everywhere: "fraction:0.6/0.2/0.2@0".
    return name.replace(":", ".").replace("/", "_")


def describe_stream(record: Record) -> str:
    """ "5-way, 50 images, exact counts"."""
    labels = "" if record.labels == "one_hot" else f", {record.labels} labels"
    chain = f", chain of {record.chain} episodes" if record.chain > 1 else ""
    return f"{record.way}-way, {record.length} images, {record.counts} counts{labels}{chain}"


def chance_accuracy(record: Record) -> float:
    """The accuracy of a guess among all labels, or among all strings, in per cent."""
    return 100 / label_count(record.labels, record.way)


def began_with(record: Record) -> str | None:
    """Whose network a record's training began with, "simpleshot of mini_imagenet_cpu"; None: afresh."""
    if record.train_start is None:
        return None
    path = Path(record.train_start)
    if path.parent.name != "checkpoints":
        return path.stem
    suite = path.parts[-3] if len(path.parts) > 2 else record.suite  # a file of the record's own folder
    return f"{path.stem.rpartition('-')[0]} of {suite}"


def begun_note(records: Iterable[Record]) -> list[str]:
    """Which learners began with the network of another training; no line where none did."""
    begun: dict[str, dict[str, None]] = {}
    for record in records:
        if began := began_with(record):
            begun.setdefault(began, {})[record.learner] = None
    told = [f"that of {began}: {', '.join(names)}" for began, names in begun.items()]
    return [f"Begun with the network of another training, {'; '.join(told)}."] if told else []


def training(record: Record) -> str:
    """The training episodes of a trained learner: "20-way 1-shot episodes" or "5-way streams"."""
    if record.train_protocol == "stream":
        return f"{_span(record.train_way)}-way streams"
    return f"{_span(record.train_way)}-way {_span(record.train_shot)}-shot episodes"


def _merge(group: list[Record]) -> Result:
    """The mean over training seeds; a presentation counts where every seed was asked at it."""

    def mean(values: list[float | None]) -> float | None:
        known = [100 * value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    def merged(accuracies: list[float], ci95: list[float | None], classes: list[float | None]) -> Figure:
        seeds = over_seeds([100 * accuracy for accuracy in accuracies])
        return Figure(100 * fmean(accuracies), mean(ci95), mean(classes), seeds)

    figures: dict[int | None, Figure] = {}
    if group[0].protocol == "kshot":
        figures[None] = merged(
            [record.accuracy for record in group],
            [record.ci95 for record in group],
            [record.ci95_classes for record in group],
        )
    else:
        asked = set.intersection(*(set(record.accuracy_by_instance) for record in group))
        for k in sorted(asked):
            figures[k] = merged(
                [record.accuracy_by_instance[k] for record in group],
                [record.ci95_by_instance.get(k) for record in group],
                [record.ci95_classes_by_instance.get(k) for record in group],
            )
    links = {
        link: 100 * fmean(record.accuracy_by_link[link] for record in group)
        for link in sorted(set.intersection(*(set(record.accuracy_by_link) for record in group)))
    }
    return Result(tuple(group), figures, links)


def _order(record: Record) -> tuple[object, ...]:
    return (
        record.dataset,
        record.split,
        record.side,
        record.protocol,
        record.rotated_test_classes,
        record.counts or "",
        record.labels or "",
        record.chain,
        record.way,
        record.shot or 0,
        learner_rank(record.learner),
        record.train_dataset not in (None, record.dataset),
        record.train_dataset or "",
        record.transductive,
    )


def _plain_label(record: Record) -> str:
    elsewhere = record.train_dataset not in (None, record.dataset)
    return f"{record.learner} (trained on {record.train_dataset})" if elsewhere else record.learner


def _crowded(labels: list[str], results: list[Result]) -> set[str]:
    """Labels under which two results share a setting, or transduction differs."""
    seen: dict[str, list[tuple[object, ...]]] = {}
    for label, result in zip(labels, results, strict=True):
        record = result.record
        key = f"{label}{TRANSDUCTIVE_MARK}" if record.transductive else label
        setting = (
            *(record.rotated_test_classes, record.counts, record.way, record.shot),
            *(record.labels, record.chain),
        )
        seen.setdefault(key, []).append(setting)
    return {
        key.removesuffix(TRANSDUCTIVE_MARK)
        for key, settings in seen.items()
        if len(settings) > len(set(settings))
    }


def _size(result: Result) -> str:
    return f"{result.record.image_size}×{result.record.image_size}"


def _backbone(result: Result) -> str:
    return f", {result.record.backbone}" if result.record.backbone else ""


def _training(result: Result) -> str:
    return f", trained on {training(result.record)}" if result.record.train_protocol else ""


def _configuration(result: Result) -> str:
    return f", configuration {record_key(result.record.config)[:6]}"


def _key(result: Result) -> str:
    return f", record {result.record.key[:6]}"


def _span(value: int | tuple[int, int] | None) -> str:
    return f"{value[0]}–{value[1]}" if isinstance(value, tuple) else str(value)
