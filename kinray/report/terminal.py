"""What a person sees while a search runs: two lines for each child, a status line below, and tables at the start and end.

Where output is no terminal, there are two lines for each generation only (with ``--verbose`` also each child), without colour.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from kinray.core.kinship import Metric, group_kinship, kinship_matrix
from kinray.core.scores import Difference, Failed, Result, Scored, Stopped
from kinray.core.statistics import Statistics
from kinray.errors import printable
from kinray.report.leaderboard import Leaderboard
from kinray.report.tables import Hanging, front_table, kinship_table, leaderboard_table
from kinray.report.wording import (
    clock,
    conclusions,
    describe,
    failures,
    kinship_value,
    matings,
    plural,
    plus_minus,
    spent,
)
from kinray.search.policy import TopK
from kinray.search.population import Child

SATURATED = 0.9
"""Kinship above which merging two models is unlikely to gain (Hu et al., section 5)."""

_RECENT = 64
"""Children whose times say how long the others will take."""


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
        self._policy: TopK | None = None
        self._generation: list[Child] = []
        self._errors: dict[str, float] = {}
        self._seconds: deque[float] = deque(maxlen=_RECENT)
        self._evaluators = 1

    # -- before

    def note(self, text: str) -> None:
        """Say what is being done now, in the status line."""
        if self._live:
            self._update(f"[dim]{escape(text)} …[/]")
        elif self.verbose:
            self._print(Text(f"{text} …"))

    def ready(self, title: str, facts: Sequence[tuple[str, str]], notices: Sequence[str]) -> None:
        """Print what will be done, when all of it was found good.

        Args:
            title: the first line, which may hold markup.
            facts: name and text of what a person should know.
            notices: what they might not expect.
        """
        self.rest()
        self.console.print(title)
        self._print(Hanging([(Text(name, "bold"), Text(printable(text))) for name, text in facts]))
        if notices:
            self._print(Hanging([(Text("note", "yellow"), Text(printable(notice))) for notice in notices]))

    def progress(self, what: str) -> Callable[[str, float], None]:
        """Give a function that shows a long piece of work: what it does now, and how much of it (0..1) is done."""
        if self._live:
            return lambda message, fraction: self._update(f"{escape(f'{what}: {message}')} [dim]{fraction:.0%}[/]")
        said = False

        def say_once(message: str, fraction: float) -> None:
            nonlocal said
            if not said and fraction < 1:
                self._print(Text(f"{what} …"))
                said = True

        return say_once

    def session(self, session: Any) -> None:
        """Take in what the workers are, and print it."""
        self._evaluators = session.evaluators
        on_gpus = "GPU" if session.gpus == 1 else f"{session.gpus} GPUs each"
        where = on_gpus if session.device == "cuda" else f"CPU, {plural(session.threads, 'thread')}"
        workers = f"{plural(session.evaluators, 'evaluator')} ({where}), {plural(session.shards, 'shard')}"
        self._print(Text.assemble(("Workers", "bold"), "  ", workers, "\n"))

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
        matrix = kinship_matrix(metric, statistics)
        self.rest()
        self._print(Text(f"Kinship of the founders ({metric})", "bold"))
        self._print(kinship_table(metric, [founder.name for founder in prepared.founders], matrix, self.console.width))
        mean = group_kinship(matrix)
        meaning = ": so alike that merging will gain little" if metric != "ed" and mean > SATURATED else ""
        self._print(Text(f"Mean over pairs {kinship_value(metric, mean)}{meaning}.\n"))

    # -- while it runs

    def generation(self, policy: TopK) -> None:
        """Begin a generation."""
        self._end_generation()
        self._policy = policy
        if policy.finished:
            return
        self._generation = [child for child in policy.population.children if child.generation == policy.generation]
        what = plural(len(self._generation), "founder") if policy.generation == 0 else matings(self._generation)
        self._print(Hanging([(Text(f"Generation {policy.generation}", "bold"), Text(what))], indent=0))
        self._show()

    def started(self, child: Child, evaluator: int) -> None:
        """A child is being scored."""
        self._show()

    def finished(self, child: Child, result: Result, gain: Difference | None, *, remembered: bool) -> None:
        """A child has its result, which the policy knows."""
        if not isinstance(result, Failed):
            self._errors[child.name] = result.stderr
            if not remembered:
                self._seconds.append(_seconds(result))
        if self._live or self.verbose:
            lines = [self._outcome(child, result, gain, remembered=remembered), *self._refused(child), *_origin(child)]
            width = max((len(one.name) for one in self._generation), default=0)
            self._print(Hanging([(Text(child.name), Text("\n").join(lines))], width=width))
        self._show()

    def interrupted(self) -> None:
        """Ctrl-C was pressed once."""
        warning = "children in flight are finished and saved. Press Ctrl-C again to stop at once."
        self._print(Text.assemble("\n", ("Stopping:", "yellow"), f" {warning}"))

    # -- after

    def ended(self, policy: TopK) -> None:
        """Say why the search ended."""
        self._end_generation()
        self.rest()
        if policy.finished:
            generations = len({child.generation for child in policy.population.children} - {0})
            made = f"{plural(policy.made(), 'child', 'children')} in {plural(generations, 'generation')}"
            self._print(Text(f"\nFinished: {policy.finished}. {made}.\n"))

    def spent(self, rows: Sequence[Mapping[str, Any]], compared: Sequence[Scored] = ()) -> None:
        """Say what the search cost, from the children table and the results of the comparison."""
        if (line := spent(rows, compared)) is not None:
            self._print(Text(line))

    def leaderboard(self, board: Leaderboard) -> None:
        """Print the final comparison, what failed in it, and what it shows."""
        self.rest()
        self._print(Text("Leaderboard", "bold"))
        self._print(leaderboard_table(board))
        if failed := failures(board):
            self._print(
                Hanging(
                    [(Text(entry.name), Text.assemble(("failed", "red"), f" {printable(error)}")) for entry, error in failed]
                )
            )
        for line in conclusions(board):
            self._print(Text(line))
        if board.front:
            self._print(Text("\nPareto front on the search's items, the highest mean first", "bold"))
            self._print(front_table(board.front))

    def facts(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        """Print a titled list of names and what there is to say of each."""
        self.rest()
        self._print(Text(f"\n{title}", "bold"))
        self._print(Hanging([(Text(name), Text(printable(text))) for name, text in facts]))

    def line(self, text: str) -> None:
        """Print a line that may be copied, such as a command or a path: it is never folded."""
        self.rest()
        self.console.print(Text(text), soft_wrap=True)

    # -- inside

    def _outcome(self, child: Child, result: Result, gain: Difference | None, *, remembered: bool) -> Text:
        """Write the first line of a child's entry."""
        records = ("  from records", "dim") if remembered else ""
        if isinstance(result, Failed):
            return Text.assemble(("failed", "red"), f" {printable(result.error)}", records)
        gained = f"gain {plus_minus(gain.mean, gain.stderr, '+')}" if gain is not None else ""
        best = ("  best so far", "green") if self._best() == child else ""
        line = f"{plus_minus(result.score, result.stderr)}  {gained:19}{_seconds(result):7.1f} s"
        if isinstance(result, Stopped):
            return Text.assemble((f"stopped after {result.partial.items} of {result.of} items", "yellow"), f" {line}", records)
        return Text.assemble(line, best, records)

    def _refused(self, child: Child) -> list[Text]:
        """Write the line of a child's entry that says which floor it breaks; none if it breaks none."""
        reason = self._policy.population.refused(child.name) if self._policy else None
        return [Text.assemble(("refused", "yellow"), f" {reason}")] if reason else []

    def _best(self) -> Child | None:
        return self._policy.population.best() if self._policy else None

    def _best_words(self) -> str | None:
        if self._policy is None or (best := self._best()) is None:
            return None
        return f"{best.name} {plus_minus(self._policy.population.score(best.name), self._errors.get(best.name))}"

    def _end_generation(self) -> None:
        """Sum up a generation where its children were not shown."""
        if self._policy is not None and self._generation and not (self._live or self.verbose):
            outcomes = [self._policy.population.outcome(child.name) for child in self._generation]
            stopped = sum(outcome is not None and outcome.stopped for outcome in outcomes)
            scored = sum(outcome is not None and outcome.score is not None for outcome in outcomes) - stopped
            refused = sum(outcome is not None and outcome.refused is not None for outcome in outcomes)
            failed = sum(outcome is not None and outcome.score is None for outcome in outcomes)
            others = [
                f", {count} {what}"
                for count, what in ((refused, "of them refused"), (stopped, "stopped"), (failed, "failed"))
                if count
            ]
            counts = f"{scored} scored" + "".join(others)
            best = self._best_words()
            self._print(Text(f"  {counts}" + (f"; best so far {best}" if best else "")))
        self._generation = []

    def _print(self, what: RenderableType) -> None:
        (self._status.console if self._status else self.console).print(what, highlight=False)

    def _show(self) -> None:
        """Bring the status line up to date."""
        if not self._live or self._policy is None:
            return
        out = sum(self._policy.population.outcome(child.name) is None for child in self._generation)
        parts = [f"generation {self._policy.generation}", f"{len(self._generation) - out}/{len(self._generation)} done"]
        if best := self._best_words():
            parts.append(f"best {best}")
        if self._seconds and out:
            left = sum(self._seconds) / len(self._seconds) * out / self._evaluators
            parts.append(f"about {clock(left)} left")
        self._update(escape(" · ".join(parts)))

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


def _seconds(result: Scored | Stopped) -> float:
    return sum((result.partial if isinstance(result, Stopped) else result).seconds.values())


def _origin(child: Child) -> list[Text]:
    """Write the second line of a child's entry; none for a founder."""
    if not child.parents:
        return []
    exploration = " (exploration)" if child.operator == "exploration" else ""
    return [Text(f"{' × '.join(child.parents)}{exploration}  {describe(child)}", "dim")]
