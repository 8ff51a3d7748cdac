"""Guards on what a training drew, by its log of draws: (side, class name, times drawn) of every class.

Each checkpoint has such a log. A class is the set of its images, so classes that stay apart keep their images
apart; a turned class is its parent's twin and belongs to its parent's side.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from fewshot.data.split import ClassPool, Split, upright_name
from fewshot.errors import RecordError
from fewshot.harness.audit.finding import Finding
from fewshot.harness.record import Draws, Record
from fewshot.harness.train import draws_digest
from fewshot.harness.trials import recorded_trials

TRAIN_APART = "train it again on one split, whose sides do not overlap"
SELECT_ON_VALIDATION = "train it again, with weights chosen on validation classes"


def sides_are_apart(subject: str, draws: Draws, split: Split | None) -> Finding:
    """No class was drawn on two sides, turned or not, or on another than its own.

    split: of the classes, where it is at hand.
    """
    sides: dict[str, set[str]] = defaultdict(set)
    for side, name, _ in draws:
        sides[upright_name(name)].add(side)
    strays = [f"{parent} on {' and '.join(sorted(on))}" for parent, on in sides.items() if len(on) > 1]
    for pool in (split.train, split.val, split.test) if split else ():
        for parent in pool.parents_among(name for side, name, _ in draws if side != pool.side):
            elsewhere = " and ".join(sorted(sides[parent] - {pool.side}))
            strays.append(f"{parent} of {pool.side} on {elsewhere}")
    seen = f"{len(sides):,} classes drawn, each on its own side"
    if strays:
        seen = f"{_some(strays)} of {len(sides):,} drawn"
    return Finding("sides are apart on what was drawn", subject, not strays, seen, TRAIN_APART)


def test_classes_were_unseen(subject: str, draws: Draws, test: ClassPool | None) -> Finding:
    """No test class was drawn before the final evaluation.

    test: the classes of the evaluation, where the training drew from the same data set.
    """
    times = {name: count for side, name, count in draws if side == "test"}
    early = sorted({upright_name(name) for name in times})
    if test is not None:
        early = sorted({*early, *test.parents_among(name for _, name, _ in draws)})
    seen = f"none of {len(test):,}" if test is not None else "none, by the log"
    if early:
        drawn = f", {sum(times.values()):,} times as test classes" if times else ""
        seen = f"{_some(early)} drawn{drawn}"
    guard = "test classes were never drawn before the end"
    return Finding(guard, subject, not early, seen, SELECT_ON_VALIDATION)


def weights_were_chosen_on_validation(subject: str, record: Record, draws: Draws) -> Finding:
    """What the record says of the choice is validation, and the log has the draws of it."""
    guard = "weights were chosen on validation classes"
    said = record.selection
    if said is None:
        return Finding(guard, subject, True, "there was no choice", SELECT_ON_VALIDATION)
    if "over validation classes" not in said or re.search(r"\btest\b", said):
        return Finding(guard, subject, False, f'the record says "{said}"', SELECT_ON_VALIDATION)
    looks = sum(count for side, _, count in draws if side == "val")
    seen = f"{looks:,} draws of validation classes" if looks else "the log has no validation class"
    return Finding(guard, subject, looks > 0, seen, SELECT_ON_VALIDATION)


def settings_are_the_best_tried(subject: str, folder: Path, record: Record) -> list[Finding]:
    """What was tried on validation classes chose the settings, where something was."""
    guard, remedy = "settings are the best tried on validation classes", "run it again with --fresh"
    try:
        held = recorded_trials(folder, record)
    except RecordError as error:
        return [Finding(guard, subject, False, str(error), remedy)]
    return [Finding(guard, subject, True, str(held), remedy)] if held else []


def log_is_whole(subject: str, record: Record, draws: Draws) -> Finding:
    """The log is the one recorded, and has as many draws as the training had episodes and classes."""
    guard, remedy = "the log has all that was drawn", "restore the log, or train again"
    if draws_digest(list(draws)) != record.train_classes_digest:
        return Finding(guard, subject, False, "its digest is not the recorded one", remedy)
    counted = sum(count for side, _, count in draws if side == "train")
    way = record.train_way or 0
    least = (record.train_episodes or 0) * (way if isinstance(way, int) else min(way))
    seen = f"{counted:,} draws of training classes"
    if counted < least:
        seen += f", {least:,} were needed"
    return Finding(guard, subject, counted >= least, seen, remedy)


def _some(names: Sequence[str]) -> str:
    """The number of names, and the first of them."""
    return f"{len(names):,} ({names[0]}{', ...' if len(names) > 1 else ''})"
