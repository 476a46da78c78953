"""What a person sees: on a terminal, in a log, at 80 columns, and with brackets where nobody expects them."""

import pytest

from kinray.core.scores import Failed, Result
from kinray.search.policy import TopK
from kinray.search.population import Outcome
from tests.helpers.search import policy
from tests.report.screen import Screen, scored, watch

BOOM = "tensor '[/bold] boom [red]' holds NaN"


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
        "  ann  0.500 ± 0.020                         2.0 s  best so far",
        "  bob  0.250 ± 0.020                         2.0 s  from records",
        "Generation 1  1 child of ann × bob",
        "  g1-1  0.625 ± 0.020  gain +0.250 ± 0.013    2.0 s  best so far",
        "        ann × bob  task_arithmetic lambda=1.25 weight=[1, 0.5]",
        "Generation 2  1 child of g1-1 × ann",
        f"  g2-1  failed {BOOM}",
        "        g1-1 × ann  task_arithmetic lambda=1.25 weight=[1, 0.5]",
    ]


def test_a_terminal_shows_children_and_takes_its_status_line_away() -> None:
    screen = Screen(live=True)

    watch(screen, small_search(), RESULTS)

    assert "  g1-1  0.625 ± 0.020  gain +0.250 ± 0.013    2.0 s  best so far" in screen.lines
    assert f"  g2-1  failed {BOOM}" in screen.lines
    assert "generation 2 · 1/1 done · best g1-1 0.625 ± 0.020" in screen.text
    assert not any("done" in line for line in screen.lines)
    assert screen.lines[-2] == "Finished: the top 2 did not change in generation 2. 2 children in 2 generations."


def test_a_refused_child_is_shown_with_its_score_and_the_reason() -> None:
    quiet, verbose = Screen(), Screen(verbose=True)
    for screen in (quiet, verbose):
        watch(screen, small_search(), RESULTS, refused=("g1-1",))

    at = verbose.lines.index("  g1-1  0.625 ± 0.020  gain +0.250 ± 0.013    2.0 s")
    assert verbose.lines[at + 1] == "        refused loses 9.0 points"
    assert "  1 scored, 1 of them refused; best so far ann 0.500 ± 0.020" in quiet.lines


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
