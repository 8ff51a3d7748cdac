"""Learning curves: every seed and their mean, what is published of the same quantity, overfitting."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from fewshot.errors import RecordError
from fewshot.report.axes import plain_number
from fewshot.report.curves import (
    CURVE_COLUMNS,
    LATER_COLUMNS,
    SECOND,
    SELECTED,
    curve_figures,
    curves_figure,
    overfitting_figure,
    published_second,
    read_curves,
)
from fewshot.report.results import merge_seeds
from tests.report.test_plot import make_record

STREAM = {"protocol": "stream", "way": 5, "length": 50}


def write(folder: Path, learner: str, seed: int, columns: tuple[str, ...] = LATER_COLUMNS) -> None:
    """A curve of four looks, at 10 to 40 steps of 16 episodes; accuracy 0.5 + step / 100 + seed / 100."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{learner.replace(':', '.')}-{seed}.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow([*CURVE_COLUMNS, *columns])
        for step in range(5, 45, 5):
            accuracy = 0.5 + step / 100 + seed / 100
            looked = [
                accuracy,
                *({"train_accuracy": accuracy + 0.02, "val_second": accuracy - 0.1}[c] for c in columns),
            ]
            shown = looked if step % 10 == 0 else [""] * len(looked)
            rows.writerow([learner, seed, step, 16 * step, 6 * step, 1.2, *shown])


def lines(axes: Axes, least_width: float = 0.0) -> list[list[float]]:
    """Heights in per cent of the curves, not of level lines nor leaders to names; of at least that width."""
    drawn = [line for line in axes.lines if line.get_linewidth() >= least_width]
    heights = [np.asarray(line.get_ydata(), dtype=float) for line in drawn]
    return [values.round(6).tolist() for values in heights if len(values) > 2 and values.max() > 1]


def words(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def trained(learner: str, episodes: dict[str, Any] | None = None, **fields: Any) -> Any:
    (result,) = merge_seeds(
        [make_record(learner, "stream", config={"train": {"episodes": episodes or STREAM}}, **fields)]
    )
    return result


def test_each_seed_is_a_thin_line_and_their_mean_a_thick_one(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path, "mann", seed)
    write(tmp_path, "lstm", 0)
    for axes in curves_figure(read_curves(tmp_path), SELECTED).axes:
        assert len(lines(axes)) == 3 + 1 + 1
        assert lines(axes, least_width=1) == [[61, 71, 81, 91], [60, 70, 80, 90]]


def test_a_mean_is_of_the_steps_that_most_seeds_reached(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, "mann", seed)
    path = tmp_path / "mann-1.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    axes = curves_figure(read_curves(tmp_path), SELECTED).axes[0]
    assert lines(axes, least_width=1) == [[60.5, 70.5, 80.5]]


def test_older_curves_are_read_without_the_later_columns(tmp_path: Path) -> None:
    write(tmp_path, "mann", 0, columns=())
    write(tmp_path, "lstm", 0)
    curves = read_curves(tmp_path)
    assert tuple(curves) == (*CURVE_COLUMNS, *LATER_COLUMNS)
    assert curves[curves["learner"] == "mann"][list(LATER_COLUMNS)].isna().all(axis=None)
    assert lines(curves_figure(curves, SECOND).axes[0]) == [[50, 60, 70, 80]]
    figures = curve_figures(curves, [trained("mann")])
    assert list(figures) == ["curves", "curves-second", "overfitting"]
    assert list(curve_figures(curves[curves["learner"] == "mann"], [trained("mann")])) == ["curves"]
    assert curve_figures(read_curves(tmp_path / "absent"), [trained("mann")]) == {}


def test_variants_of_one_method_are_told_apart_by_dashes(tmp_path: Path) -> None:
    for learner in ("lstm", "lstm:tuned", "feedforward"):  # which share a colour too
        write(tmp_path, learner, 0)
    axes = curves_figure(read_curves(tmp_path), SELECTED).axes[0]
    styles = {(line.get_color(), line.get_linestyle(), str(line._dash_pattern)) for line in axes.lines[:3]}
    assert len({color for color, *_ in styles}) == 1
    assert len(styles) == 3


def test_the_second_presentation_stands_beside_what_is_published_of_it(tmp_path: Path) -> None:
    for learner in ("mann", "mann_paper"):
        write(tmp_path, learner, 0)
    results = [trained("mann"), trained("mann_paper")]
    figure = curve_figures(read_curves(tmp_path), results)["curves-second"]
    levels = [line for line in figure.axes[0].lines if set(np.asarray(line.get_ydata())) == {82.8}]
    assert len(levels) == 1
    assert words(figure.axes[1]).count("MANN (paper)") == 1
    assert "MANN (paper)" not in words(curve_figures(read_curves(tmp_path), results)["curves"].axes[1])


@pytest.mark.parametrize(
    "result",
    [
        trained("mann", STREAM | {"way": 15}),
        trained("mann", {"protocol": "kshot", "way": 5}),
        trained("mann", STREAM | {"labels": "string"}),
        trained("mann", STREAM | {"chain": 10}),
        trained("mann", chain=10),
        trained("prototypical"),
        trained("mann", dataset="glyphs"),
    ],
)
def test_what_is_published_of_something_else_is_not_drawn(result: Any) -> None:
    assert published_second([result]) == {}
    assert published_second([trained("mann")])["mann"].accuracy == 82.8


def test_whoever_was_trained_on_a_gpu_is_named(tmp_path: Path) -> None:
    write(tmp_path, "mann", 0)
    write(tmp_path, "lstm", 0)
    results = [trained("mann", train_device="NVIDIA H100"), trained("lstm", train_device="cpu")]
    results.append(trained("mann:answering_with_its_weights", train_device="NVIDIA H100"))  # has no curve
    told = [text.get_text() for text in curve_figures(read_curves(tmp_path), results)["curves"].texts]
    assert any(line.endswith("selected on  ·  on NVIDIA H100: mann") for line in told)
    several = [trained("mann", train_device=f"NVIDIA H100 {number}") for number in range(9)]
    figure = curve_figures(read_curves(tmp_path), several)["curves"]
    width = figure.get_window_extent().width
    assert all(text.get_window_extent().x1 < width for text in figure.texts)
    assert figure.texts[-2].get_text().endswith("NVIDIA H100 8: mann")
    older = [trained("mann"), trained("lstm", train_device="cpu")]
    told = [text.get_text() for text in curve_figures(read_curves(tmp_path), older)["curves"].texts]
    assert any(line.endswith("selected on") for line in told)


def test_what_the_weights_are_selected_on_decides_what_a_curve_shows() -> None:
    config = {"train": {"episodes": {"protocol": "kshot", "way": 20}, "validate_on": STREAM}}
    assert "mann" in published_second(merge_seeds([make_record("mann", "stream", config=config)]))


@pytest.mark.parametrize(("suite", "marks"), [("santoro_table1", 1), ("omniglot_first", 0)])
def test_the_papers_number_of_episodes_is_marked_where_the_paper_is_rerun(
    tmp_path: Path, suite: str, marks: int
) -> None:
    write(tmp_path, "mann", 0)
    figures = curve_figures(read_curves(tmp_path), [trained("mann", suite=suite)])
    for name in ("curves", "curves-second"):
        across = [np.asarray(line.get_xdata(), dtype=float).tolist() for line in figures[name].axes[0].lines]
        assert across.count([100_000, 100_000]) == marks


def test_long_trainings_are_told_in_plain_numbers(tmp_path: Path) -> None:
    write(tmp_path, "mann", 0)
    curves = read_curves(tmp_path)
    curves[["episodes", "seconds"]] *= 10_000
    for figure in (curves_figure(curves, SELECTED), overfitting_figure(curves)):
        figure.draw_without_rendering()
        ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
        assert "1,000,000" in ticks
        assert not any("e" in tick for tick in ticks)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.01, "0.01"),
        (0.1 + 1e-12, "0.1"),
        (1.0, "1"),
        (10.0, "10"),
        (1e6, "1,000,000"),
        (1e8, "100,000,000"),
    ],
)
def test_a_plain_number_has_no_exponent(value: float, told: str) -> None:
    assert plain_number(value) == told


def test_overfitting_has_a_panel_for_each_learner_and_says_by_how_much(tmp_path: Path) -> None:
    for learner in ("mann", "lstm", "feedforward", "prototypical", "maml"):
        write(tmp_path, learner, 0)
    figure = overfitting_figure(read_curves(tmp_path))
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in panels] == ["mann", "lstm", "feedforward", "prototypical", "maml"]
    for axes in panels:
        assert lines(axes)[:2] == [[62, 72, 82, 92], [60, 70, 80, 90]]
        assert words(axes) == ["+2.0 at the end"]


def test_a_malformed_curve_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "mann-0.csv").write_text("learner,step\nmann,1\n")
    with pytest.raises(RecordError, match=r"mann-0\.csv has no column train_seed, episodes"):
        read_curves(tmp_path)
    (tmp_path / "mann-0.csv").write_text("")
    with pytest.raises(RecordError, match=r"cannot read the curve .*mann-0\.csv"):
        read_curves(tmp_path)
