"""A results folder as one page: every table and plot is on it, and it needs nothing else."""

import base64
from pathlib import Path

import pytest

from fewshot.errors import RecordError
from fewshot.harness.record import append_record, read_records
from fewshot.report.plot import plot_suite
from fewshot.report.results_page import results_page
from fewshot.report.table import tables
from tests.report.html_pages import PICTURE, stands_alone
from tests.report.test_plot import make_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two trained learners and one that is not; a curve of the one."""
    config = {"train": {"episodes": {"protocol": "stream", "way": 5, "length": 50}}}
    untrained = dict.fromkeys(("train_steps", "train_episodes", "train_seconds", "train_protocol"))
    for record in (
        make_record("mann", "stream", config=config, commit="0123456789", dirty=False),
        make_record("mann", "stream", config=config, train_seed=1, commit="abcdef0123", dirty=True),
        make_record("my<b>own", "kshot", config={"weights": "another"}),
        make_record("nearest_neighbour", "kshot", **untrained),
    ):
        append_record(tmp_path, record)
    curve = tmp_path / "curves" / "mann-0.csv"
    curve.parent.mkdir()
    rows = ["learner,train_seed,step,episodes,seconds,loss,val_accuracy", "mann,0,10,160,2,,0.5"]
    curve.write_text("\n".join([*rows, "mann,0,20,320,4,,0.6\n"]))
    return tmp_path


def test_every_table_and_every_plot_is_on_the_page(folder: Path) -> None:
    page = stands_alone(results_page(folder, "fewshot report here"))
    titles = [table.title for table in tables(read_records(folder))]
    assert len(titles) == 2
    for title in (*titles, "Training"):
        assert page.text.count(f"\n{title}\n") == 2, "in the list of contents and above the table"
    assert len(page.with_tag("table")) == 3
    drawn = {path.read_bytes() for path in plot_suite(folder)}
    pictures = [str(image["src"]).removeprefix(PICTURE) for image in page.with_tag("img")]
    assert {base64.b64decode(picture) for picture in pictures} == drawn
    assert len(pictures) == len(drawn) == 3
    assert {str(image["alt"]).partition(" · ")[0] for image in page.with_tag("img")} == {
        "K-shot",
        "Stream: 5-way, 50 images, exact counts",
        "Learning curves",
    }


def test_the_page_says_how_it_was_made_and_escapes_names(folder: Path) -> None:
    text = results_page(folder, "fewshot report 'a b'")
    page = stands_alone(text)
    assert "Page made by fewshot report 'a b'; fewshot verify" in page.text
    assert "Learners: 3; records: 4, one per setting and training seed, made 2" in page.text
    assert "by the code of 0123456, abcdef0 (changed)." in page.text
    assert "my<b>own" in page.text
    assert "<b>" not in text


def test_the_same_records_give_the_same_page(folder: Path) -> None:
    assert results_page(folder, "") == results_page(folder, "")


def test_where_nobody_was_trained_there_is_no_table_of_training(tmp_path: Path) -> None:
    append_record(tmp_path, make_record("nearest_neighbour", "kshot", train_steps=None))
    page = stands_alone(results_page(tmp_path, ""))
    assert "Training" not in page.text
    assert len(page.with_tag("table")) == len(page.with_tag("img")) == 1


def test_a_folder_without_records_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no results in .*fewshot run"):
        results_page(tmp_path, "")
