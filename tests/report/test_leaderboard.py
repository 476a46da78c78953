"""Leads are differences on the same items."""

import math

import pytest

from kinray.report.leaderboard import Entry, Leaderboard, indistinguishable
from tests.report.results import BETTER, MIDDLE, WORSE, around, board, scored


def test_a_lead_is_the_mean_of_paired_differences_with_its_error() -> None:
    compared = board(ann=scored(WORSE), child=scored(BETTER))

    lead = compared.lead(compared["ann"])

    # Item by item 0, 1, 0, 1: mean 1/2, variance 1/3 over 4 items.
    assert lead is not None
    assert lead.mean == 0.5
    assert lead.stderr == pytest.approx(math.sqrt((1 / 3) / 4))


def test_a_lead_over_several_tasks_is_weighted() -> None:
    weights = (1.0, 3.0)
    ann, best = scored(WORSE, MIDDLE, weights=weights), scored(BETTER, BETTER, weights=weights)
    compared = board(ann=ann, child=best)

    lead = compared.lead(compared["ann"])

    # maths leads by 1/2 with variance 1/3, text by 1/4 with variance 1/4, over 4 items each.
    assert lead is not None
    assert lead.mean == (1 * 0.5 + 3 * 0.25) / 4
    assert lead.stderr == pytest.approx(math.sqrt(1 / 12 + 9 / 16) / 4)


def test_items_that_are_hard_for_both_make_no_error() -> None:
    """Unpaired, the error of this difference would be 0.41."""
    compared = board(ann=scored([0.9, 0.1, 0.5, 0.5]), child=scored([1.0, 0.2, 0.6, 0.6]))

    lead = compared.lead(compared["ann"])

    assert lead is not None
    assert lead.stderr < 1e-9 < lead.mean


def test_held_out_items_count_where_there_are_any() -> None:
    ann = Entry("ann", "founder", scored(BETTER), scored(WORSE))
    best = Entry("g1-1", "best", scored(BETTER), scored(BETTER))
    compared = Leaderboard([ann, best], "g1-1", None)

    lead = compared.lead(ann)

    assert lead is not None
    assert lead.mean == 0.5


def test_a_model_without_held_out_scores_is_not_compared_on_others() -> None:
    lost = Entry("ann", "founder", scored(WORSE), None, "its evaluator died")
    best = Entry("g1-1", "best", scored(BETTER), scored(BETTER))

    assert Leaderboard([lost, best], "g1-1", None).lead(lost) is None


def test_without_a_holdout_the_searchs_items_count() -> None:
    compared = board(holdout=False, ann=scored(WORSE), child=scored(BETTER))

    lead = compared.lead(compared["ann"])

    assert lead is not None
    assert lead.mean == 0.5
    assert compared.optimism is None


def test_the_best_has_no_lead_over_itself() -> None:
    assert [entry.name for entry, _ in board().leads()] == ["ann", "bob", "average"]


def test_optimism_is_what_choosing_added() -> None:
    entries = [Entry("g1-1", "best", around(0.75), around(0.625))]

    assert Leaderboard(entries, "g1-1", None).optimism == 0.125


def test_models_are_indistinguishable_from_the_best_within_two_standard_errors_of_the_same_items() -> None:
    best = around(0.5)
    others = {
        "equal": around(0.5),
        "near": around(0.375, spread=0.07),
        "clear": around(0.375, spread=0.06),
        "low": around(0.25),
    }

    assert indistinguishable(best, others.items()) == ["equal", "near"]
