"""What a person sees while a search runs: a line for each child, a status line below, and tables at the start and end.

Where output is no terminal, there is a line for each generation only (with ``--verbose`` for each child), without colour.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from kinray.core.kinship import Metric, group_kinship, kinship_matrix
from kinray.core.recipe import Merge
from kinray.core.scores import Failed, Result
from kinray.core.statistics import Statistics
from kinray.report.leaderboard import Leaderboard
from kinray.search.policy import TopK
from kinray.search.population import Child

SATURATED = 0.9
"""Kinship above which merging two models is unlikely to gain (Hu et al., section 5)."""


class Terminal:
    """Tells a person how a search goes.

    Args:
        console: where to.
        verbose: whether to show every child even where output is no terminal, and Ray's logs.
    """

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self.console, self.verbose = console, verbose
        self._live = console.is_terminal
        self._status: Progress | None = None
        self._task: Any = None
        self._best: tuple[float, float, str] | None = None
        self._generation: list[str] = []
        self._done: list[float] = []
        self._evaluators = 1
        self._policy: TopK | None = None

    # -- before

    def note(self, text: str) -> None:
        """Say what is being done now, in the status line."""
        if self._live:
            self._update(f"[dim]{text} …[/]")
        elif self.verbose:
            self.console.print(f"{text} …")

    def ready(self, title: str, facts: Sequence[tuple[str, str]], notices: Sequence[str]) -> None:
        """Print what will be done, when all of it was found good."""
        self.rest()
        self.console.print(title)
        width = max(len(name) for name, _ in facts)
        for name, text in facts:
            self.console.print(f"  [bold]{name:<{width}}[/]  {escape(text)}")
        for notice in notices:
            self.console.print(f"  [yellow]note[/] {escape(notice)}")

    def progress(self, what: str) -> Callable[[str, float], None]:
        """Give a function that shows a long piece of work: what it does now, and how much of it (0..1) is done."""
        if not self._live:
            said = False

            def plain(message: str, fraction: float) -> None:
                nonlocal said
                if not said and fraction < 1:
                    self.console.print(f"{what} …")
                    said = True

            return plain
        return lambda message, fraction: self._update(f"{what}: {message} [dim]{fraction:.0%}[/]")

    def session(self, session: Any) -> None:
        """Take in what the workers are."""
        self._evaluators = session.evaluators
        where = "GPU" if session.device == "cuda" else f"CPU, {session.threads} thread{'s'[: session.threads > 1]}"
        count = session.evaluators
        self.console.print(f"[bold]Workers[/] {count} evaluator{'s'[: count > 1]} ({where}), {session.shards} shard{'s'[: session.shards > 1]}")

    @contextmanager
    def bytes(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a pass over ``total`` bytes while the block runs."""
        self.rest()
        columns = (TextColumn(f"  {what}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self._live) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)

    def kinship(self, metric: Metric, prepared: Any, statistics: Statistics) -> None:
        """Print the founders' kinship matrix and what it means."""
        names = [founder.name for founder in prepared.founders]
        matrix = kinship_matrix(metric, statistics)
        self.rest()
        table = Table(title=f"Kinship of the founders ({metric})", title_justify="left", box=None, title_style="bold", pad_edge=False)
        table.add_column("")
        for name in names:
            table.add_column(name, justify="right")
        for name, row in zip(names, matrix, strict=True):
            table.add_row(name, *(f"{value:.3f}" for value in row))
        self.console.print(table)
        mean = group_kinship(matrix)
        saturated = metric != "ed" and mean > SATURATED
        meaning = ": so alike that merging will gain little" if saturated else ""
        self.console.print(f"Mean over pairs {mean:.3f}{meaning}.\n")

    # -- while it runs

    def generation(self, policy: TopK) -> None:
        """Begin a generation."""
        self._policy = policy
        self._end_generation()
        self._generation = [child.name for child in policy.population.children if child.generation == policy.generation]
        if policy.finished:
            return
        what = "the founders" if policy.generation == 0 else _matings(policy)
        self._print(f"[bold]Generation {policy.generation}[/] {what}")
        self._show()

    def started(self, child: Child, evaluator: int) -> None:
        """A child is being scored."""
        self._show()

    def finished(self, child: Child, result: Result, gain: float | None, *, remembered: bool) -> None:
        """A child has its result."""
        if isinstance(result, Failed):
            text = f"[red]failed[/] {result.error}"
        else:
            best = self._best is None or result.score > self._best[0]
            if best:
                self._best = (result.score, result.stderr, child.name)
            seconds = sum(result.seconds.values())
            if not remembered:
                self._done.append(seconds)
            text = f"{result.score:.3f} ± {result.stderr:.3f}  " + (f"gain {gain:+.3f}" if gain is not None else " " * 11)
            text += f"  {seconds:5.1f} s" + ("  [green]best so far[/]" if best else "")
        if self._live or self.verbose:
            origin = f"{' × '.join(child.parents)}  {describe(child)}" if child.parents else ""
            self._print(f"  {child.name:<{self._width()}}  {text}{'  from records' if remembered else ''}\n      [dim]{origin}[/]" if origin else f"  {child.name:<{self._width()}}  {text}")
        self._show()

    def interrupted(self) -> None:
        """Ctrl-C was pressed once."""
        self._print("\n[yellow]Stopping:[/] children in flight are finished and saved. Press Ctrl-C again to stop at once.")

    # -- after

    def ended(self, policy: TopK) -> None:
        """Say why the search ended."""
        self._end_generation()
        self.rest()
        if policy.finished:
            self.console.print(f"\nFinished: {policy.finished}. {policy.made()} children in {policy.generation} generations.\n")

    def leaderboard(self, board: Leaderboard) -> None:
        """Print the final comparison."""
        self.rest()
        held = any(entry.holdout for entry in board.entries)
        table = Table(title="Leaderboard", title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("model")
        table.add_column("")
        for column in ("search score", *(["held-out score"] if held else []), "best is ahead by"):
            table.add_column(column, justify="right")
        for entry in board.entries:
            lead = board.lead(entry)
            marks = ("[green]" if lead.sigmas >= 2 else "[yellow]", "[/]") if lead else ("", "")
            ahead = f"{marks[0]}{lead.mean:+.3f} ± {lead.stderr:.3f}{marks[1]}" if lead else ("" if entry.error is None else "failed")
            scores = [entry.search, *([entry.holdout] if held else [])]
            name = f"[bold]{entry.name}[/]" if entry.name == board.best else entry.name
            kind = entry.kind if entry.name != board.best or entry.kind == "best" else f"{entry.kind}, best"
            table.add_row(name, kind, *(f"{s.score:.3f} ± {s.stderr:.3f}" if s else "–" for s in scores), ahead)
        self.console.print(table)
        for line in conclusions(board):
            self.console.print(line)

    # -- inside

    def _width(self) -> int:
        names = [child.name for child in self._policy.population.children] if self._policy else []
        return max((len(name) for name in names), default=6)

    def _end_generation(self) -> None:
        if not self._generation or self._live or self.verbose or self._best is None:
            return
        score, error, name = self._best
        self.console.print(f"  {len(self._generation)} scored; best so far {name} {score:.3f} ± {error:.3f}")
        self._generation = []

    def _print(self, text: str) -> None:
        (self._status.console if self._status else self.console).print(text, highlight=False)

    def _show(self) -> None:
        if not self._live or self._policy is None:
            return
        out = [name for name in self._generation if self._policy.population.outcome(name) is None]
        parts = [f"generation {self._policy.generation}", f"{len(self._generation) - len(out)}/{len(self._generation)} scored"]
        if self._best:
            parts.append(f"best {self._best[2]} {self._best[0]:.3f} ± {self._best[1]:.3f}")
        if self._done and out:
            left = sum(self._done) / len(self._done) * len(out) / self._evaluators
            parts.append(f"about {_clock(left)} left in this generation")
        self._update(" · ".join(parts))

    def _update(self, text: str) -> None:
        if self._status is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"))
            self._status = Progress(*columns, console=self.console, transient=True)
            self._task = self._status.add_task(text, total=None)
            self._status.start()
        self._status.update(self._task, description=text)

    def rest(self) -> None:
        """Take the status line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def conclusions(board: Leaderboard) -> list[str]:
    """Say in sentences what the comparison shows."""
    rivals = [(entry, lead) for entry, lead in board.leads() if entry.kind in ("founder", "average")]
    where = "held-out items" if any(entry.holdout for entry in board.entries) else "the search's own items (optimistic)"
    lines = []
    if board[board.best].kind == "founder":
        lines.append(f"No child beats the founder {board.best}.")
    elif rivals:
        entry, lead = min(rivals, key=lambda pair: pair[1].mean)
        clear = [lead.sigmas >= 2 for _, lead in rivals]
        verdict = "clearly (2 standard errors or more)" if all(clear) else "not clearly: within 2 standard errors"
        lines.append(
            f"On {where} {board.best} beats every founder and the average {verdict}; its nearest rival {entry.name} by "
            f"{lead.mean:+.3f} ± {lead.stderr:.3f}."
            if lead.mean > 0
            else f"On {where} {board.best} does not beat {entry.name} ({lead.mean:+.3f} ± {lead.stderr:.3f})."
        )
    if board.optimism is not None:
        lines.append(f"Optimism of the search (its score minus the held-out score): {board.optimism:+.3f}.")
    return lines


def describe(child: Child) -> str:
    """Write a child's method and parameters on one line."""
    if not isinstance(child.recipe, Merge):
        return ""
    return describe_merge(child.recipe)


def describe_merge(merge: Merge) -> str:
    """Write a merge's method and parameters on one line."""
    return " ".join([merge.method, *(f"{name}={_value(value)}" for name, value in merge.params.items())])


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{entry:.3g}" for entry in value) + "]"
    return str(value).lower() if isinstance(value, bool | str) else f"{value:.3g}"


def _matings(policy: TopK) -> str:
    children = [child for child in policy.population.children if child.generation == policy.generation]
    pairs = list(dict.fromkeys((child.parents, child.operator) for child in children))
    names = ", ".join(" × ".join(parents) + (" (exploration)" if op == "exploration" else "") for parents, op in pairs)
    return f"{len(children)} child{'ren'[: 3 * (len(children) != 1)]} of {names}"


def _clock(seconds: float) -> str:
    return time.strftime("%M:%S" if seconds < 3600 else "%H:%M:%S", time.gmtime(seconds))
