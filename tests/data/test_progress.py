"""Only what takes long is talked about."""

import pytest

from fewshot.data import progress as module
from fewshot.data.progress import progress


def test_quick_work_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading", 10) as advance:
        for _ in range(10):
            advance(1)
    assert capsys.readouterr() == ("", "")


def test_long_work_gives_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 2.5, 3.0, 13.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("reading", 2_000) as advance:
        for _ in range(4):
            advance(400)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "reading: 800 of 2,000, 4 s left",
        "reading: 1,600 of 2,000, 3 s left",
    ]
