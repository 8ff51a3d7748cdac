"""The README's tables of recorded results, brought up to date: `python -m benchmarks.readme_tables`.

A block of the README that begins with `$ fewshot table results/X` shows some of that folder's tables, each as
the command prints it; the comment behind the command says how many of how many. Which tables a block shows is
told by their titles in it; what they say comes from the records.
"""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

from fewshot.cli import app
from fewshot.harness.record import RECORDS_FILE

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^\$ fewshot table (?P<folder>results/\w+)(?: +#[^\n]*)?\n(?P<shown>.*?)\n```$", re.MULTILINE | re.DOTALL
)
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def printed_tables(folder: str) -> dict[str, str]:
    """What `fewshot table` prints of a results folder, by title, in its order."""
    with redirect_stdout(io.StringIO()) as printed:
        app(["table", str(ROOT / folder)], standalone_mode=False)
    return {_title(table): table for table in printed.getvalue().strip("\n").split("\n\n")}


def with_current_tables(text: str) -> str:
    """A README with the tables that the records give; KeyError names a table that they do not give."""
    return _BLOCK.sub(_current_block, text)


def _title(table: str) -> str:
    return table.partition("\nlearner ")[0]


def _current_block(block: re.Match[str]) -> str:
    if not (ROOT / block["folder"] / RECORDS_FILE).exists():
        return block[0]  # the reader's own results
    printed = printed_tables(block["folder"])
    shown = [printed[_title(table)] for table in block["shown"].split("\n\n")]
    few = len(shown) < len(printed)
    how_many = f"     # {_number(len(shown))} of its {_number(len(printed))} tables" if few else ""
    return f"$ fewshot table {block['folder']}{how_many}\n" + "\n\n".join(shown) + "\n```"


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_current_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
