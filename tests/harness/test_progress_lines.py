"""What a pipe sees of a run."""

import pytest

from fewshot.harness.job import Update
from fewshot.harness.progress import show_updates


def test_a_stage_ends_with_a_line_even_if_one_was_just_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with show_updates() as show:
        for done in (1, 2, 3, 4):
            show(Update("mann", "training", done, 4, f"loss {done}"))
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("mann: training 1 of 4")
    assert last.startswith("mann: training 4 of 4, done in 0 s")
