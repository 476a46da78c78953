"""Tables for the terminal. All text goes in as ``Text``, so that brackets in names and errors are never taken for markup."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from kinray.core.kinship import Metric
from kinray.core.scores import Difference, Scored
from kinray.core.statistics import Float64
from kinray.report.leaderboard import Entry, Leaderboard
from kinray.report.wording import front_rows, kinship_value, plus_minus, score_of


@dataclass(frozen=True)
class Hanging:
    """Texts beside their headings; long ones wrap below themselves, not below the heading.

    Args:
        rows: heading and text.
        indent: columns left free.
        width: least width of the headings.
    """

    rows: Sequence[tuple[Text, Text]]
    indent: int = 2
    width: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, without trailing blanks."""
        heading_width = max([self.width, *(heading.cell_len for heading, _ in self.rows)])
        column = self.indent + heading_width + 2
        for heading, text in self.rows:
            for number, line in enumerate(text.wrap(console, max(20, options.max_width - column))):
                line.rstrip()
                blank = " " * (column if number else column - self.indent - heading.cell_len)
                yield Text(blank) + line if number else Text.assemble(" " * self.indent, heading, blank, line)


def kinship_table(metric: Metric, names: Sequence[str], matrix: Float64, width: int) -> Table:
    """Show a kinship matrix; where the names are too wide for columns, the columns are numbered.

    Args:
        metric: of the values.
        names: of the models.
        matrix: (N, N) float64.
        width: columns of the terminal.
    """
    fits = max(map(len, names)) + sum(max(7, len(name)) + 2 for name in names) <= width
    heads = list(names) if fits else [str(number) for number in range(1, len(names) + 1)]
    table = _table()
    table.add_column("", overflow="fold")
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for head, name, row in zip(heads, names, matrix, strict=True):
        table.add_row(Text(name if fits else f"{head} {name}"), *(kinship_value(metric, float(value)) for value in row))
    return table


def leaderboard_table(board: Leaderboard) -> Table:
    """Show the final comparison."""
    held = any(entry.holdout for entry in board.entries)
    table = _table()
    table.add_column("model", overflow="fold")
    table.add_column("")
    for column in ("search score", *(["held-out score"] if held else []), "best is ahead by"):
        table.add_column(column, justify="right", no_wrap=True)
    for entry in board.entries:
        best = entry.name == board.best
        scores = [score_of(scored) for scored in ([entry.search, entry.holdout] if held else [entry.search])]
        marks = {"best": best, "front": entry.name in board.front}
        kinds = dict.fromkeys([entry.kind, *(mark for mark, has in marks.items() if has)])
        table.add_row(Text(entry.name, "bold" if best else ""), ", ".join(kinds), *scores, _ahead(entry, board.lead(entry)))
    return table


def front_table(front: Mapping[str, Scored]) -> Table:
    """Show the models of the front with their scores by task."""
    table = _table()
    table.add_column("model", overflow="fold")
    (_, *columns), *rows = front_rows(front)
    for column in columns:
        table.add_column(Text(column, overflow="fold"), justify="right")
    for name, *scores in rows:
        table.add_row(Text(name), *scores)
    return table


def _ahead(entry: Entry, lead: Difference | None) -> Text:
    if lead is not None:
        return Text(plus_minus(lead.mean, lead.stderr, "+"), "green" if lead.clear else "yellow")
    return Text("failed", "red") if entry.error is not None else Text("–")


def _table() -> Table:
    return Table(box=None, pad_edge=False)
