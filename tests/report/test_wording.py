"""The sentences that a person reads."""

import math
from dataclasses import replace
from typing import Any

import pytest

from kinray.core.parameters import Varied
from kinray.core.scores import Difference, Scored, TaskScore
from kinray.report.leaderboard import Entry, Leaderboard
from kinray.report.wording import (
    clock,
    conclusions,
    describe,
    describe_merge,
    failures,
    front_rows,
    kinship_value,
    matings,
    plural,
    plus_minus,
    score_of,
    spent,
)
from kinray.search.population import Outcome
from tests.helpers import founder, merge
from tests.helpers.search import policy
from tests.report.results import BETTER, MIDDLE, WORSE, around, board, scored, search

OPTIMISM = "Optimism of the search (its score minus the held-out score): +0.000."


# -- what a comparison shows


def test_a_clear_lead_is_called_clear_and_the_nearest_rival_named() -> None:
    compared = board(ann=around(0.25), bob=around(0.375), average=around(0.125), child=around(0.5, spread=0.05))

    assert conclusions(compared) == [
        "On held-out items g1-1 clearly beats every founder and the average: by 0.125 ± 0.050 over bob, its nearest rival.",
        OPTIMISM,
    ]


def test_a_lead_within_two_standard_errors_is_not_called_clear() -> None:
    compared = board(ann=around(0.25), bob=around(0.125), average=around(0.375), child=around(0.5, spread=0.07))

    assert conclusions(compared) == [
        "On held-out items g1-1 leads every founder and the average, but not clearly (within 2 standard errors): "
        "by 0.125 ± 0.070 over the average, its nearest rival.",
        OPTIMISM,
    ]


def test_the_rival_that_a_lead_is_not_clear_over_is_the_one_named() -> None:
    compared = board(ann=around(0.25, spread=0.2), bob=around(0.375), average=around(0.125), child=around(0.5))

    assert "(within 2 standard errors): by 0.250 ± 0.200 over ann" in conclusions(compared)[0]


@pytest.mark.parametrize("rival", [0.5, 0.625])
def test_a_child_that_is_not_ahead_does_not_beat(rival: float) -> None:
    compared = board(ann=around(rival), child=around(0.5, spread=0.1))

    assert conclusions(compared)[0] == f"On held-out items g1-1 does not beat ann: it is behind by {rival - 0.5:.3f} ± 0.100."


def test_a_founder_that_is_best_is_not_praised() -> None:
    compared = board(best="ann", ann=around(0.75))

    assert conclusions(compared) == ["No child beats the founder ann on the search's items.", OPTIMISM]


def test_without_a_holdout_it_says_on_what_the_comparison_is() -> None:
    (sentence,) = conclusions(board(holdout=False, child=around(0.5)))

    assert sentence.startswith("On the items of the search itself g1-1 clearly beats every founder and the average")


def test_optimism_has_its_sign() -> None:
    compared = Leaderboard([Entry("g1-1", "best", around(0.5), around(0.625))], "g1-1", None)

    assert conclusions(compared) == ["Optimism of the search (its score minus the held-out score): -0.125."]


def test_what_failed_is_listed_with_its_reason() -> None:
    lost = Entry("base", "base", None, None, "its evaluator died")

    assert failures(Leaderboard([lost, Entry("ann", "founder", around(0.5), None)], "ann", None)) == [
        (lost, "its evaluator died")
    ]


# -- children


def test_a_child_is_described_by_its_method_and_parameters() -> None:
    (child,) = [child for child in search().population.children if child.name == "g1-1"]

    assert describe(child) == "task_arithmetic lambda=1.25 weight=[1, 0.5]"


def test_equal_values_of_all_models_are_written_once() -> None:
    a, b = founder("a"), founder("b")

    assert describe_merge(merge("ties", a, b, density=(0.5, 0.5), normalize=True)) == "ties density=0.5 normalize=true"


def test_a_value_that_varies_is_written_by_filter_and_from_the_first_layer_to_the_last() -> None:
    a, b = founder("a"), founder("b")
    rising = Varied((("", (0.2, 0.5, 0.8125)),))
    filtered = Varied((("attn.", (0.25, 0.5)), ("mlp.", (0.5,)), ("experts.", (0.5,)), ("", (1,))))

    assert describe_merge(merge("slerp", a, b, t=rising)) == "slerp t=0.2→0.5→0.812"
    assert describe_merge(merge("slerp", a, b, t=filtered)) == "slerp t={attn: 0.25→0.5, mlp|experts: 0.5, rest: 1}"
    assert describe_merge(merge("ties", a, b, weight=(rising, 1))) == "ties weight=[0.2→0.5→0.812, 1]"
    assert describe_merge(merge("ties", a, b, weight=(rising, rising))) == "ties weight=0.2→0.5→0.812"
    assert describe_merge(merge("ties", a, b, normalize=Varied((("mlp.", (True,)),)))) == "ties normalize={mlp: true}"


def test_a_long_gradient_is_cut() -> None:
    knots = tuple(number / 64 for number in range(64))

    text = describe_merge(merge("slerp", founder("a"), founder("b"), t=Varied((("", knots),))))

    assert text == "slerp t=0→0.0156→0.0312→0.0469→0.0625→…→0.984 (64 knots)"


def test_a_founder_is_described_by_nothing() -> None:
    assert describe(search().population.children[0]) == ""


def test_a_generation_is_told_by_its_matings() -> None:
    children = search().population.children

    assert matings([c for c in children if c.generation == 1]) == "3 children of bob × cid, bob × ann, cid × ann"
    assert matings([c for c in children if c.generation == 2]) == "2 children of g1-1 × bob, g1-1 × ann (exploration)"


def test_a_large_generation_names_its_first_matings() -> None:
    made = policy([f"f{number}" for number in range(8)])
    for number in range(8):
        made.tell(f"f{number}", Outcome(1 - number / 10))
        made.ask()
    made.ask()

    text = matings([child for child in made.population.children if child.generation == 1])

    assert text.startswith("28 children of f0 × f1, f0 × f2, ")
    assert text.endswith("f0 × f6 and 22 more pairs")


# -- numbers


def test_nouns_follow_their_numbers() -> None:
    assert (plural(1, "item"), plural(0, "item"), plural(2, "child", "children")) == ("1 item", "0 items", "2 children")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (100_000, "27:46:40")]
)
def test_times_may_be_longer_than_a_day(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_error_that_is_unknown_is_not_shown() -> None:
    assert plus_minus(0.5, 0.01) == "0.500 ± 0.010"
    assert plus_minus(0.5, None) == plus_minus(0.5, math.nan) == "0.500"
    assert score_of(Scored({"a": TaskScore(0.5, math.nan, (), ())})) == "0.500"
    assert score_of(None) == "–"


def test_kinships_are_written_by_their_kind() -> None:
    assert kinship_value("pcc", -0.04567) == "-0.046"
    assert kinship_value("ed", 0.00012345) == "0.0001234"
    assert kinship_value("cs", math.nan) == "–"


ROWS: list[dict[str, Any]] = [
    {"status": "refused", "seconds_evaluate": 8.0, "seconds_merge": 1.0, "seconds_copy": 0.5, "seconds_wait": 0.5},
    {"status": "scored", "seconds_evaluate": 80.0, "seconds_merge": 5.0, "seconds_copy": 2.5, "seconds_wait": 2.5},
    {"status": "failed", "seconds_evaluate": None, "seconds_merge": None, "seconds_copy": None, "seconds_wait": None},
]


def test_time_spent_is_split_by_part_over_the_models_that_were_scored() -> None:
    line = "Scoring 2 models took 1:40 (50.0 s each): evaluating 1:28, merging 6.0 s, copying 3.0 s, waiting 3.0 s."

    assert spent(ROWS) == line
    assert spent(ROWS[2:]) is None


def test_tokens_and_gpu_seconds_are_told_where_they_were_counted() -> None:
    rows = [
        row | {"tokens": tokens, "gpu_seconds": 9.5, "device": "cuda"}
        for row, tokens in zip(ROWS, (1000, None, None), strict=True)
    ]
    held_out = Scored({}, {"merge": 1.0, "evaluate": 4.0}, tokens=234_567, gpu_seconds=5.0)

    assert spent(rows, [held_out] * 2) == (
        "Scoring 2 models and 2 comparisons took 1:50 (27.5 s each): evaluating 1:36, merging 8.0 s, copying 3.0 s, waiting "
        "3.0 s; 470,134 tokens; 29 GPU-seconds."
    )


def test_what_was_remembered_is_told() -> None:
    line = spent([ROWS[0] | {"device": "score cache"}, ROWS[1] | {"device": "cpu"}])

    assert line is not None and line.startswith("Scoring 2 models (1 from the score cache) took 1:40")


def test_the_merge_gain_of_the_best_child_is_told() -> None:
    told = conclusions(board(gain=Difference(0.125, 0.0625)))

    assert "Merge gain of g1-1 (its search score minus its parents' mean): +0.125 ± 0.062." in told


def test_models_that_cannot_be_told_from_the_best_are_named_the_first_of_many() -> None:
    few = replace(board(), alike=["ann", "g1-2"])
    many = replace(board(), alike=[f"g2-{number}" for number in range(9)])

    sentence = "Indistinguishable from g1-1 on the search's items (within 2 standard errors, paired): "
    assert sentence + "ann, g1-2." in conclusions(few)
    assert sentence + "g2-0, g2-1, g2-2, g2-3, g2-4, g2-5 and 3 more." in conclusions(many)


def test_children_that_broke_a_floor_are_named() -> None:
    compared = Leaderboard([Entry("ann", "founder", around(0.5), None)], "ann", None, refused=["g1-1", "g2-x"])

    assert "Refused, since they lose more on a task than its floor allows: g1-1, g2-x." in conclusions(compared)


def test_a_front_is_written_by_task_with_errors() -> None:
    head, ann, best = front_rows({"ann": scored(WORSE, MIDDLE), "g1-1": scored(BETTER, BETTER)})

    assert head == ["model", "maths", "text", "mean"]
    assert ann == ["ann", "0.250 ± 0.250", "0.500 ± 0.289", "0.375 ± 0.191"]
    assert best[1:3] == ["0.750 ± 0.250"] * 2
