"""A table that people read, and how it is written: Markdown, LaTeX, HTML or text for a terminal."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable

from fewshot.errors import RecordError, unknown
from fewshot.report.pages import fill
from fewshot.report.results import TRANSDUCTIVE_MARK

TERMINAL_COLUMNS = 100


@dataclass(frozen=True)
class Row:
    """A learner's figures, or the published ones beneath them; a cell is empty where there is none.

    marked: the columns in which it is not distinguishable from the best.
    """

    label: str
    cells: tuple[str, ...]
    published: bool = False
    marked: frozenset[int] = frozenset()

    def written(self, mark: Callable[[str], str]) -> tuple[str, ...]:
        """The cells, those that are marked as `mark` writes them."""
        return tuple(mark(cell) if i in self.marked else cell for i, cell in enumerate(self.cells))


@dataclass
class ResultTable:
    """What one test set says: learners as rows, settings or presentations as columns.

    stub: the heading of the rows' labels. marks: what it means that a cell is marked; empty where none is.
    """

    title: str
    columns: tuple[str, ...]
    stub: str = "learner"
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    marks: str = ""

    def legend(self, mark: str) -> list[str]:
        """The notes, and second what the mark means where there are marks."""
        return [*self.notes[:1], f"{mark}: {self.marks}", *self.notes[1:]] if self.marks else self.notes


def text(tables: list[ResultTable]) -> str:
    """Plain text that fits a terminal of TERMINAL_COLUMNS columns."""
    stream = io.StringIO()
    console = Console(file=stream, width=TERMINAL_COLUMNS, no_color=True, highlight=False, markup=False)
    for table in tables:
        drawn = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        drawn.add_column(table.stub)
        for column in table.columns:
            drawn.add_column(column, justify="right", no_wrap=True)
        for row in table.rows:
            label = f"  {row.label}" if row.published else row.label
            drawn.add_row(label, *row.written(lambda cell: f"*{cell}"))
        console.print(table.title)
        console.print(drawn)
        for note in table.legend("*"):
            console.print(note)
        console.print()
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def markdown(tables: list[ResultTable]) -> str:
    """GitHub's Markdown, one list of notes beneath each table."""
    parts = []
    for table in tables:
        rows = [
            (f"*{row.label}*", *(f"*{cell}*" if cell else "" for cell in row.cells))
            if row.published
            else (row.label, *row.written(lambda cell: f"**{cell}**"))
            for row in table.rows
        ]
        grid = markdown_grid((table.stub, *table.columns), rows)
        notes = [f"- {note}" for note in table.legend("**Bold**")]
        parts.append("\n".join([f"**{table.title}**", "", *grid, "", *notes]))
    return "\n\n".join(parts) + "\n"


def markdown_grid(heading: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> list[str]:
    """The lines of a table; words: how many columns, the first ones, hold words and not figures."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = ("---" if column < words else "---:" for column in range(len(heading)))
    return [line(heading), line(rule), *(line(row) for row in rows)]


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    TRANSDUCTIVE_MARK: r"\dag{}",
}

_LATEX_TEMPLATE = r"""((* for table in tables *))
\begin{table}
  \centering
  \caption{((( table.title | latex )))}
  \begin{tabular}{l((( "r" * table.columns | length )))}
    \toprule
    ((( ((table.stub,) + table.columns) | cells ))) \\
    \midrule
((* for row in table.rows *))
    ((* if row.published *))\quad ((* endif *))((( row | row ))) \\
((* endfor *))
    \bottomrule
  \end{tabular}

  \smallskip
  \begin{minipage}{\linewidth}\footnotesize
((* for note in table.legend("Bold") *))
    ((( note | latex )))\par
((* endfor *))
  \end{minipage}
\end{table}

((* endfor *))
"""


def latex(tables: list[ResultTable]) -> str:
    """One table environment each; needs the package booktabs."""
    environment = jinja2.Environment(
        block_start_string="((*",
        block_end_string="*))",
        variable_start_string="(((",
        variable_end_string=")))",
        trim_blocks=True,
    )
    environment.filters["latex"] = _latex_escaped
    environment.filters["cells"] = lambda cells: " & ".join(map(_latex_escaped, cells))
    environment.filters["row"] = _latex_row
    return environment.from_string(_LATEX_TEMPLATE).render(tables=tables).strip() + "\n"


def _latex_row(row: Row) -> str:
    escaped = replace(row, cells=tuple(map(_latex_escaped, row.cells)))
    return " & ".join((_latex_escaped(row.label), *escaped.written(lambda cell: rf"\textbf{{{cell}}}")))


def _latex_escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def html(tables: list[ResultTable]) -> str:
    """A page that stands alone."""
    return fill("tables.html", title="fewshot results", tables=tables)


WRITERS = {"text": text, "md": markdown, "latex": latex, "html": html}
FORMATS = ("csv", *WRITERS)


def write(tables: list[ResultTable], format: str) -> str:
    """The tables in a format of WRITERS; RecordError for any other."""
    if format not in WRITERS:
        raise RecordError(unknown("format", format, FORMATS))
    return WRITERS[format](tables)
