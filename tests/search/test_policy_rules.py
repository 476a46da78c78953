"""The rules of the search: who mates whom, ties, budgets, stops and failures."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kinray.core.recipe import Merge, Recipe
from kinray.core.scores import Failed, Scored, TaskScore
from kinray.errors import RunError
from kinray.search.policy import Kinship
from kinray.search.population import Child, Outcome
from tests.helpers.recipes import founder
from tests.helpers.search import Score, chance_kinship, chance_score, lineage, parents_of, policy, run

ABC = ["a", "b", "c"]


def scores(table: Mapping[str, float | None], default: float = 0.0) -> Score:
    return lambda child: table.get(child.name, default)


def kin(table: Mapping[str, float], default: float = 0.5) -> Kinship:
    """Give founders' kinships as {"ab": 0.1}; anything else has the default."""
    names = {founder(name).digest: name for name in "abcdef"}

    def between(a: Recipe, b: Recipe) -> float:
        pair = sorted(names.get(model.digest, "?") for model in (a, b))
        return table.get("".join(pair), default)

    return between


def explorations(search: Any) -> list[tuple[str, ...]]:
    return [child.parents for child in search.population.children if child.operator == "exploration"]


def test_equal_scores_rank_the_earlier_model_first() -> None:
    search = run(policy(ABC, max_generations=2, k=2), scores({}, default=0.5))

    assert parents_of(search, 1) == {"g1-1": ("a", "b"), "g1-2": ("a", "c"), "g1-3": ("b", "c")}
    assert [child.name for child in search.top()] == ["a", "b"]


def test_first_parent_is_the_higher_ranked() -> None:
    search = run(policy(ABC, max_generations=1), scores({"a": 0.1, "b": 0.3, "c": 0.2}))

    children = search.population.children[3:]
    assert [child.parents for child in children] == [("b", "c"), ("b", "a"), ("c", "a")]
    assert children[0].recipe == Merge("slerp", (founder("b"), founder("c")), {"t": 0.5})


def test_methods_on_deltas_name_their_base_and_others_do_not() -> None:
    slerp = run(policy(ABC, max_generations=1), scores({})).population["g1-1"].recipe
    ties = run(policy(ABC, methods={"ties": {}}, max_generations=1), scores({})).population["g1-1"].recipe

    assert isinstance(slerp, Merge)
    assert isinstance(ties, Merge)
    assert slerp.base is None
    assert ties.base == founder("base")


def test_a_pair_is_never_merged_twice() -> None:
    for seed in range(5):
        for name in ("kinship", "greedy", "random"):
            search = run(policy(list("abcd"), chance_kinship(seed), policy=name, seed=seed), chance_score(seed))

            pairs = [frozenset(child.parents) for child in search.population.children if child.parents]
            assert len(pairs) == len(set(pairs))


FAR = {"ab": 0.3, "ac": -0.2, "ad": 0.1}
TOP_A = {"a": 0.9, "b": 0.5, "c": 0.4, "d": 0.3, "g1-1": 0.8}


def test_exploration_takes_the_next_distant_mate_when_the_most_distant_was_taken() -> None:
    # Every founder was merged with a in generation 1, so only children are left, all equally distant: the earliest.
    search = run(policy(list("abcd"), kin(FAR), k=2, max_generations=2), scores(TOP_A))

    assert parents_of(search, 2) == {"g2-1": ("a", "g1-1"), "g2-x": ("a", "g1-2")}


def test_exploration_leaves_out_pairs_of_its_own_generation() -> None:
    search = run(policy(ABC, kin({}), k=2, max_generations=2), scores({"a": 0.9, "g1-2": 0.8}))

    assert parents_of(search, 2) == {"g2-1": ("a", "g1-2"), "g2-x": ("a", "g1-1")}


def _by_name(kinships: Mapping[str, float]) -> tuple[Kinship, Score]:
    """Give kinships to the best model by the other's name, which scoring tells."""
    names: dict[str, str] = {}

    def score(child: Child) -> float:
        names[child.recipe.digest] = child.name
        return {"a": 0.9}.get(child.name, 0.1)

    return lambda a, b: kinships.get(names[b.digest], 0.5), score


@pytest.mark.parametrize(
    ("metric", "kinships", "mate"),
    [
        ("pcc", {"g1-1": 0.4, "g1-2": 0.2, "g1-3": 0.3}, "g1-2"),
        ("cs", {"g1-1": -0.4, "g1-2": 0.2, "g1-3": 0.3}, "g1-1"),
        ("ed", {"g1-1": 0.4, "g1-2": 0.2, "g1-3": 0.9}, "g1-3"),
        ("pcc", {"g1-1": float("nan"), "g1-2": float("nan"), "g1-3": 0.9}, "g1-3"),
        ("ed", {"g1-1": float("nan"), "g1-2": 0.1, "g1-3": 0.1}, "g1-2"),
    ],
)
def test_exploration_takes_the_least_akin(metric: str, kinships: dict[str, float], mate: str) -> None:
    kinship, score = _by_name(kinships)

    search = run(policy(ABC, kinship, k=2, kinship=metric, max_generations=2), score)

    assert explorations(search) == [("a", mate)]


def test_undefined_kinships_leave_nothing_to_explore() -> None:
    search = run(policy(ABC, lambda a, b: float("nan")), scores({"a": 0.9}))

    assert explorations(search) == []
    assert search.finished


@pytest.mark.parametrize(
    ("pool", "expected"), [("population", [("a", "g1-3")]), ("top-k", []), ("generation", [("a", "g1-3")])]
)
def test_mate_comes_from_the_pool(pool: str, expected: list[tuple[str, str]]) -> None:
    kinship, score = _by_name({"g1-3": 0.1})

    search = run(policy(ABC, kinship, k=2, mate_pool=pool, max_generations=2), score)

    assert explorations(search) == expected


def test_pool_of_the_generation_holds_no_older_models() -> None:
    search = run(
        policy(
            ABC,
            lambda a, b: 0.1 if b in (founder("b"), founder("c")) else 0.5,
            mate_pool="generation",
            max_generations=3,
        ),
        scores({"g1-1": 0.9, "g2-1": 0.95, "g2-2": 0.94}, default=0.1),
    )

    mates = {child.generation: search.population[child.parents[1]].generation for child in search.population.children[3:]
             if child.operator == "exploration"}  # fmt: skip
    assert mates == {2: 1, 3: 2}


def test_children_of_one_mating_differ_in_hyperparameters() -> None:
    search = run(
        policy(ABC, kin({}), methods={"slerp": {"t": {"low": 0.1, "high": 0.9}}}, children_per_mating=3, max_generations=2),
        scores({"g1-2": 0.9}),
    )

    first = [child for child in search.population.children if child.generation == 1]
    assert [child.name for child in first] == [f"g1-{number}" for number in range(1, 10)]
    assert [child.parents for child in first] == [("a", "b"), ("a", "c"), ("b", "c")] * 3
    assert len({child.recipe.digest for child in first}) == 9
    assert [name for name in parents_of(search, 2) if "x" in name] == ["g2-x1", "g2-x2", "g2-x3"]


def test_a_mating_without_choices_has_one_child() -> None:
    search = run(policy(ABC, children_per_mating=4, max_generations=1), scores({}))

    assert search.made() == 3


def test_a_mating_has_as_many_children_as_there_are_choices() -> None:
    methods = {"slerp": {"t": [0.25, 0.5, 0.75]}}

    search = run(policy(["a", "b"], methods=methods, children_per_mating=50, max_generations=1), scores({}))

    recipes = [child.recipe for child in search.population.children[2:]]
    assert sorted(recipe.params["t"] for recipe in recipes if isinstance(recipe, Merge)) == [0.25, 0.5, 0.75]


# -- stops


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "the top 3 did not change in generation 2"),
        ({"max_generations": 1}, "the budget of 1 generations is spent"),
        ({"max_children": 2}, "the budget of 2 children is spent"),
        ({"max_children": 3}, "the budget of 3 children is spent"),
        ({"stop_kinship": 0.4}, "the mean kinship within the top 3 is 0.500, above 0.4"),
        ({"k": 2, "policy": "greedy"}, "no new pair is left to merge"),
    ],
)
def test_search_says_why_it_stopped(settings: dict[str, Any], reason: str) -> None:
    search = run(policy(ABC, **settings), scores({"a": 0.9, "b": 0.8, "c": 0.7}))

    assert search.finished == reason
    assert search.ask() is None


def test_top_that_stays_in_the_first_generation_is_no_reason_to_stop() -> None:
    search = run(policy(ABC, max_generations=5), scores({"a": 0.9, "b": 0.8, "c": 0.7}))

    assert search.generation == 2


def test_kinship_within_the_top_must_be_above_the_limit() -> None:
    search = run(policy(ABC, stop_kinship=0.5), scores({"a": 0.9, "b": 0.8, "c": 0.7}))

    assert search.finished == "the top 3 did not change in generation 2"


@pytest.mark.parametrize("budget", range(1, 9))
def test_budget_of_children_is_kept_exactly(budget: int) -> None:
    search = run(policy(list("abcd"), chance_kinship(0), max_children=budget), chance_score(1, failing=0.5))

    assert search.made() == budget


def test_search_that_always_gets_better_stops_at_the_depth_of_recipes() -> None:
    search = run(policy(["a", "b"], k=2, policy="greedy"), lambda child: float(child.number))

    assert search.finished == "the budget of 256 generations is spent"
    assert max(child.recipe.depth for child in search.population.children) <= 256


def test_stop_from_outside_ends_the_asking() -> None:
    search = policy(ABC)
    search.ask()

    search.stop("the budget of 2 hours is spent")
    search.stop("another reason")

    assert search.ask() is None
    assert search.finished == "the budget of 2 hours is spent"


# -- failures


def test_failed_children_count_and_are_never_parents() -> None:
    search = run(policy(ABC, max_children=5), scores({"a": 0.9, "b": 0.8, "c": 0.7, "g1-1": None, "g1-2": 0.95}))

    assert search.made() == 5
    assert "g1-1" not in {parent for child in search.population.children for parent in child.parents}
    assert "g1-1" not in {child.name for child in search.top()}


def test_failed_founder_is_no_parent() -> None:
    search = run(policy(list("abc"), max_generations=1), scores({"b": None}))

    assert parents_of(search, 1) == {"g1-1": ("a", "c")}


def test_generation_that_failed_as_a_whole_ends_the_search() -> None:
    search = run(policy(ABC), scores({"g1-1": None, "g1-2": None, "g1-3": None}))

    assert search.finished == "no new pair is left to merge"


@pytest.mark.parametrize("failed", [{"a": None, "b": None}, {"a": None, "b": None, "c": None}])
def test_fewer_than_two_founders_are_an_error_with_the_causes(failed: dict[str, None]) -> None:
    with pytest.raises(RunError, match=r"Fewer than two founders could be scored, .*: it broke."):
        run(policy(ABC), scores(failed))


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, Outcome(0.5, None, {"t": 0.5})), (float("nan"), Outcome(None, "the score is NaN"))]
)
def test_a_score_that_is_no_number_is_a_failure(value: float, expected: Outcome) -> None:
    assert Outcome.of(Scored({"t": TaskScore(value, 0.1, ("0",), (value,))})) == expected
    assert Outcome.of(Failed("out of memory")) == Outcome(None, "out of memory")


# -- random


def test_random_policy_merges_as_many_pairs_as_the_top_has() -> None:
    search = run(policy(list("abcd"), policy="random", max_generations=3, k=3), chance_score(3, failing=0))

    assert len(parents_of(search, 1)) == 6
    assert [len(parents_of(search, generation)) for generation in (2, 3)] == [3, 3]
    assert explorations(search) == []


def test_random_policy_follows_its_seed() -> None:
    def made(seed: int) -> list[tuple[Any, ...]]:
        return lineage(run(policy(list("abcd"), policy="random", max_generations=3, seed=seed), chance_score(0)))

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_random_policy_reaches_beyond_the_top() -> None:
    tops: Callable[[int], Any] = lambda seed: run(  # noqa: E731
        policy(list("abcdef"), policy="random", max_generations=2, k=2, seed=seed), scores({"a": 0.9, "b": 0.8})
    )

    mates = {parent for seed in range(10) for pair in parents_of(tops(seed), 2).values() for parent in pair}
    assert len(mates) > 5
