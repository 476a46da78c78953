"""A bar for work that is counted in bytes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_SECONDS = 0.1
"""Between two drawings."""


@contextmanager
def byte_bar(doing: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Show work on ``total`` bytes: how many are done, how fast, how long to go; nothing where the console is no terminal.

    It is drawn when it moves and not by a thread, so that the work may fork.
    """
    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    shown = 0.0
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, auto_refresh=False) as progress:
        task = progress.add_task(doing, total=total)

        def advance(done: int) -> None:
            nonlocal shown
            progress.advance(task, done)
            if monotonic() - shown > _SECONDS:
                progress.refresh()
                shown = monotonic()

        yield advance
