"""Accuracy against slots and stream length is drawn where records differ in them, and only there."""

from typing import Any

import numpy as np
import pytest

from fewshot.report.memory_size import memory_figures
from fewshot.report.results import Result, merge_seeds
from tests.report.test_plot import make_record


def result(slots: int | None, length: int, learner: str = "mann", **fields: Any) -> Result:
    """Accuracy at presentation k of n is 0.5 + slots / 1000 + k / 100."""
    presentations = range(1, length // 5 + 1)
    accuracy = {k: 0.5 + (slots or 0) / 1000 + k / 100 for k in presentations}
    options = fields.pop("options", {}) | ({} if slots is None else {"num_slots": slots})
    given = {
        "config": {"options": options},
        "checkpoint_sha256": "these weights",
        "length": length,
        "accuracy_by_instance": accuracy,
        "ci95_by_instance": dict.fromkeys(presentations, 0.004),
    }
    (made,) = merge_seeds([make_record(f"{learner}:{slots}", "stream", **given | fields)])
    return made


GRID = [result(slots, length) for length in (10, 50) for slots in (16, 128, 64)]
OF_IT = "memory-mann-5way-exact-omniglot-vinyals-test"


def test_lines_join_what_differs_along_the_axis() -> None:
    figure = memory_figures(GRID)[OF_IT]
    second_slots, second_length, last_slots, _ = figure.axes
    drawn = [
        [[(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)] for line in axes.lines]
        for axes in (second_slots, second_length, last_slots)
    ]

    def has(lines: list[list[tuple[float, float]]], points: list[tuple[float, float]]) -> bool:
        return any(len(line) == len(points) and np.allclose(line, points) for line in lines)

    assert has(drawn[0], [(16, 53.6), (64, 58.4), (128, 64.8)])
    assert has(drawn[1], [(10, 53.6), (50, 53.6)])
    assert has(drawn[2], [(16, 53.6), (64, 58.4), (128, 64.8)])  # of two presentations the 2nd is the last
    assert has(drawn[2], [(16, 61.6), (64, 66.4), (128, 72.8)])  # and of ten the 10th
    legends = [axes.get_legend() for axes in (second_slots, second_length)]
    assert [[text.get_text() for text in legend.get_texts()] for legend in legends] == [
        ["10", "50"],
        ["16", "64", "128"],
    ]


def test_a_chain_is_as_long_as_all_its_images() -> None:
    figure = memory_figures([*GRID, *(result(slots, 50, chain=4) for slots in (16, 64, 128))])[OF_IT]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["10", "50", "200"]


def test_lengths_alone_make_a_figure() -> None:
    lengths = [result(100, length) for length in (10, 50, 100)]
    assert memory_figures(lengths[:2]) == {}, "two are told by the table"
    figures = memory_figures(lengths)
    assert list(figures) == [OF_IT]
    assert figures[OF_IT].axes[0].get_xlim() == pytest.approx((100 / 1.1, 110)), "the one value in the middle"


def test_networks_and_kinds_of_labels_have_figures_of_their_own() -> None:
    untied = [result(slots, 10, options={"tie": False}) for slots in (16, 64, 128)]
    strings = [result(slots, 10, labels="string") for slots in (16, 64, 128)]
    figures = memory_figures([*GRID, *untied, *strings])
    plain, other, of_strings = figures
    assert plain != other
    assert all(name.startswith(f"{OF_IT}-") for name in (plain, other))
    assert of_strings == "memory-mann-5way-exact-string-omniglot-vinyals-test"
    points = [sum(len(line.get_xdata()) for line in figure.axes[0].lines) for figure in figures.values()]
    assert points == [6, 3, 3]
    title, told, *_ = (text.get_text() for text in figures[of_strings].texts)
    assert title == "mann:16 to mann:128: the size of the memory"
    assert "string labels" in told


@pytest.mark.parametrize(
    "results",
    [
        [],
        [result(128, 10), result(128, 10, counts="random")],
        [result(16, 10), result(64, 10, options={"tie": False})],
        [result(16, 10), result(64, 10, checkpoint_sha256="others")],
        [result(128, 10), result(128, 50, checkpoint_sha256="others")],
        [result(None, 10), result(None, 50)],
        [result(16, 10), result(64, 10, learner="mann_paper")],
        [result(16, 10), result(64, 10, counts="random")],
    ],
)
def test_where_the_size_does_not_vary_there_is_no_figure(results: list[Result]) -> None:
    assert memory_figures(results) == {}
