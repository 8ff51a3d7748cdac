"""The ledger: which published figures were rerun here, and which of them are matched.

Which figures count, which of our records stands for one and what a match is, is said in RULES, which the page
prints; the functions below are those rules. Where a figure is not plainly matched, what was found about it is
in ledger_reasons.csv.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from fewshot.errors import RecordError
from fewshot.harness.record import RECORDS_FILE, Record, read_records
from fewshot.harness.statistics import ordinal
from fewshot.report.formats import markdown_grid
from fewshot.report.published import (
    PAPER_NAMES,
    Published,
    differences,
    learner_id,
    load_published,
    made_for,
    paper_name,
    same_backbone,
    split_family,
)
from fewshot.report.results import REFERENCES, Figure, Result, as_printed, began_with, format_gap, merge_seeds

LEAST_ACCURACY = 30.0
"""Published values below it, in per cent, do not count: some are near chance."""
LEAST_EPISODES = 1000
"""Test episodes of ours, streams of a chain counted one by one: fewer would widen the interval."""
EXCEEDS = 2.0
"""Points above the published figure from which the protocols may differ."""

RULES = f"""\
A figure is one paper, one method and one setting; all presentations of a stream are one figure. Of two
versions of a paper the final one has it; where a paper prints a setting twice (two measures, two widths),
the one listed first in published.csv of those that count. It counts if

- it is the paper's own method, or a rerun by somebody else, listed apart as such;
- the method learns: no people, no nearest neighbours, no guessers;
- it was read in its source, not recalled, and has no doubt noted beside it;
- it is {LEAST_ACCURACY:g} % or more; in a stream, presentations below that do not count, nor the first,
  at which nothing can have been learned of a class and a network only guesses;
- for Omniglot, its split is stated, and whether turned test classes count as classes.

It was rerun if a record here is of the same method, trained on the same split of the same data set, and
tested in the same setting: the same split family (of Omniglot: characters of all alphabets, 1,200 /
423; or whole alphabets), turned classes with turned and upright with upright, the same family of
backbone (four-block convolutions of any width are one; those whose features are the means of their maps,
and a recurrent network on raw pixels, are others), the same transduction (inductive where published.csv,
from papers and their code, notes none), and on {LEAST_EPISODES:,} test episodes or more. Full context of
matching networks ("FCE") makes no other method: a figure that has it says so below, and what stands for it
has none.

A variant (`mann:no_encoder`) stands for nothing but what is published under its own name, unless its name
says what it was made for: `1shot`, `20way` and `20way_1shot` were trained for tests of so many shots and
classes, as papers train for each setting anew; `inductive` and `transductive` answer so; `5shot_inductive`
is both. It stands for figures of its learner in that setting if the record agrees, trained on so many
shots and on so many classes or more, and for nothing in others.

Where several records could stand for one figure, accuracy has no say. First comes the learner that is
the paper's to the letter, then the variant made for the setting before the plain row, exact counts before
random ones, the suite named after the paper's first author, the most training seeds, the most training
episodes, those counted too of a training whose network was begun with, weights trained in the suite before
those that it takes from another, and the names of suite and learner. Ours is the mean over training
seeds, ± the 95 % interval over episodes.

*Matched*: theirs lies within or below our interval, in a stream at every presentation that counts.
*Below*: it does not. *Exceeds*: matched, and somewhere more than {EXCEEDS:g} points above theirs: the
protocols may differ.
"""


class PublishedFigure(NamedTuple):
    """One (paper, method, setting); rows: those that count, one per presentation of a stream."""

    rows: tuple[Published, ...]

    @property
    def row(self) -> Published:
        """One of the rows, for what they have in common."""
        return self.rows[0]

    @property
    def setting(self) -> str:
        """ "omniglot 5-way 1-shot, turned classes, Conv4-64, transductive"."""
        row = self.row
        labels = " of strings" if row.labels == "string" else ""
        alphabet = " within one alphabet" if row.protocol == "within_alphabet" else ""
        task = f"stream{labels}" if row.shot is None else f"{row.shot}-shot{alphabet}"
        turned = {True: ", turned classes", False: ", upright classes", None: ""}[row.rotated_test_classes]
        backbone = "raw pixels" if row.family == "recurrent" else row.backbone
        transductive = ", transductive" if row.transductive else ""
        return f"{row.dataset} {row.way}-way {task}{turned}, {backbone}{transductive}"

    @property
    def name(self) -> str:
        """ "Snell et al. 2017: ProtoNet, omniglot 5-way 1-shot, turned classes, Conv4-64"."""
        return f"{self.row.paper}: {self.row.learner}, {self.setting}"


class Rerun(NamedTuple):
    """A published figure, and the result of ours that stands for it."""

    figure: PublishedFigure
    result: Result

    @property
    def key(self) -> tuple[str, str]:
        """What reasons are kept by."""
        return self.figure.name, self.result.record.key

    @property
    def pairs(self) -> list[tuple[Published, Figure]]:
        """Theirs and ours, at each presentation that counts."""
        return [(row, self.result.figures[row.instance]) for row in self.figure.rows]

    @property
    def verdict(self) -> str:
        """ "matched", "below" or "exceeds"."""
        if any(row.accuracy > ours.accuracy + (ours.ci95 or 0) for row, ours in self.pairs):
            return "below"
        if any(ours.accuracy - row.accuracy > EXCEEDS for row, ours in self.pairs):
            return "exceeds"
        return "matched"


def read_results(folder: Path) -> list[Result]:
    """The results of all suites below a folder, by the suite's name; training seeds merged.

    Raises RecordError where there are none.
    """
    suites = sorted(path.parent for path in folder.glob(f"*/{RECORDS_FILE}"))
    if not suites:
        raise RecordError(f"no results of suites below {folder}: name the folder of the results folders")
    return [result for suite in suites for result in merge_seeds(read_records(suite))]


@cache
def published_figures() -> tuple[PublishedFigure, ...]:
    """The published figures that count, of the methods that are here, in the order of published.csv."""
    groups: dict[tuple[object, ...], list[Published]] = {}
    for row in load_published():
        if _counts(row):
            groups.setdefault(_figure_key(row), []).append(row)
    # The final version of a paper, and the variant nearest to the learner here, stand first in the file; but
    # a variant that was recalled does not count.
    versions = ([row for row in rows if row.variant == rows[0].variant] for rows in groups.values())
    return tuple(PublishedFigure(tuple(rows)) for rows in versions)


def rerun_figures(results: Sequence[Result]) -> list[Rerun]:
    """The published figures that results of ours stand beside, in the order of published.csv."""
    found = []
    made = {result.record.checkpoint_sha256: result.record for result in results}
    for figure in published_figures():
        standing = [result for result in results if not _misses(figure, result)]
        if standing:
            found.append(Rerun(figure, min(standing, key=lambda result: _standing(figure, result, made))))
    return found


def ledger_page(results: Sequence[Result]) -> str:
    """The page, in Markdown: how many published figures were rerun, which are matched, why others are not."""
    reruns = rerun_figures(results)
    verdicts = Counter(rerun.verdict for rerun in reruns)
    own = [rerun for rerun in reruns if rerun.figure.row.original]
    others = [rerun for rerun in reruns if not rerun.figure.row.original]
    begun = [rerun for rerun in reruns if began_with(rerun.result.record)]
    begun_note = ""
    if begun:
        matched, above = (
            sum(rerun.verdict in verdicts_told for rerun in begun)
            for verdicts_told in ({"matched", "exceeds"}, {"exceeds"})
        )
        begun_note = (
            f" {len(begun)} of the reruns, {matched} of the matched and {above} of those above among them, "
            "began with the network of another training, where the papers train afresh: those say with which."
        )
    parts = [
        "# Published figures beside ours",
        "`fewshot ledger results` writes this page from the records of all suites here.",
        f"**{len(reruns)} published figures were rerun**, {len(own)} of the method's own paper and "
        f"{len(others)} of reruns by others. **Matched: {verdicts['matched'] + verdicts['exceeds']}**; of "
        f"these, more than {EXCEEDS:g} points above theirs somewhere, which says that the protocols may "
        f"differ: {verdicts['exceeds']}. Below: {verdicts['below']}.{begun_note}",
        "## What counts",
        RULES.rstrip(),
        "## Figures of the method's own paper",
        _grid(own),
    ]
    if others:
        parts += ["## Figures of reruns by others", _grid(others)]
    parts += ["## Why others are not matched", _whys(reruns), "## Not rerun", *_not_rerun(results, reruns)]
    return "\n\n".join(parts) + "\n"


@cache
def load_reasons() -> dict[tuple[str, str], str]:
    """What was found where a figure is not plainly matched, by its name and the key of the record of ours.

    Another record, longer trained, is another story.
    """
    text = files("fewshot.report").joinpath("ledger_reasons.csv").read_text(encoding="utf-8")
    return {(row["figure"], row["record"]): row["reason"] for row in csv.DictReader(text.splitlines())}


def _counts(row: Published) -> bool:
    """Whether a published value counts at all."""
    learns = {name for learner, name in PAPER_NAMES.items() if learner not in REFERENCES}
    stated = row.dataset != "omniglot" or bool(row.split and row.rotated_test_classes is not None)
    return (
        row.learner.removesuffix("-persistent") in learns
        and row.confidence == "high"
        and row.accuracy >= LEAST_ACCURACY
        and row.instance != 1
        and stated
    )


def _figure_key(row: Published) -> tuple[object, ...]:
    return (
        *(
            row.paper,
            row.learner,
            row.dataset,
            split_family(row.dataset, row.split),
            row.rotated_test_classes,
        ),
        *(row.protocol, row.labels, row.way, row.shot, row.family, bool(row.transductive)),
    )


OTHERWISE = ["another task"]


def _misses(figure: PublishedFigure, result: Result) -> list[str]:
    """What keeps a result from standing for a figure; OTHERWISE where not even their tasks are the same."""
    row, record = figure.row, result.record
    protocol = "within_alphabet" if record.within_group else record.protocol
    ours = (paper_name(record), record.dataset, protocol, record.labels or "", record.way, record.shot)
    trained = (record.train_dataset, record.train_split)
    if (
        ours != (row.learner, row.dataset, row.protocol, row.labels, row.way, row.shot)
        or record.side != "test"
        or trained != (record.dataset, record.split)
    ):
        return OTHERWISE
    checks = {
        "another split": split_family(row.dataset, row.split) == split_family(record.dataset, record.split),
        "the other choice of turned or upright classes": bool(row.rotated_test_classes)
        == record.rotated_test_classes,
        "another backbone": same_backbone(record, row),
        "another transduction": bool(row.transductive) == record.transductive,
        f"fewer than {LEAST_EPISODES:,} test episodes": record.episodes * record.chain >= LEAST_EPISODES,
        "not all presentations": {each.instance for each in figure.rows} <= result.figures.keys(),
    }
    return [miss for miss, holds in checks.items() if not holds]


def _standing(
    figure: PublishedFigure, result: Result, made: Mapping[str | None, Record]
) -> tuple[object, ...]:
    """The order in which results stand for a figure; no accuracy is in it.

    made: see `_training_episodes`.
    """
    record = result.record
    author = figure.row.paper.partition(" ")[0].lower()
    return (
        list(PAPER_NAMES).index(learner_id(record)),
        -len(made_for(record)),
        record.counts == "random",
        author != record.suite.partition("_")[0],
        -result.train_seeds,
        -_training_episodes(record, made),
        record.config.get("weights") is not None,
        record.suite,
        record.learner,
    )


def _training_episodes(record: Record, made: Mapping[str | None, Record]) -> int:
    """How many episodes a record was trained on, those of what its training began with counted too.

    made: a record of each checkpoint, by its SHA-256.
    """
    before = made.get(record.train_start_sha256) if record.train_start_sha256 else None
    return (record.train_episodes or 0) + (_training_episodes(before, made) if before else 0)


def _grid(reruns: Iterable[Rerun]) -> str:
    heading = ("paper", "method", "setting", "learner (suite)", "theirs", "ours", "gap", "verdict")
    rows = []
    for rerun in reruns:
        row, record = rerun.figure.row, rerun.result.record
        presented = ", ".join(
            ordinal(each.instance) for each in rerun.figure.rows if each.instance is not None
        )
        rows.append(
            (
                f"{row.paper}, {row.table}" if row.table else row.paper,
                row.learner,
                f"{rerun.figure.setting}; {presented}" if presented else rerun.figure.setting,
                _ours(record),
                " / ".join(_theirs(theirs) for theirs, _ in rerun.pairs),
                " / ".join(f"{ours.accuracy:.2f} ± {ours.ci95 or 0:.2f}" for _, ours in rerun.pairs),
                " / ".join(format_gap(ours.accuracy - theirs.accuracy) for theirs, ours in rerun.pairs),
                rerun.verdict,
            )
        )
    return "\n".join(markdown_grid(heading, rows, words=4))


def _ours(record: Record) -> str:
    began = began_with(record)
    return f"{record.learner} ({record.suite}{f', begun with {began}' if began else ''})"


def _theirs(row: Published) -> str:
    interval = "" if row.ci95 is None else f" ± {row.ci95:g}"
    return f"{as_printed(row.accuracy)}{interval}"


def _whys(reruns: Iterable[Rerun]) -> str:
    """A line for each figure that is not plainly matched: what is known to differ, and what was found."""
    lines = []
    for rerun in reruns:
        if rerun.verdict != "matched":
            differing = "; ".join(differences(rerun.result.record, rerun.figure.row)) or "nothing known"
            reason = load_reasons().get(rerun.key, "not looked for yet")
            lines.append(f"- {rerun.figure.name}: {rerun.verdict}. Differs: {differing}. Reason: {reason}.")
    return "\n".join(lines) or "All are."


def _not_rerun(results: Sequence[Result], reruns: Iterable[Rerun]) -> list[str]:
    """Of figures without a record beside them, those that a record misses by little, and how many others."""
    done = {rerun.figure for rerun in reruns}
    missed: dict[str, list[str]] = {}
    nothing: Counter[str] = Counter()
    for figure in published_figures():
        if figure in done:
            continue
        misses = [miss for miss in (_misses(figure, result) for result in results) if miss != OTHERWISE]
        if misses:
            fewest = min(misses, key=lambda miss: len(miss))
            missed.setdefault(" and ".join(fewest), []).append(figure.name)
        else:
            nothing[figure.row.dataset] += 1
    counted = ", ".join(f"{dataset} {count}" for dataset, count in nothing.most_common())
    total = len(published_figures())
    parts = [
        f"{total - len(done)} of the {total} figures that count, of the methods that are here. Nothing is "
        f"recorded of the method in that task: {counted or 'none'}."
    ]
    for reason, names in sorted(missed.items()):
        parts += [f"What is recorded has {reason}:", "\n".join(f"- {name}" for name in names)]
    return parts
