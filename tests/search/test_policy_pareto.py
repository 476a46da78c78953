"""The search for a Pareto front: who ranks, who is best, and what hyperparameters are judged by."""

from collections.abc import Mapping

import pytest

from kinray.core.recipe import Merge
from kinray.search.policy import TopK
from kinray.search.population import Child, Outcome
from tests.helpers.search import Score, chance_kinship, chance_score, on_tasks, parents_of, policy, run

ABC = ["a", "b", "c"]
SPECIALISTS = {"a": on_tasks(0.9, 0.1), "b": on_tasks(0.2, 0.8), "c": on_tasks(0.4, 0.4)}


def outcomes(table: Mapping[str, Outcome], default: Outcome) -> Score:
    return lambda child: table.get(child.name, default)


def names(children: list[Child]) -> list[str]:
    return [child.name for child in children]


def test_specialists_stay_in_the_top_where_the_mean_drops_them() -> None:
    scores = {**SPECIALISTS, "g1-1": on_tasks(0.6, 0.55), "g1-2": on_tasks(0.55, 0.54), "g1-3": on_tasks(0.5, 0.5)}

    pareto = run(policy(ABC, tasks=2, objective="pareto", max_generations=1), outcomes(scores, on_tasks(0, 0)))
    mean = run(policy(ABC, max_generations=1), outcomes(scores, on_tasks(0, 0)))

    assert names(pareto.top()) == ["a", "b", "g1-1"]
    assert names(mean.top()) == ["g1-1", "g1-2", "a"]


def test_the_second_generation_mates_the_front() -> None:
    scores = {**SPECIALISTS, "g1-1": on_tasks(0.6, 0.6)}

    search = run(policy(ABC, tasks=2, objective="pareto", policy="greedy", max_generations=2), outcomes(scores, on_tasks(0, 0)))

    assert list(parents_of(search, 2).values()) == [("a", "g1-1"), ("b", "g1-1")]


def test_the_best_is_the_highest_mean_on_the_front_and_explores() -> None:
    scores = {**SPECIALISTS, "g1-1": on_tasks(0.6, 0.6)}

    search = run(policy(ABC, tasks=2, objective="pareto", max_generations=2), outcomes(scores, on_tasks(0, 0)))

    best = search.population.best()
    assert best is not None and best.name == "g1-1"
    assert names(search.population.front()) == ["g1-1", "a", "b"]
    (exploration,) = [child for child in search.population.children if child.operator == "exploration"]
    assert exploration.parents[0] == "g1-1"


@pytest.mark.parametrize("seed", range(10))
def test_the_best_is_always_on_the_front(seed: int) -> None:
    search = run(
        policy(list("abcd"), chance_kinship(seed), objective="pareto", max_children=30), chance_score(seed, refusing=0.2)
    )

    best = search.population.best()
    assert best in search.population.front()
    assert best == search.population.front()[0]


def test_of_equal_models_the_founder_ranks_first() -> None:
    search = run(policy(ABC, tasks=2, objective="pareto", max_generations=2), outcomes({}, on_tasks(0.5, 0.5)))

    assert names(search.top()) == ABC


def test_there_is_no_front_when_the_mean_is_sought() -> None:
    assert run(policy(ABC, max_generations=1), outcomes(SPECIALISTS, on_tasks(0, 0))).population.front() == []


def test_hyperparameters_are_judged_by_the_gain_on_each_task() -> None:
    scores = {**SPECIALISTS, "g1-1": on_tasks(0.7, 0.5)}
    pareto = run(policy(ABC, tasks=2, objective="pareto", max_generations=1), outcomes(scores, on_tasks(0, 0)))
    mean = run(policy(ABC, max_generations=1), outcomes(scores, on_tasks(0, 0)))

    child = pareto.population["g1-1"]
    assert child.parents == ("a", "b")
    assert pareto.population.gains(child) == pytest.approx((0.7 - 0.55, 0.5 - 0.45))
    assert mean.population.gains(mean.population["g1-1"]) == (mean.population.gain(mean.population["g1-1"]),)
    assert pareto.population.gains(pareto.population["a"]) is None


# -- refusals


def refusing(*refused: str) -> Score:
    table = {**SPECIALISTS, **dict.fromkeys(refused, on_tasks(0.9, 0.9, refused="a floor"))}
    return outcomes(table, on_tasks(0.3, 0.3))


@pytest.mark.parametrize("objective", ["mean", "pareto"])
def test_a_refused_child_keeps_its_score_and_is_never_a_parent_and_never_the_best(objective: str) -> None:
    search = run(policy(ABC, tasks=2, objective=objective, max_generations=3), refusing("g1-1", "g2-1"))

    population = search.population
    assert population.score("g1-1") == 0.9 and population.refused("g1-1") == "a floor"
    assert not {"g1-1", "g2-1"} & {parent for child in population.children for parent in child.parents}
    assert not {"g1-1", "g2-1"} & {*names(population.ranked()), *names(population.front()), *names(search.top())}
    best = population.best()
    assert best is not None and best.name in ABC


def test_a_refusal_survives_a_restart() -> None:
    def fresh() -> TopK:
        return policy(ABC, tasks=2, max_generations=2)

    done = run(fresh(), refusing("g1-1"))
    again = fresh()
    again.load_state_dict(done.state_dict())

    assert again.population.refused("g1-1") == "a floor"
    assert names(again.top()) == names(done.top())


@pytest.mark.parametrize("objective", ["mean", "pareto"])
def test_hyperparameters_of_refused_children_are_avoided(objective: str) -> None:
    """The gain rises with t, but beyond one half a floor is broken."""

    def score(child: Child) -> Outcome:
        t = float(child.recipe.params["t"]) if isinstance(child.recipe, Merge) else 0.0  # type: ignore[arg-type]
        return on_tasks(t, t, refused="a floor" if t > 0.5 else None)

    methods = {"slerp": {"t": {"low": 0.0, "high": 1.0}}}
    settings = {"objective": objective, "children_per_mating": 10, "max_children": 120, "k": 2}
    search = run(policy(["a", "b"], tasks=2, methods=methods, **settings), score)

    last = search.population.children[-60:]
    assert sum(search.population.refused(child.name) is not None for child in last) < 24  # at random 30, by gain alone more
