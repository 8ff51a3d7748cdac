"""Figures that others have published, and which of them stands beside a figure of ours.

`published.csv` holds accuracies in per cent, each with its protocol, backbone, transduction, where it was
read (`source`, a number of `published_sources.csv`), and a confidence: "low" rows were recalled, or are
doubtful for the reason in `note`.
Santoro's figures are stream figures only: the 82.8 and 94.9 that later papers cite as "5-way 1-shot and
5-shot" are presentations 2 and 5 of a stream, which is another task, and are left out as such.

A published figure stands beside ours where method, dataset, protocol, labels, way, and shot or presentation
are the same and the backbones are of one family (any four-block convolution; ResNet-12; ...). Methods that
are themselves recurrent networks on pixels (MANN, LSTM) need no common family. Beside chains of episodes
stand figures of memories that are never wiped ("MANN-persistent"). Validation classes, another training
dataset, a split of one's own (`own_split`) and variants ("mann:no_tie") have no published counterpart, but
for those in PAPER_NAMES and those that say what they were made for, where that is so (`made_for`). Where
several figures qualify, those of the method's own paper (`original`) come first, then those with our
transduction, then the earliest. Figures of low confidence are used from the method's own paper only, and say
so. What still differs is listed by `differences`. Which of them our records rerun, where less may differ, is
for `fewshot.report.ledger` to say.
"""

import csv
import re
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fewshot.harness.record import Range, Record
from fewshot.report.results import began_with

PAPER_NAMES = {
    "mann_paper": "MANN",
    "mann": "MANN",
    "mann:feedforward": "MANN-feedforward",
    "mann_ntm": "MANN-NTM",
    "key_value": "MemoryModule",
    "lstm": "LSTM",
    "feedforward": "Feedforward",
    "prototypical": "ProtoNet",
    "matching": "MatchingNet",
    "relation": "RelationNet",
    "siamese": "Siamese",
    "maml": "MAML",
    "fomaml": "FOMAML",
    "anil": "ANIL",
    "metasgd": "MetaSGD",
    "reptile": "Reptile",
    "ridge": "R2D2",
    "baseline": "Baseline",
    "baseline_pp": "Baseline++",
    "simpleshot": "SimpleShot",
    "meta_baseline": "Meta-Baseline",
    "nearest_feature": "NearestNeighbour",
}
"""Learner id -> the method's name in published.csv; that of `nearest_neighbour` depends on the protocol.

Of two ids of one method, the one that is the paper's to the letter comes first.
"""

CHARACTERS = "characters of all alphabets, 1,200 / 423"
SPLIT_FAMILIES = {
    "vinyals": CHARACTERS,
    "santoro": CHARACTERS,
    "random 1,200 / 423 classes": CHARACTERS,
    "lake": "whole alphabets",
}
"""Splits of Omniglot that ask the same: new characters of known alphabets, or of new ones."""

ANY_BACKBONE = {"mann", "mann:feedforward", "mann_paper", "mann_ntm", "key_value", "lstm", "feedforward"}


class Published(BaseModel):
    """One figure of a paper or a repository; accuracy and ci95 in per cent. None or "" where not stated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learner: str
    variant: str = ""
    paper: str
    table: str = ""
    year: int
    original: bool
    dataset: str
    split: str = ""
    rotated_test_classes: bool | None = None
    protocol: Literal["kshot", "stream", "within_alphabet"]
    labels: str = ""
    way: int
    shot: int | None = None
    instance: int | None = None
    backbone: str
    family: str
    transductive: bool | None = None
    accuracy: float
    ci95: float | None = None
    confidence: Literal["high", "low"]
    note: str = ""
    source: str

    @property
    def citation(self) -> str:
        """ "Santoro et al. 2016, Table 1", with the doubt where there is one."""
        cited = f"{self.paper}, {self.table}" if self.table else self.paper
        return f"{cited} ({self.note})" if self.confidence == "low" else cited


@cache
def load_published() -> tuple[Published, ...]:
    """All published figures of the package, in the file's order."""
    sources = {row["number"]: row["source"] for row in _read_csv("published_sources.csv")}
    return tuple(
        Published.model_validate(
            {name: cell for name, cell in row.items() if cell} | {"source": sources[row["source"]]}
        )
        for row in _read_csv("published.csv")
    )


def _read_csv(name: str) -> list[dict[str, str]]:
    text = files("fewshot.report").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def find_published(record: Record, instance: int | None = None) -> Published | None:
    """The published figure that stands beside a record's, or None.

    instance: the presentation in a stream; None for K-shot.
    """
    name = paper_name(record)
    if (
        name is None
        or own_split(record)
        or record.side != "test"
        or record.train_dataset not in (None, record.dataset)
    ):
        return None
    protocol = "within_alphabet" if record.within_group else record.protocol
    candidates = [
        row
        for row in load_published()
        if (row.learner, row.dataset, row.protocol) == (name, record.dataset, protocol)
        and (row.way, row.shot, row.instance) == (record.way, record.shot, instance)
        and row.labels == (record.labels or "")
        and (learner_id(record) in ANY_BACKBONE or row.family == backbone_family(record.backbone))
        and (row.original or row.confidence == "high")
    ]
    return min(
        candidates,
        key=lambda row: (
            not row.original,
            row.transductive not in (None, record.transductive),
            row.confidence == "low",
            row.year,
        ),
        default=None,
    )


def human_stream(record: Record) -> dict[int, Published]:
    """People's accuracy by presentation (Santoro et al. 2016, Table 1); empty for another task."""
    if own_split(record) or record.chain > 1:
        return {}
    return {
        row.instance: row
        for row in load_published()
        if (row.learner, row.protocol) == ("Human", "stream")
        and (row.dataset, row.way, row.labels) == (record.dataset, record.way, record.labels)
        and row.instance is not None
    }


def own_split(record: Record) -> bool:
    """Whether the classes were divided here: no paper has the same, whatever the images are called."""
    return record.split == "folders" or record.split.startswith("fraction:")


def differences(record: Record, published: Published) -> tuple[str, ...]:
    """How the published setting is known to differ from the record's, in a few words about each."""
    found = []
    if published.split and published.split != record.split:
        found.append(f"split {published.split}")
    if published.rotated_test_classes not in (None, record.rotated_test_classes):
        found.append(
            "turned test classes count as classes"
            if published.rotated_test_classes
            else "upright test classes only"
        )
    if _plain(published.backbone) != _plain(record.backbone):
        found.append(f"backbone {published.backbone}")
    if published.transductive not in (None, record.transductive):
        found.append("transductive" if published.transductive else "inductive")
    if published.variant and not published.variant.startswith("transductive"):
        found.append(published.variant)
    if record.counts is not None:
        found.append("counts per class not stated")
    if (began := began_with(record)) and "pre-trained" not in published.variant:
        found.append(f"trained afresh, ours began with the network of {began}")
    return tuple(found)


def paper_name(record: Record) -> str | None:
    """The name under which published.csv has the method of a record; None where it has none."""
    if record.learner == "nearest_neighbour":
        name: str | None = "kNN" if record.protocol == "stream" else "Pixels"
    else:
        name = PAPER_NAMES.get(learner_id(record))
    return f"{name}-persistent" if name and record.chain > 1 else name


def learner_id(record: Record) -> str:
    """The id of a record's learner as PAPER_NAMES has it: without what it was made for, where that is so."""
    return record.learner.partition(":")[0] if made_for(record) else record.learner


def made_for(record: Record) -> tuple[str, ...]:
    """What the variant of a record says it was made for: ("5shot", "inductive") of "maml:5shot_inductive".

    "5shot" and "20way" are trained for tests of 5 shots and of 20 classes, "inductive" and "transductive"
    answer so. Empty where a word says anything else, or what is not so of this record.
    """
    words = record.learner.partition(":")[2].split("_")
    return tuple(words) if all(_is_so(word, record) for word in words) else ()


def split_family(dataset: str, split: str) -> str:
    """What a split asks; of other data sets than Omniglot its name, which papers leave out where it is the
    only one that anybody uses."""
    return SPLIT_FAMILIES.get(split, split) if dataset == "omniglot" else split


def same_backbone(record: Record, published: Published) -> bool:
    """Whether both see images through one kind of network.

    A recurrent network on pixels is another kind, and so are convolutions whose features are means of maps.
    """
    if published.family == "recurrent":
        return record.backbone is None
    return published.family == backbone_family(record.backbone) and (
        ("averaged" in _plain(published.backbone)) == ("averaged" in _plain(record.backbone))
    )


def backbone_family(backbone: str | None) -> str:
    """The family of a backbone's name: "conv4-64" -> "conv4", "resnet12" -> "resnet12", None -> "none"."""
    name = _plain(backbone)
    match = re.match(r"conv\d|resnet\d+|wrn\d+|mlp|none", name)
    return match[0] if match else name


def _is_so(word: str, record: Record) -> bool:
    """Whether a record agrees with a word of its variant; training on more ways is for fewer as well."""
    if word in ("inductive", "transductive"):
        return record.transductive == (word == "transductive")
    counted = re.fullmatch(r"([1-9]\d*)(way|shot)", word)
    if counted is None:
        return False
    count = int(counted[1])
    if counted[2] == "way":
        return record.way == count <= _ends(record.train_way)[1]
    least, most = _ends(record.train_shot)
    return record.shot == count and least <= count <= most


def _ends(trained: Range | None) -> tuple[int, int]:
    """The least and the largest number trained on; zeros where there is none."""
    return trained if isinstance(trained, tuple) else (trained or 0, trained or 0)


def _plain(backbone: str | None) -> str:
    return re.sub(r"[^a-z0-9]", "", (backbone or "none").lower())
