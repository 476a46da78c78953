"""A terminal that remembers what was written on it, and a search in front of it."""

import io
import re

from rich.console import Console

from kinray.core.scores import Difference, Result, Scored, TaskScore
from kinray.report.terminal import Terminal
from kinray.search.policy import TopK
from kinray.search.population import Outcome


class Screen:
    """A terminal of a fixed width, and what was written on it."""

    def __init__(self, width: int = 80, *, live: bool = False, verbose: bool = False) -> None:
        self._file = io.StringIO()
        console = Console(file=self._file, width=width, force_terminal=live, highlight=False, _environ={})
        self.terminal = Terminal(console, verbose=verbose)

    @property
    def text(self) -> str:
        """All that was written, without control sequences."""
        return _plain(self._file.getvalue())

    @property
    def lines(self) -> list[str]:
        """The lines that are left when what was written over is gone."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\n\r]|[^\x1b\n\r]+", self._file.getvalue()):
            if token in ("\n", "\x1b[1A"):
                row += 1 if token == "\n" else -1
                lines += [""] * (row + 1 - len(lines))
            elif token == "\x1b[2K":
                lines[row] = ""
            elif token[0] not in "\r\x1b":
                lines[row] = lines[row][:column] + token
            column = 0 if token in ("\n", "\r") else len(lines[row])
        return [line.rstrip() for line in lines[: -1 if not lines[-1] else None]]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


def scored(score: float) -> Scored:
    """Make up a result that took two seconds."""
    return Scored({"task": TaskScore(score, 0.02, ("0", "1"), (score, score))}, {"merge": 0.5, "evaluate": 1.5})


def watch(
    screen: Screen,
    search: TopK,
    results: dict[str, Result],
    *,
    remembered: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
) -> None:
    """Run a search as the cluster would, in front of a terminal."""
    generation = -1
    while (child := search.ask()) is not None:
        if search.generation != generation:
            screen.terminal.generation(search)
            generation = search.generation
        screen.terminal.started(child, 0)
        result = results.get(child.name, scored(0.3))
        search.tell(child.name, Outcome.of(result, "loses 9.0 points" if child.name in refused else None))
        gained = search.population.gain(child)
        gain = Difference(gained, 0.0125) if gained is not None else None
        screen.terminal.finished(child, result, gain, remembered=child.name in remembered)
    screen.terminal.ended(search)
