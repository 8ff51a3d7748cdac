"""Plots are made for every kind of record, are PNGs of a sane size and the same from the same records."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot.errors import RecordError
from fewshot.harness.record import Record, append_record
from fewshot.report import plot
from fewshot.report.axes import spread
from fewshot.report.episode_picture import draw_kshot, draw_stream, save
from fewshot.report.figure import DOTS_PER_INCH, learner_style, new_figure
from fewshot.report.results import LEARNERS, REFERENCES, merge_seeds

LARGEST = 150_000
"""Bytes of a plot."""


def make_record(learner: str, protocol: str, **fields: Any) -> Record:
    given: dict[str, Any] = {
        "key": f"{learner}-{protocol}-{sorted(fields.items())}",
        "suite": "hand_made",
        "learner": learner,
        "config": {},
        "backbone": "conv4-64",
        "image_size": 28,
        "dataset": "omniglot",
        "split": "vinyals",
        "side": "test",
        "rotated_test_classes": False,
        "data_digest": "0",
        "protocol": protocol,
        "way": 5,
        "episodes": 1000,
        "episode_seed": 0,
        "episodes_digest": "0",
        "train_dataset": "omniglot",
        "train_split": "vinyals",
        "train_protocol": protocol,
        "train_way": 5,
        "train_shot": None,
        "train_seed": 0,
        "train_steps": 1,
        "train_episodes": 16,
        "train_seconds": 1.0,
        "selection": None,
        "device": "cpu",
        "threads": 1,
        "transductive": learner == "maml",
        "accuracy": 0.93,
        "ci95": 0.01,
        "ci95_classes": 0.02,
        "checkpoint": None,
        "checkpoint_sha256": None,
        "commit": None,
        "dirty": None,
        "versions": {},
    }
    if protocol == "kshot":
        given |= {"shot": 1, "query": 15}
    else:
        asked = (1, 2, 3, 5, 10) if learner == "maml" else tuple(range(1, 11))
        given |= {
            "length": 50,
            "counts": "exact",
            "labels": "one_hot",
            "accuracy_by_instance": {k: 1 - 0.6 / k for k in asked},
            "ci95_by_instance": dict.fromkeys(asked, 0.004),
            "ci95_classes_by_instance": dict.fromkeys(asked),
        }
    return Record(**(given | fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    learners = ("mann", "lstm", "prototypical", "maml", "my_own", "count_guesser")
    records = [make_record(learner, "stream") for learner in learners]
    records += [make_record(learner, "kshot", shot=shot) for learner in learners for shot in (1, 5)]
    records += [make_record("prototypical", "kshot", train_dataset="glyphs", accuracy=0.9)]
    records += [make_record("mann", "stream", counts="random", rotated_test_classes=True)]
    records += [make_record("mann", "stream", labels="string", chain=10)]
    for record in records:
        append_record(tmp_path, record)
    curves = tmp_path / "curves"
    curves.mkdir()
    for learner, seed in (("mann", 0), ("prototypical", 0), ("prototypical", 1)):
        rows = ["learner,train_seed,step,episodes,seconds,loss,val_accuracy"]
        rows += [f"{learner},{seed},{step},{16 * step},{step}.5,1.2," for step in range(10, 100, 10)]
        rows += [f"{learner},{seed},{step},{16 * step},{step}.5,,0.{step}" for step in range(20, 100, 20)]
        (curves / f"{learner}-{seed}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_a_suite_gives_one_plot_per_question(folder: Path) -> None:
    paths = plot.plot_suite(folder)
    assert sorted(path.name for path in paths) == [
        "curves.png",
        "kshot-omniglot-vinyals-test.png",
        "stream-5way-50-exact-omniglot-vinyals-test.png",
        "stream-5way-50-exact-string-chain10-omniglot-vinyals-test.png",
        "stream-5way-50-random-omniglot-vinyals-test-rotated.png",
    ]
    for path in paths:
        assert path.parent == folder / "plots"
        assert 5_000 < path.stat().st_size < LARGEST
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert 800 < image.width < 2200
            assert image.info.keys() == {"dpi"}  # no date, no version
    assert sorted(path.name for path in (folder / "plots").iterdir()) == sorted(path.name for path in paths)


def test_the_same_records_give_the_same_bytes(folder: Path) -> None:
    first = {path: path.read_bytes() for path in plot.plot_suite(folder)}
    assert {path: path.read_bytes() for path in plot.plot_suite(folder)} == first


def test_records_without_curves_are_plotted(folder: Path) -> None:
    for path in (folder / "curves").iterdir():
        path.unlink()
    assert "curves.png" not in [path.name for path in plot.plot_suite(folder)]


def test_published_points_and_chance_are_drawn() -> None:
    figure = plot.stream_figure(merge_seeds([make_record("mann", "stream")]))
    heights = [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].lines]
    assert any(np.array_equal(line, [36.4, 82.8, 91.0, 92.6, 94.9, 98.1]) for line in heights)
    assert any(np.array_equal(line, [20, 20]) for line in heights)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"mann", "chance", "people (paper)"} <= set(words)
    chain = plot.stream_figure(merge_seeds([make_record("lstm", "stream", chain=10)]))
    assert "people (paper)" not in [text.get_text() for text in chain.axes[0].texts]
    strings = plot.stream_figure(merge_seeds([make_record("mann", "stream", labels="string")]))
    heights = [np.asarray(line.get_ydata(), dtype=float) for line in strings.axes[0].lines]
    assert any(np.array_equal(line, [0.032, 0.032]) for line in heights)
    assert not any(np.array_equal(line, [20, 20]) for line in heights)


def test_variants_of_one_learner_in_streams_are_told_apart_by_dashes() -> None:
    """The plain one is not dashed, wherever its record stands; nor are others, with marks of their own."""
    names = ("mann:one_head", "mann", "lstm", "mann:no_encoder")
    figure = plot.stream_figure(merge_seeds([make_record(name, "stream") for name in names]))
    ours = [
        line
        for line in figure.axes[0].lines
        if line.get_markerfacecolor() != "white" and line.get_marker() in "ov"
    ]
    looks = [(line.get_color(), line.get_marker(), str(line._dash_pattern)) for line in ours]  # type: ignore[attr-defined]
    assert len(set(looks)) == len(looks) == 4
    assert [line.get_linestyle() for line in ours].count("-") == 2
    assert ours[0].get_linestyle() == "-"


def test_all_accuracies_low_or_perfect_can_be_plotted() -> None:
    for accuracy in (0.0, 0.2, 1.0):
        by_instance = dict.fromkeys((1, 2), accuracy)
        stream = make_record("lstm", "stream", accuracy_by_instance=by_instance, dataset="glyphs")
        kshot = make_record("lstm", "kshot", accuracy=accuracy, ci95=None)
        save_bytes(plot.stream_figure(merge_seeds([stream])))
        save_bytes(plot.kshot_figure(merge_seeds([kshot])))


def save_bytes(figure: Any) -> bytes:
    content = io.BytesIO()
    figure.savefig(content)
    return content.getvalue()


def test_names_beside_lines_keep_their_distance() -> None:
    heights = spread([0.1, 0.5, 0.51, 0.52, 0.99, 1.0], gap=0.05, low=0, high=1)
    assert np.diff(heights).min() >= 0.05 - 1e-9
    assert heights[0] == 0.1
    assert heights[2] == pytest.approx(0.51)
    assert heights[-1] <= 1


def test_learners_have_styles_of_their_own() -> None:
    styles = [learner_style(learner) for learner in (*LEARNERS, *REFERENCES)]
    assert len(set(styles)) == len(styles)
    assert learner_style("mann:no_tie") == learner_style("mann")
    assert learner_style("my_own") == learner_style("my_own")
    assert learner_style("my_own") not in styles


def test_a_folder_without_records_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"no results in .*fewshot run"):
        plot.plot_suite(tmp_path)
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(RecordError, match="no records"):
        plot.plot_suite(tmp_path)


def test_an_unwritable_place_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file where a folder should be")
    with pytest.raises(RecordError, match="cannot write"):
        save(new_figure(1, 1), tmp_path / "plots" / "a.png")


def pixels(figure: Any, tmp_path: Path) -> np.ndarray[Any, Any]:
    with Image.open(save(figure, tmp_path / "episode.png")) as image:
        return np.asarray(image)


def test_a_grey_kshot_episode_is_black_on_white(tmp_path: Path) -> None:
    way, shot, query = 5, 1, 15
    labels, asked = np.arange(way)[::-1], np.tile(np.arange(way), query)
    blank = np.zeros((way * query, 1, 28, 28), np.uint8)
    ink = np.full((way * shot, 1, 28, 28), 255, np.uint8)
    names = [f"Greek/character0{i}" for i in range(way)]
    figure = draw_kshot(ink, labels, blank, asked, names, "omniglot 28×28, episode 0")
    words = [text.get_text() for text in figure.axes[0].texts]
    assert [word for word in words if word in "01234"] == ["0", "1", "2", "3", "4"]
    assert "3  Greek/character03" in words
    assert len(figure.axes[0].images) == way * (shot + query)
    drawn = pixels(figure, tmp_path)
    black = (drawn == 0).all(axis=-1).sum()
    side = 0.92 * 0.62 * DOTS_PER_INCH
    assert black == pytest.approx(way * side**2, rel=0.1)  # the support only
    assert (drawn == 255).all(axis=-1).mean() > 0.6


def test_images_stand_in_the_row_of_their_label() -> None:
    labels = np.array([1, 0, 1, 0])
    images = np.stack([np.full((1, 2, 2), 10 + 100 * label, np.uint8) for label in labels])
    figure = draw_kshot(images[:2], labels[:2], images, labels, ["a", "b"], "two classes")
    values = [int(np.asarray(image.get_array()).flat[0]) for image in figure.axes[0].images]
    assert values == [10, 110, 10, 10, 110, 110]


def test_colours_are_drawn_as_they_are(tmp_path: Path) -> None:
    images = np.zeros((10, 3, 84, 84), np.uint8)
    images[:, 0] = 250
    figure = draw_kshot(images[:5], np.arange(5), images[5:], np.arange(5), list("abcde"), "red")
    assert (pixels(figure, tmp_path) == (250, 0, 0)).all(axis=-1).mean() > 0.08


def test_a_stream_marks_first_presentations() -> None:
    labels = np.array([2, 2, 0, 1, 0, 2])
    presentation = np.array([1, 2, 1, 1, 2, 3])
    images = np.zeros((6, 1, 8, 8), np.uint8)
    figure = draw_stream(images, labels, presentation, ["a", "b", "c"], "a stream", columns=4)
    captions = [text for text in figure.axes[0].texts if text.get_text() in "012"]
    assert [text.get_text() for text in captions] == ["2", "2", "0", "1", "0", "2"]
    assert [text.get_bbox_patch() is not None for text in captions] == [True, False, True, True, False, False]
    names = ["a", "b", "c"]
    figure = draw_stream(images, labels, presentation, names, "strings", ["adcba", "bbbbb", "ceeda"])
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown[:6] == ["ceeda", "ceeda", "adcba", "bbbbb", "adcba", "ceeda"]
    assert shown[6:] == ["adcba  a", "bbbbb  b", "ceeda  c"]


def test_reporting_never_imports_torch() -> None:
    code = (
        "import pkgutil, importlib, sys, fewshot.report as report\n"
        "for module in pkgutil.iter_modules(report.__path__):\n"
        "    importlib.import_module(f'fewshot.report.{module.name}')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
