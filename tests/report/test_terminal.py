"""What a person sees: on a terminal, in a log, at 80 columns, and with brackets where nobody expects them."""

import io
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from kinray.core.scores import Failed, Result, Scored, TaskScore
from kinray.core.statistics import Statistics
from kinray.report.leaderboard import Entry, Leaderboard
from kinray.report.terminal import Terminal
from kinray.search.policy import TopK
from kinray.search.population import Outcome
from tests.helpers import founder
from tests.helpers.search import policy
from tests.report.results import around, board

BOOM = "tensor '[/bold] boom [red]' holds NaN"


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


def watch(screen: Screen, search: TopK, results: dict[str, Result], *, remembered: tuple[str, ...] = ()) -> None:
    """Run a search as the cluster would, in front of a terminal."""
    generation = -1
    while (child := search.ask()) is not None:
        if search.generation != generation:
            screen.terminal.generation(search)
            generation = search.generation
        screen.terminal.started(child, 0)
        result = results.get(child.name, scored(0.3))
        search.tell(child.name, Outcome.of(result))
        gain = search.population.gain(child)
        screen.terminal.finished(child, result, gain, remembered=child.name in remembered)
    screen.terminal.ended(search)


def small_search() -> TopK:
    """Make a search of two founders and at most two children."""
    methods = {"task_arithmetic": {"lambda": 1.25, "weight": {"models": [1.0, 0.5]}}}
    return policy(["ann", "bob"], methods=methods, k=2, max_children=2)


RESULTS: dict[str, Result] = {"ann": scored(0.5), "bob": scored(0.25), "g1-1": scored(0.625), "g2-1": Failed(BOOM)}


# -- children


def test_a_log_has_two_lines_for_each_generation() -> None:
    screen = Screen()

    watch(screen, small_search(), RESULTS)

    assert screen.lines == [
        "Generation 0  2 founders",
        "  2 scored; best so far ann 0.500 ± 0.020",
        "Generation 1  1 child of ann × bob",
        "  1 scored; best so far g1-1 0.625 ± 0.020",
        "Generation 2  1 child of g1-1 × ann",
        "  0 scored, 1 failed; best so far g1-1 0.625 ± 0.020",
        "",
        "Finished: the top 2 did not change in generation 2. 2 children in 2 generations.",
        "",
    ]


def test_a_verbose_log_has_two_lines_for_each_child() -> None:
    screen = Screen(verbose=True)

    watch(screen, small_search(), RESULTS, remembered=("bob",))

    assert screen.lines[:9] == [
        "Generation 0  2 founders",
        "  ann  0.500 ± 0.020                 2.0 s  best so far",
        "  bob  0.250 ± 0.020                 2.0 s  from records",
        "Generation 1  1 child of ann × bob",
        "  g1-1  0.625 ± 0.020  gain +0.250    2.0 s  best so far",
        "        ann × bob  task_arithmetic lambda=1.25 weight=[1, 0.5]",
        "Generation 2  1 child of g1-1 × ann",
        f"  g2-1  failed {BOOM}",
        "        g1-1 × ann  task_arithmetic lambda=1.25 weight=[1, 0.5]",
    ]


def test_a_terminal_shows_children_and_takes_its_status_line_away() -> None:
    screen = Screen(live=True)

    watch(screen, small_search(), RESULTS)

    assert "  g1-1  0.625 ± 0.020  gain +0.250    2.0 s  best so far" in screen.lines
    assert f"  g2-1  failed {BOOM}" in screen.lines
    assert "generation 2 · 1/1 done · best g1-1 0.625 ± 0.020" in screen.text
    assert not any("done" in line for line in screen.lines)
    assert screen.lines[-2] == "Finished: the top 2 did not change in generation 2. 2 children in 2 generations."


def test_an_exploration_is_called_one() -> None:
    screen = Screen(verbose=True)
    search = policy(["ann", "bob", "cid"], k=2, max_generations=2)

    watch(screen, search, {"ann": scored(0.5), "bob": scored(0.4), "g1-1": scored(0.6)})

    assert "        g1-1 × bob (exploration)  slerp t=0.5" in screen.lines


def test_after_a_resume_the_best_is_that_of_the_whole_search() -> None:
    first = policy(["ann", "bob", "cid"], k=2, max_generations=2)
    while first.generation < 2:
        child = first.ask()
        assert child is not None
        if first.generation < 2:
            first.tell(child.name, Outcome(0.9 if child.name == "g1-1" else 0.1))
    second = policy(["ann", "bob", "cid"], k=2, max_generations=2)
    second.load_state_dict(first.state_dict())
    screen = Screen(verbose=True)

    watch(screen, second, {})

    assert "best so far" not in screen.text
    assert second.population.ranked()[0].name == "g1-1"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("live", [False, True])
def test_nothing_is_wider_than_the_terminal_and_long_texts_hang_below_themselves(width: int, live: bool) -> None:
    screen = Screen(width, live=live, verbose=True)
    names = ["MetaMath-Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.2", "openchat-3.5-1210"]
    methods = {"ties": {"weight": {"models": [0.123, 0.456]}, "density": {"models": [0.51, 0.52]}, "lambda": 1.5}}

    watch(screen, policy(names, methods=methods, k=2, max_children=3), {"g1-2": Failed("out of memory, " * 12)})

    assert max(map(len, screen.lines)) <= width
    at = next(number for number, line in enumerate(screen.lines) if line.startswith("  g1-2  failed out of memory"))
    assert screen.lines[at + 1].startswith("        ") and "memory" in screen.lines[at + 1]


# -- before and after


def test_facts_line_up_and_wrap_below_themselves() -> None:
    screen = Screen()

    screen.terminal.ready("[bold]kinray[/]", [("Base", "/models/" + "x" * 80), ("Run folder", "runs/[1]")], ["a [note] " * 12])

    assert screen.lines[0] == "kinray"
    assert [line[:14] for line in screen.lines[1:4]] == ["  Base        ", " " * 14, "  Run folder  "]
    assert screen.lines[3] == "  Run folder  runs/[1]"
    assert screen.lines[4].startswith("  note  a [note] a [note]")
    assert " \n" not in screen.text
    assert max(map(len, screen.lines)) <= 80


@pytest.mark.parametrize(
    ("device", "count", "line"),
    [
        ("cpu", 1, "Workers  1 evaluator (CPU, 1 thread), 1 shard"),
        ("cpu", 2, "Workers  2 evaluators (CPU, 2 threads), 2 shards"),
        ("cuda", 2, "Workers  2 evaluators (GPU), 2 shards"),
    ],
)
def test_workers_are_counted_in_english(device: str, count: int, line: str) -> None:
    screen = Screen()

    screen.terminal.session(SimpleNamespace(device=device, evaluators=count, shards=count, threads=count))

    assert screen.lines[0] == line


def statistics(names: list[str], alike: float) -> tuple[Any, Statistics]:
    """Make up founders whose deltas all have one cosine with each other."""
    models = [founder(name) for name in ("base", *names)]
    gram = np.full((len(models), len(models)), alike) + (1 - alike) * np.eye(len(models))
    whole = Statistics(tuple(m.digest for m in models), ("w",), np.array([9]), np.zeros((1, len(models))), gram[None])
    return SimpleNamespace(founders=models[1:]), whole


def test_the_kinship_matrix_says_what_it_means() -> None:
    screen = Screen()

    screen.terminal.kinship("cs", *statistics(["ann", "bob"], 0.95))

    assert screen.lines == [
        "Kinship of the founders (cs)",
        "       ann    bob",
        "ann  1.000  0.950",
        "bob  0.950  1.000",
        "Mean over pairs 0.950: so alike that merging will gain little.",
        "",
    ]


def test_long_names_make_way_for_numbers() -> None:
    screen = Screen()

    screen.terminal.kinship("pcc", *statistics([f"some-quite-long-name-{number}" for number in range(5)], 0.25))

    assert screen.lines[1].split() == ["1", "2", "3", "4", "5"]
    assert screen.lines[3] == "2 some-quite-long-name-1  0.250  1.000  0.250  0.250  0.250"
    assert screen.lines[-2] == "Mean over pairs 0.250."


def test_the_leaderboard_lines_up() -> None:
    screen = Screen()

    screen.terminal.leaderboard(board(ann=around(0.25), bob=around(0.375), child=around(0.5, spread=0.05)))

    assert screen.lines == [
        "Leaderboard",
        "model              search score  held-out score  best is ahead by",
        "ann      founder  0.250 ± 0.000   0.250 ± 0.000    +0.250 ± 0.050",
        "bob      founder  0.375 ± 0.000   0.375 ± 0.000    +0.125 ± 0.050",
        "average  average  0.250 ± 0.000   0.250 ± 0.000    +0.250 ± 0.050",
        "g1-1     best     0.500 ± 0.050   0.500 ± 0.050                 –",
        "On held-out items g1-1 clearly beats every founder and the average: by 0.125 ±",
        "0.050 over bob, its nearest rival.",
        "Optimism of the search (its score minus the held-out score): +0.000.",
    ]


def test_a_founder_that_is_best_is_marked_in_its_row() -> None:
    screen = Screen()

    screen.terminal.leaderboard(Leaderboard([Entry("ann", "founder", around(0.5), None)], "ann", None))

    assert screen.lines[2] == "ann    founder, best  0.500 ± 0.000                 –"
    assert screen.lines[3] == "No child beats the founder ann on the search's items."


@pytest.mark.parametrize("live", [False, True])
def test_what_failed_in_the_comparison_has_its_reason_below(live: bool) -> None:
    screen = Screen(live=live)
    lost = Entry("base", "base", around(0.25), None, BOOM)

    screen.terminal.leaderboard(Leaderboard([lost, Entry("ann", "founder", around(0.5), around(0.5))], "ann", None))

    assert screen.lines[2] == "base   base           0.250 ± 0.000               –            failed"
    assert screen.lines[4] == f"  base  failed {BOOM}"


# -- the status line


def test_a_log_is_told_of_long_work_once_and_of_notes_only_when_verbose() -> None:
    quiet, verbose = Screen(), Screen(verbose=True)
    for screen in (quiet, verbose):
        screen.terminal.note("loading [tasks]")
        report = screen.terminal.progress("making models")
        for fraction in (0.0, 0.5, 1.0):
            report("step", fraction)

    assert quiet.lines == ["making models …"]
    assert verbose.lines == ["loading [tasks] …", "making models …"]


def test_work_that_was_done_before_is_not_told() -> None:
    screen = Screen()

    screen.terminal.progress("making models")("the models are ready", 1.0)

    assert screen.text == ""


def test_a_terminal_shows_what_is_being_done_and_how_far_it_is() -> None:
    screen = Screen(live=True)

    screen.terminal.note("loading [tasks]")
    screen.terminal.progress("making models")("step [3]", 0.5)
    screen.terminal.rest()

    assert "loading [tasks] …" in screen.text
    assert "making models: step [3] 50%" in screen.text


def test_a_pass_over_bytes_is_silent_in_a_log() -> None:
    screen = Screen()

    with screen.terminal.bytes("kinship", 100) as advance:
        advance(60)
        advance(40)

    assert screen.text.strip() == ""


def test_an_interruption_is_confirmed() -> None:
    screen = Screen(120)

    screen.terminal.interrupted()

    assert screen.lines[1] == ("Stopping: children in flight are finished and saved. Press Ctrl-C again to stop at once.")
