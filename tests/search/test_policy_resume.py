"""A search depends on its outcomes and never on when they came, nor on being stopped and started again."""

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinray.errors import RunError
from kinray.search.policy import TopK
from tests.helpers.search import (
    FIXED,
    Score,
    chance_kinship,
    chance_score,
    lineage,
    outcome,
    policy,
    run,
    run_shuffled,
)

OPEN: Mapping[str, Any] = {
    "slerp": {"t": {"low": 0.1, "high": 0.9}},
    "ties": {"density": [0.2, 0.5], "normalize": [True, False]},
}
ABC = ["a", "b", "c"]
LAYERED: Mapping[str, Any] = {
    "slerp": {"t": {"attention": {"low": 0.1, "high": 0.9, "layers": 3}, "mlp": [0.3, 0.5], "rest": 0.5}},
    "della": {
        "density": {"low": 0.3, "high": 0.6, "layers": 2},
        "weight": {"models": [{"layers": [1, {"low": 0.5, "high": 1}]}, {"mlp": {"low": 0.1, "high": 1, "log": True}}]},
    },
}
CHOICES: Mapping[str, Any] = {"slerp": {"t": [0.25, 0.5]}, "linear": {}}

searches = st.fixed_dictionaries(
    {
        "methods": st.sampled_from([FIXED, OPEN, CHOICES, LAYERED]),
        "seed": st.integers(0, 1000),
        "objective": st.sampled_from(["mean", "pareto"]),
        "policy": st.sampled_from(["kinship", "kinship", "greedy", "random"]),
        "kinship": st.sampled_from(["pcc", "cs", "ed"]),
        "mate_pool": st.sampled_from(["population", "top-k", "generation"]),
        "k": st.integers(2, 4),
        "children_per_mating": st.integers(1, 3),
        "max_children": st.integers(1, 40),
    }
)


def fresh(settings: Mapping[str, Any]) -> TopK:
    return policy(list("abcd"), chance_kinship(settings["seed"]), **settings)


def score_of(settings: Mapping[str, Any]) -> Score:
    return chance_score(settings["seed"], refusing=0.1)


@given(searches, st.integers(0, 10_000).map(random.Random))
def test_order_of_arrival_does_not_change_the_lineage(settings: dict[str, Any], order: random.Random) -> None:
    expected = run(fresh(settings), score_of(settings))

    shuffled = run_shuffled(fresh(settings), score_of(settings), order)

    assert lineage(shuffled) == lineage(expected)
    assert shuffled.finished == expected.finished


def run_with_restarts(settings: Mapping[str, Any], order: random.Random) -> tuple[TopK, int]:
    """Ask and tell in a drawn order; now and then forget everything but the saved state, children that are out too."""
    search, out, restarts = fresh(settings), [], 0
    score = score_of(settings)
    while not search.finished:
        if order.random() < 0.2:
            state = json.dumps(search.state_dict(), allow_nan=False)
            search, out, restarts = fresh(settings), [], restarts + 1
            search.load_state_dict(json.loads(state))
        child = search.ask() if order.random() < 0.6 or not out else None
        if child is not None:
            out.append(child)
        elif out:
            done = out.pop(order.randrange(len(out)))
            search.tell(done.name, outcome(score(done)))
    return search, restarts


@settings(max_examples=60)
@given(searches, st.integers(0, 10_000).map(random.Random))
def test_restart_at_any_moment_goes_on_to_the_same_lineage(settings: dict[str, Any], order: random.Random) -> None:
    expected = run(fresh(settings), score_of(settings))

    search, _ = run_with_restarts(settings, order)

    assert lineage(search) == lineage(expected)
    assert search.finished == expected.finished
    assert search.state_dict() == expected.state_dict()


@pytest.mark.parametrize("methods", [OPEN, LAYERED], ids=["open", "layered"])
def test_restarts_do_happen_in_the_test_above(methods: Mapping[str, Any]) -> None:
    settings = {"methods": methods, "seed": 1, "children_per_mating": 2, "max_children": 60}

    _, restarts = run_with_restarts(settings, random.Random(0))

    assert restarts > 5


@pytest.mark.parametrize("methods", [FIXED, OPEN], ids=["fixed", "open"])
def test_finished_search_stays_finished(methods: Mapping[str, Any]) -> None:
    settings = {"methods": methods, "seed": 2, "max_generations": 2}
    done = run(fresh(settings), score_of(settings))

    again = fresh(settings)
    again.load_state_dict(json.loads(json.dumps(done.state_dict())))

    assert again.ask() is None
    assert again.finished == done.finished
    assert [child.name for child in again.top()] == [child.name for child in done.top()]


def test_children_that_were_out_are_asked_again() -> None:
    search = fresh({"methods": FIXED, "seed": 0})
    founders = [search.ask() for _ in range(4)]
    for child in founders[:2]:
        assert child is not None
        search.tell(child.name, outcome(0.5))

    again = fresh({"methods": FIXED, "seed": 0})
    again.load_state_dict(search.state_dict())

    assert [child and child.name for child in (again.ask(), again.ask(), again.ask())] == ["c", "d", None]
    assert not again.finished


def test_first_of_two_outcomes_counts() -> None:
    search = fresh({"methods": FIXED, "seed": 0})
    child = search.ask()
    assert child is not None

    search.tell(child.name, outcome(0.5))
    search.tell(child.name, outcome(0.9))

    assert search.population.score(child.name) == 0.5


def test_waiting_is_not_the_end() -> None:
    search = fresh({"methods": FIXED, "seed": 0})
    founders = [search.ask() for _ in range(4)]

    assert search.ask() is None
    assert search.finished is None
    assert search.population.out == {child.name for child in founders if child}


@pytest.mark.parametrize(("key", "value"), [("params", {"t": 0.25}), ("method", "linear"), ("digest", "0" * 64)])
def test_damaged_state_is_refused(key: str, value: Any) -> None:
    settings = {"methods": FIXED, "seed": 0, "max_generations": 1}
    state = run(fresh(settings), score_of(settings)).state_dict()
    state["children"][0][key] = value
    if key == "method":
        state["children"][0]["params"] = {}

    with pytest.raises(RunError, match="saved state of child g1-1 is damaged"):
        fresh(settings).load_state_dict(state)


def test_a_stop_for_hours_ends_the_session_and_not_the_search() -> None:
    stopped = policy(ABC, max_children=3)
    first = stopped.ask()
    assert first is not None
    stopped.stop("the budget of hours is spent")
    assert stopped.ask() is None and stopped.finished == "the budget of hours is spent"

    resumed = policy(ABC, max_children=3)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))

    assert resumed.finished is None
    assert [child.name for child in iter(resumed.ask, None)] == ["a", "b", "c"]
