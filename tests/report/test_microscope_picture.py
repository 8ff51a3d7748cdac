"""The microscope's figure and page: what is drawn is what was watched, and the page stands alone."""

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from fewshot.harness.watched import WatchedEpisode
from fewshot.report.figure import label_color, new_figure
from fewshot.report.microscope import MOST_SLOTS, draw_microscope
from fewshot.report.microscope_page import microscope_page
from tests.report.html_pages import Page, stands_alone


@pytest.fixture
def episode() -> WatchedEpisode:
    """Three classes, six steps, four slots: step t writes to slot t % 4, and reads what its labels say."""
    labels = np.array([1, 0, 1, 2, 0, 1])
    shares = np.zeros((6, 6))
    shares[1, 0] = 1
    shares[2, :2] = 0.75, 0.25
    shares[3, :3] = 0.25, 0.25, 0.5
    shares[4, :4] = 0.0, 0.875, 0.0, 0.125
    shares[5, :5] = 0.0, 0.6, 0.4, 0.0, 0.0
    write = np.eye(4)[np.arange(6) % 4]
    held = np.zeros((6, 4, 3))
    for step in range(1, 6):
        held[step] = held[step - 1]
        held[step, step % 4] = np.eye(3)[labels[step - 1]]
    return WatchedEpisode(
        images=np.stack([np.full((1, 5, 5), 40 * step, np.uint8) for step in range(6)]),
        labels=labels,
        answers=np.array([1, 1, 1, 0, 0, 0]),
        presentation=np.array([1, 1, 2, 1, 2, 3]),
        class_names=("Greek/a", "<b>", "c & d"),
        slots=np.arange(4),
        num_slots=4,
        read_weights=np.roll(write, 1, axis=0),
        write_weights=write,
        usage=write.cumsum(axis=0),
        held=held,
        shares=shares,
    )


def panels(episode: WatchedEpisode) -> list[Axes]:
    return draw_microscope(episode, "a title", "a line").axes


def picture(axes: Axes) -> Any:
    (image,) = axes.images
    return np.asarray(image.get_array())


def test_the_panels_are_those_that_there_is_something_for(episode: WatchedEpisode) -> None:
    assert len(panels(episode)) == 6
    assert len(panels(replace(episode, usage=None))) == 5
    assert panels(episode)[-1].get_xlabel() == "step"


def test_images_stand_above_the_stored_image_that_was_read_most(episode: WatchedEpisode) -> None:
    stream = panels(episode)[0]
    shown = {(round(image.get_extent()[0]), round(image.get_extent()[3])): image for image in stream.images}
    values = {place: int(np.asarray(image.get_array()).flat[0]) // 40 for place, image in shown.items()}
    assert [values[step, 0] for step in range(6)] == [0, 1, 2, 3, 4, 5]
    assert {step: values[step, 2] for step in range(1, 6)} == {1: 0, 2: 0, 3: 2, 4: 1, 5: 1}
    texts = [text.get_text() for text in stream.texts]
    assert [text for text in texts if text in ("100", "75", "50", "88", "60")] == [
        "100",
        "75",
        "50",
        "88",
        "60",
    ]


def test_wrong_answers_stand_out(episode: WatchedEpisode) -> None:
    answers = [text for text in panels(episode)[0].texts if text.get_text() in "012"]
    assert [text.get_text() for text in answers] == list("111000")
    boxed = [text.get_bbox_patch() is not None for text in answers]
    assert boxed == [False, True, False, True, False, True]


def test_an_answer_may_name_no_class(episode: WatchedEpisode) -> None:
    nowhere = replace(episode, answers=np.array([1, -1, 1, -1, 0, 0]))
    answers = [text for text in panels(nowhere)[0].texts if text.get_text() in "012–"]
    assert [text.get_text() for text in answers] == list("1–1–00")
    boxes = [answers[step].get_bbox_patch() for step in (1, 3)]
    grey = {to_hex(box.get_facecolor()) for box in boxes if box is not None}
    assert grey == {label_color(-1)}
    assert grey.isdisjoint(label_color(label) for label in range(6))
    page = microscope_page(nowhere, new_figure(1, 1), title="", lines=[], command="")
    assert page.count('"answer": "no class"') == 2
    assert page.count(f'"answer_color": "{label_color(-1)}"') == 2


def test_bars_say_what_came_from_the_right_class(episode: WatchedEpisode) -> None:
    bars = [patch for patch in panels(episode)[1].patches if patch.__class__.__name__ == "Rectangle"]
    assert [(bar.get_x() + 0.4, bar.get_height()) for bar in bars] == [  # type: ignore[attr-defined]
        (pytest.approx(2.5), 75),
        (pytest.approx(4.5), 87.5),
        (pytest.approx(5.5), 40),
    ]


def test_shares_are_drawn_in_the_row_of_their_image_and_the_colour_of_its_class(
    episode: WatchedEpisode,
) -> None:
    drawn = picture(panels(episode)[2])
    rows = [1, 4, 0, 2, 5, 3]  # the steps, sorted by class
    for row, step in enumerate(rows):
        for now in range(6):
            strength = min(1, episode.shares[now, step] / 0.5) ** 0.5
            color = np.array(to_rgb(label_color(int(episode.labels[step]))))
            np.testing.assert_allclose(drawn[row, now], 1 - strength * (1 - color))


def test_slots_have_the_colour_of_what_lies_in_them(episode: WatchedEpisode) -> None:
    reads, writes, usage = (picture(axes) for axes in panels(episode)[3:])
    first = np.array(to_rgb(label_color(1)))
    np.testing.assert_allclose(writes[1, 1], first)  # step 1 stores image 0, of class 1
    np.testing.assert_allclose(reads[1, 2], first)  # and step 2 reads it there
    assert (reads[1, 3] > reads[1, 2]).any(), "held and not read: pale"
    assert (reads[1, 3] < 1).any()
    assert (reads[2, 1] == 1).all(), "nothing held, nothing read: white"
    assert (usage[0, 0] < usage[1, 0]).all()


def test_of_many_slots_the_most_used_are_drawn(episode: WatchedEpisode) -> None:
    many = MOST_SLOTS + 40
    weights = np.zeros((6, many))
    weights[:, 40:] = np.linspace(0.1, 1, MOST_SLOTS)
    large = replace(
        episode,
        slots=np.arange(many) * 1000,
        num_slots=10**6,
        read_weights=weights,
        write_weights=weights,
        usage=None,
        held=np.zeros((6, many, 3)),
    )
    reads = panels(large)[3]
    assert picture(reads).shape[0] == MOST_SLOTS
    assert reads.get_yticklabels()[0].get_text() == "40,000"
    assert any(f"the {MOST_SLOTS} most used of 1,000,000" in text.get_text() for text in reads.texts)


@pytest.mark.parametrize("length", [6, 60])
def test_titles_stay_within_the_figure(episode: WatchedEpisode, length: int) -> None:
    times = length // 6
    wide = replace(
        episode,
        **{
            name: np.concatenate([getattr(episode, name)] * times)
            for name in ("images", "labels", "answers", "read_weights", "write_weights", "usage", "held")
        },
        presentation=np.full(length, 2),
        shares=np.tril(np.ones((length, length)), -1) / np.maximum(np.arange(length), 1)[:, None],
    )
    figure = draw_microscope(wide, "a title", "a line of words that say something " * 4)
    figure.draw_without_rendering()
    width, height = figure.get_size_inches() * figure.dpi
    for text in [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


# --- The page -----------------------------------------------------------------------------------------------


@pytest.fixture
def page(episode: WatchedEpisode) -> str:
    figure = new_figure(1, 1)
    return microscope_page(
        episode, figure, title="a <title>", lines=["a score", "a line"], command="fewshot inspect 'a b'"
    )


def test_the_page_stands_alone(page: str) -> None:
    stands_alone(page)


def test_every_picture_of_the_page_is_described(page: str) -> None:
    pictures = Page(page).with_tag("img")
    assert len(pictures) == 6 + 1
    assert pictures[0]["alt"] == "step 0: <b>, class 1"
    assert all(attributes["alt"] for attributes in pictures)


def test_the_page_says_what_it_is(page: str) -> None:
    text = Page(page).text
    for words in ("a <title>", "a score", "a line", "fewshot inspect 'a b'"):
        assert words in text
    assert "<b>" not in page, "names are escaped"


def test_the_script_is_told_what_each_step_read(page: str) -> None:
    (told,) = re.findall(r'<script type="application/json" id="steps">(.*?)</script>', page, re.DOTALL)
    steps = json.loads(told)
    assert [step["sources"] for step in steps[:3]] == [
        [],
        [{"step": 0, "share": 100.0}],
        [{"step": 0, "share": 75.0}, {"step": 1, "share": 25.0}],
    ]
    assert [step["right"] for step in steps] == [True, False, True, False, True, False]
    assert steps[2]["slots"][0] == {"slot": 1, "weight": "1.00", "holds": "class 1"}
    assert steps[0]["right_share"] == ""
    assert steps[4]["right_share"] == "88 %"
    assert "show(5);" in page, "a wrong answer about a known class is shown first"


def test_the_table_says_the_same_without_the_script(page: str) -> None:
    row = re.sub(r"<[^>]+>|\s+", " ", page.split('<th scope="row">4</th>')[1].split("</tr>")[0])
    assert re.sub(r"\s+", " ", row).strip() == "0 2 0 88 % step 1 (class 0): 87.5 %; step 3 (class 2): 12.5 %"
