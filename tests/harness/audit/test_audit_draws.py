"""Guards on logs of draws: each planted leak is found, and honest logs are let be."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewshot.data.image_folder import load_image_folder
from fewshot.data.split import Split
from fewshot.harness.audit.draws import (
    log_is_whole,
    sides_are_apart,
    weights_were_chosen_on_validation,
)
from fewshot.harness.audit.draws import (
    test_classes_were_unseen as classes_were_unseen,
)
from fewshot.harness.config import KShotSettings, TrainSettings
from fewshot.harness.record import Record, read_draws, read_records
from fewshot.harness.train import draw_rows, draws_digest, train
from fewshot.learners.prototypical import Prototypical

HONEST = [("train", "train/00", 3), ("train", "train/00@90", 2), ("val", "val/01", 4)]


@pytest.fixture(scope="module")
def split(image_folder: Path) -> Split:
    return load_image_folder(image_folder, 12).split("folders")


@pytest.fixture
def record(tiny_results: Path) -> Record:
    """A trained one."""
    return next(record for record in read_records(tiny_results) if record.learner == "prototypical")


@pytest.fixture
def log(tiny_results: Path, record: Record) -> list[tuple[str, str, int]]:
    assert record.checkpoint is not None
    return read_draws(tiny_results / record.checkpoint)


def test_honest_logs_pass(split: Split, record: Record, log: list[tuple[str, str, int]]) -> None:
    for draws in (HONEST, log):
        assert sides_are_apart("x", draws, split).holds
        assert sides_are_apart("x", draws, None).holds
        assert classes_were_unseen("x", draws, split.test).holds
        assert classes_were_unseen("x", draws, None).holds
        assert weights_were_chosen_on_validation("x", record, draws).holds
    assert log_is_whole("x", record, log).holds


def test_a_turned_twin_on_the_other_side_is_found_by_the_log_alone() -> None:
    finding = sides_are_apart("x", [*HONEST, ("val", "train/00@180", 1)], None)
    assert not finding.holds
    assert finding.seen == "1 (train/00 on train and val) of 2 drawn"


def test_a_class_drawn_on_another_side_than_its_own_is_found(split: Split) -> None:
    stray = [*HONEST, ("train", "val/02@90", 1)]
    assert sides_are_apart("x", stray, None).holds
    assert sides_are_apart("x", stray, split).seen == "1 (val/02 of val on train) of 3 drawn"


def test_repeated_drawing_of_test_episodes_before_the_end_is_found() -> None:
    finding = classes_were_unseen("x", [*HONEST, ("test", "test/00", 30), ("test", "test/01@90", 12)], None)
    assert not finding.holds
    assert finding.seen == "2 (test/00, ...) drawn, 42 times as test classes"


def test_a_test_class_drawn_under_another_name_of_the_side_is_found(split: Split) -> None:
    finding = classes_were_unseen("x", [*HONEST, ("val", "test/03@270", 1)], split.test)
    assert not finding.holds
    assert finding.seen == "1 (test/03) drawn"


def test_a_training_that_selects_on_test_classes_leaves_a_log_that_shows_it(split: Split) -> None:
    """Though it calls them validation classes."""
    selecting = Split("leaky", split.train, replace(split.test, side="val"), split.test)
    torch.manual_seed(0)
    settings = TrainSettings(
        episodes=KShotSettings(protocol="kshot", way=3, shot=1, query=2),
        batch=2,
        steps=2,
        validate_every=1,
        validate_episodes=3,
    )
    learner = Prototypical((1, 12, 12), 3, widths=(4,))
    log = train(learner, selecting, settings)
    draws = draw_rows(log, selecting, settings)
    assert not classes_were_unseen("x", draws, split.test).holds
    assert not sides_are_apart("x", draws, split).holds


@pytest.mark.parametrize(
    "said", ["weights of step 3, the best by accuracy over test classes", "the last weights", ""]
)
def test_a_record_that_says_another_choice_than_validation_is_found(record: Record, said: str) -> None:
    finding = weights_were_chosen_on_validation("x", record.model_copy(update={"selection": said}), HONEST)
    assert not finding.holds
    assert finding.seen == f'the record says "{said}"'


def test_a_choice_of_which_the_log_knows_nothing_is_found(record: Record) -> None:
    finding = weights_were_chosen_on_validation("x", record, HONEST[:2])
    assert not finding.holds
    assert finding.seen == "the log has no validation class"


def test_an_option_that_was_tried_is_no_test_class_whatever_its_name(record: Record) -> None:
    tried = record.model_copy(update={"selection": f"options {{inner_steps_test: 1}}; {record.selection}"})
    assert weights_were_chosen_on_validation("x", tried, HONEST).holds


def test_without_a_choice_there_is_nothing_to_find(record: Record) -> None:
    untrained = record.model_copy(update={"selection": None})
    assert weights_were_chosen_on_validation("x", untrained, []).holds


def test_another_log_than_the_recorded_one_is_found(record: Record) -> None:
    assert "digest" in log_is_whole("x", record, HONEST).seen


def test_a_log_of_fewer_draws_than_the_training_made_is_found(record: Record) -> None:
    short = record.model_copy(update={"train_classes_digest": draws_digest(HONEST)})
    finding = log_is_whole("x", short, HONEST)
    assert not finding.holds
    assert finding.seen == "5 draws of training classes, 36 were needed"
