"""What a person reads before and after a search."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kinray.core.scores import Scored
from kinray.core.statistics import Statistics
from kinray.report.leaderboard import Entry, Leaderboard
from tests.helpers import founder
from tests.report.results import BETTER, MIDDLE, WORSE, around, board, scored
from tests.report.screen import Screen

BOOM = "tensor '[/bold] boom [red]' holds NaN"


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

    screen.terminal.session(SimpleNamespace(device=device, evaluators=count, shards=count, threads=count, gpus=1))

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


def test_a_front_is_marked_and_listed_by_task() -> None:
    screen = Screen()
    ann, best = scored(WORSE, BETTER), scored(BETTER, MIDDLE)
    entries = [Entry("ann", "founder", ann, None), Entry("g1-1", "best", best, None)]

    screen.terminal.leaderboard(Leaderboard(entries, "g1-1", None, front={"g1-1": best, "ann": ann}))

    assert screen.lines[2].startswith("ann    founder, front  0.500 ± 0.177")
    assert screen.lines[3].startswith("g1-1   best, front     0.625 ± 0.191")
    assert screen.lines[-5:] == [
        "",
        "Pareto front on the search's items, the highest mean first",
        "model          maths           text           mean",
        "g1-1   0.750 ± 0.250  0.500 ± 0.289  0.625 ± 0.191",
        "ann    0.250 ± 0.250  0.750 ± 0.250  0.500 ± 0.177",
    ]


def test_a_front_over_many_tasks_wraps_within_the_terminal() -> None:
    screen = Screen(60)
    wide = Scored({f"a_task_{number}": around(0.5).tasks["maths"] for number in range(6)})

    screen.terminal.leaderboard(Leaderboard([Entry("ann", "founder", wide, None)], "ann", None, front={"ann": wide}))

    assert max(map(len, screen.lines)) <= 60
    assert "…" not in screen.text and screen.text.count("0.500") == 1 + 7


@pytest.mark.parametrize("live", [False, True])
def test_what_failed_in_the_comparison_has_its_reason_below(live: bool) -> None:
    screen = Screen(live=live)
    lost = Entry("base", "base", around(0.25), None, BOOM)

    screen.terminal.leaderboard(Leaderboard([lost, Entry("ann", "founder", around(0.5), around(0.5))], "ann", None))

    assert screen.lines[2] == "base   base           0.250 ± 0.000               –            failed"
    assert screen.lines[4] == f"  base  failed {BOOM}"
