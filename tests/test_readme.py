"""The READMEs are true: their snippets run and print what they show, their commands and links exist.

A block of Python after the line `<!-- test -->` is run, all of them in one namespace and one folder; after
`<!-- test: name.py -->` it is written to that file. A block without a language after a block that is run is
its output: the same words, with whatever numbers.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from benchmarks.readme_tables import DEMO, PAGES, printed_tables, with_current_tables
from benchmarks.suite_keys import HEAD, TABLES, suite_keys
from fewshot.cli import app
from fewshot.errors import RecordError
from fewshot.harness import config
from fewshot.harness.config import parse_suite
from fewshot.learners.registry import learner_class, options_of

ROOT = Path(__file__).parents[1]
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


class Block(NamedTuple):
    """file: where the block is to be written; run: whether it is marked to be run; output: what it prints."""

    language: str
    text: str
    run: bool
    file: str
    output: str | None


def blocks(text: str) -> list[Block]:
    pattern = re.compile(
        r"(?P<mark><!-- test(?:: (?P<file>\S+))? -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
        re.DOTALL | re.MULTILINE,
    )
    found = list(pattern.finditer(text))
    made = []
    for block, after in zip(found, [*found[1:], None], strict=True):
        follows = after and not after["language"] and not text[block.end() : after.start()].strip()
        output = after["text"] if after and follows else None
        made.append(Block(block["language"], block["text"], bool(block["mark"]), block["file"] or "", output))
    return made


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,]*(\.\d+)?", "#", text)


def test_the_marked_snippets_run_and_print_what_is_shown(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = [block for block in blocks(TEXTS["README.md"]) if block.run]
    assert [block for block in marked if block.language == "python" and not block.file], (
        "README.md has no block of Python that is marked <!-- test -->"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    namespace: dict[str, Any] = {"__name__": "readme"}
    try:
        for block in marked:
            if block.file:
                (tmp_path / block.file).write_text(block.text, encoding="utf-8")
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                if block.language == "toml":
                    _check_learners(block.text)
                else:
                    exec(compile(block.text, "README.md", "exec"), namespace)
            if block.output is not None:
                assert without_numbers(printed.getvalue()) == without_numbers(block.output)
    finally:
        for name in {block.file.removesuffix(".py") for block in marked} & (set(sys.modules) - before):
            del sys.modules[name]


def _check_learners(text: str) -> None:
    """Part of a suite: its learners are there and take their options."""
    suite = parse_suite(
        {
            "title": "README",
            "data": {"dataset": "glyphs", "split": "default"},
            "test": [{"protocol": "kshot"}],
            "learner": [{"id": "prototypical"}],
        }
        | tomllib.loads(text),
        "readme",
        "README.md",
    )
    for learner in suite.learner:
        options_of(learner_class(learner.id), learner.options)


def shown_commands() -> list[list[str]]:
    shown = [block for text in TEXTS.values() for block in blocks(text) if block.language == "console"]
    lines = [line for block in shown for line in block.text.splitlines()]
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith("$ ")]


def disarmed_command() -> Any:
    """The `fewshot` command, which parses as ever and then does nothing."""
    command = typer.main.get_command(app)
    waiting: list[Any] = [command]
    while waiting:
        current = waiting.pop()
        below = list(getattr(current, "commands", {}).values())
        waiting += below
        if not below:
            current.callback = lambda **_: None
    return command


MADE_BY_THE_USER = ("results/demo", "results/mine")


@pytest.mark.parametrize("command", shown_commands(), ids=" ".join)
def test_a_command_that_is_shown_exists(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = command
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in arguments:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make has no target {target}"
        return
    if program != "fewshot":
        return
    disarmed_command().main(arguments, standalone_mode=False)  # raises for what does not parse
    for argument in arguments:
        if argument.startswith(("benchmarks/", "results/")) and not argument.startswith(MADE_BY_THE_USER):
            assert (ROOT / argument).exists(), f"{argument} is not there"


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    for arguments in (["data", "got"], ["run", "x.toml", "--fersh"], ["verify"]):
        with pytest.raises(Exception, match=r"No such|Missing"):
            disarmed_command().main(arguments, standalone_mode=False)


@pytest.mark.parametrize("page", PAGES)
def test_recorded_tables_are_those_of_the_records(page: str) -> None:
    assert with_current_tables(TEXTS[page]) == TEXTS[page], (
        "`python -m benchmarks.readme_tables` writes them again"
    )


def test_a_table_that_differs_would_be_noticed() -> None:
    folder = "results/santoro_lake"
    block = f"$ fewshot table {folder}\n{next(iter(printed_tables(folder).values()))}\n```"
    assert with_current_tables(block.replace("mann ", "man  ")) == with_current_tables(block)
    with pytest.raises(RecordError, match=r"^a page shows a table that [^\n]*Stream[^\n]*$"):
        with_current_tables(block.replace("omniglot", "glyphs"))


def test_a_demo_or_a_comparison_that_differs_would_be_noticed() -> None:
    """Of the demo its tables; where they lie, and how many records are new, is its own."""
    demo = "\n\n".join([*printed_tables(DEMO).values(), "results/demo/plots/curves.png\n18 new records"])
    block = f"$ make demo\n{demo}\n```"
    assert with_current_tables(block.replace("mann ", "man  ")) == block
    shown = next(
        block.text
        for text in TEXTS.values()
        for block in blocks(text)
        if block.text.startswith("$ fewshot compare results/")
    )
    block = f"{shown}```"
    assert with_current_tables(block.replace("\nall ", "\nsum ").replace("\nA: ", "\nA: not ")) == block


def test_a_key_that_differs_would_be_noticed() -> None:
    page = TEXTS["benchmarks/README.md"]
    assert page.count(HEAD) == 1
    assert with_current_tables(page.replace("| `steps` |", "| `stpes` |")) == page


def test_every_key_of_a_suite_is_explained() -> None:
    for row in suite_keys().splitlines()[2:]:
        _, key, *_, meaning, _ = columns = row.split("|")
        assert len(columns) == 6, f"a row has {len(columns) - 2} columns: {row}"
        assert meaning.strip(), f"{key} has no docstring beneath it in fewshot/harness/config.py"
    models = {
        model
        for model in vars(config).values()
        if isinstance(model, type) and issubclass(model, config.Settings)
    }
    assert models - {config.Settings, config.KShotTest, config.StreamTest} == {model for _, model in TABLES}
    assert "| `way` | integer or [integer, integer] | 5 | Classes of an episode |\n" in suite_keys()
    assert "| `rotated` | [true or false, …] | [false] | Whether turned test classes" in suite_keys()
    assert "| `scale` | number ≥ 0, ≤ 0.9 | 0.0 | " in suite_keys()
    assert '| `optimizer` | "adam" or "rmsprop" or "sgd" | "adam" | ' in suite_keys()
    assert (
        '| { protocol = "kshot", way = 5, shot = 1, query = 5 } | The protocol of the training'
        in suite_keys()
    )


LINKS = [
    (page, link)
    for page, text in TEXTS.items()
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    if "://" not in link
]


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page: str, link: str) -> None:
    assert os.path.lexists((ROOT / page).parent / link)
