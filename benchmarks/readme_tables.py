"""The READMEs' tables, brought up to date: `python -m benchmarks.readme_tables`.

A block of a page that begins with `$ fewshot table results/X` shows some of that folder's tables, each as
the command prints it; the comment behind the command says how many of how many. So does one that begins with
`$ fewshot compare results/X`, with the notes beneath; and `$ make demo`, which shows the tables of its
recorded run before what else it prints. Which tables a block shows is told by their titles in it; what they
say comes from the records. A table with the head of `benchmarks.suite_keys` is made by that.
"""

import io
import re
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

from benchmarks.suite_keys import HEAD, suite_keys
from fewshot.cli import app
from fewshot.errors import RecordError
from fewshot.harness.record import RECORDS_FILE

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "benchmarks/README.md")
DEMO = "results/quickstart"
"""The recorded run of `make demo`."""
_BLOCK = re.compile(
    r"^\$ (?P<command>make demo|fewshot (?:table|compare) (?P<folder>results/\w+)[^#\n]*?)(?: +#[^\n]*)?\n"
    r"(?P<shown>.*?)\n```$",
    re.MULTILINE | re.DOTALL,
)
_KEYS = re.compile(rf"^{re.escape(HEAD)}\n(?:\|.*\n)*", re.MULTILINE)
_HEADING = re.compile(r"\n(?:learner|setting|presented) ")
_COMPARED = "\nA: "  # how the notes beneath all tables of a comparison begin
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def printed_tables(folder: str) -> dict[str, str]:
    """What `fewshot table` prints of a results folder, by title, in its order."""
    return _by_title(_printed("table", folder))


def with_current_tables(text: str) -> str:
    """A page with its tables as they are now; RecordError names one that the records do not give."""
    return _KEYS.sub(lambda _: suite_keys(), _BLOCK.sub(_current_block, text))


def _printed(*arguments: str) -> str:
    """What `fewshot` prints; results folders are those of this checkout."""
    places = [str(ROOT / argument) if argument.startswith("results/") else argument for argument in arguments]
    with redirect_stdout(io.StringIO()) as printed:
        app(places, standalone_mode=False)
    return printed.getvalue().strip("\n").replace(f"{ROOT}/", "")


def _by_title(tables: str) -> dict[str, str]:
    return {_title(table): table for table in tables.split("\n\n")}


def _title(table: str) -> str:
    return _HEADING.split(table, 1)[0]


def _current_block(block: re.Match[str]) -> str:
    command, folder = block["command"], block["folder"] or DEMO
    if not (ROOT / folder / RECORDS_FILE).exists():
        return block[0]  # the reader's own results
    arguments = shlex.split(command)[1:] if block["folder"] else ["table", DEMO]
    tables, mark, notes = _printed(*arguments).partition(_COMPARED)
    printed = _by_title(tables)
    parts = block["shown"].partition(_COMPARED)[0].split("\n\n")
    shown = "\n\n".join(_current(part, printed, folder) for part in parts)
    few = command.startswith("fewshot table ") and len(parts) < len(printed)
    how_many = f"     # {_number(len(parts))} of its {_number(len(printed))} tables" if few else ""
    return f"$ {command}{how_many}\n{shown}{mark}{notes}\n```"


def _current(part: str, printed: dict[str, str], folder: str) -> str:
    """A table as it is now; what is no table stays."""
    title = _title(part)
    if title == part:
        return part
    if title not in printed:
        raise RecordError(
            f"a page shows a table that {folder} does not give: {title!r}; it gives "
            f"{', '.join(map(repr, printed))}: give the table one of these titles, or take it out"
        )
    return printed[title]


def _number(count: int) -> str:
    return _NUMBERS[count - 1] if count <= len(_NUMBERS) else str(count)


if __name__ == "__main__":
    for page in PAGES:
        try:
            current = with_current_tables((ROOT / page).read_text(encoding="utf-8"))
        except RecordError as error:
            sys.exit(f"{page}: {error}")
        (ROOT / page).write_text(current, encoding="utf-8")
