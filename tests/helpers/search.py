"""A search without models: made-up scores and kinships, and a loop that asks and tells in any order."""

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any

from kinray.config import MergeConfig, SearchConfig
from kinray.core.recipe import Merge, Recipe
from kinray.search.policy import Kinship, TopK
from kinray.search.population import Child, Outcome
from kinray.search.proposals import Proposer, proposer_for
from kinray.search.space import search_space
from tests.helpers.recipes import founder

Score = Callable[[Child], float | Outcome | None]
Between = Callable[[Recipe, Recipe], float]
FIXED: Mapping[str, Any] = {"slerp": {"t": 0.5}}


def proposer(methods: Mapping[str, Any] = FIXED, seed: int = 0, objectives: int = 1) -> Proposer:
    return proposer_for(search_space(MergeConfig(methods=dict(methods)).methods), seed, objectives)


def policy(
    founders: list[str],
    between: Between = lambda a, b: 0.5,
    methods: Mapping[str, Any] = FIXED,
    seed: int = 0,
    tasks: int = 3,
    **settings: Any,
) -> TopK:
    """Make a fresh policy over made-up founders, for scores on so many tasks."""
    models = [founder(name) for name in founders]
    config = SearchConfig(**settings)
    objectives = tasks if config.objective == "pareto" else 1
    return TopK(models, founder("base"), proposer(methods, seed, objectives), with_each(between), config, seed)


def with_each(between: Between) -> Kinship:
    """Turn the kinship of pairs into what a policy asks for."""
    return lambda a, others: [between(a, b) for b in others]


def outcome(score: float | Outcome | None) -> Outcome:
    if isinstance(score, Outcome):
        return score
    return Outcome(None, "it broke") if score is None else Outcome(score)


def on_tasks(*scores: float, refused: str | None = None) -> Outcome:
    """Make the outcome of a child from its scores on tasks of equal weight."""
    return Outcome(sum(scores) / len(scores), None, {f"task{number}": score for number, score in enumerate(scores)}, refused)


def run(search: TopK, score: Score) -> TopK:
    """Score one child after the other until the search ends."""
    while (child := search.ask()) is not None:
        search.tell(child.name, outcome(score(child)))
    assert search.finished
    return search


def run_shuffled(search: TopK, score: Score, order: random.Random) -> TopK:
    """Keep some children out at a time and tell their scores in a drawn order, some of them twice."""
    out: list[Child] = []
    while not search.finished:
        child = search.ask() if order.random() < 0.6 or not out else None
        if child is not None:
            out.append(child)
        elif out:
            done = out.pop(order.randrange(len(out)))
            for _ in range(order.choice([1, 1, 2])):
                search.tell(done.name, outcome(score(done)))
    assert not out
    return search


def lineage(search: TopK) -> list[tuple[Any, ...]]:
    """Say everything that a search made, in order."""
    return [(child.number, child.name, child.operator, child.parents, child.recipe) for child in search.population.children]


def parents_of(search: TopK, generation: int) -> dict[str, tuple[str, ...]]:
    """Name the children of one generation and their parents."""
    return {child.name: child.parents for child in search.population.children if child.generation == generation}


def chance(*place: object) -> float:
    """Return a number in [0, 1) that depends on ``place`` alone."""
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:6], "big") / 2**48


def chance_kinship(seed: int) -> Between:
    """Make up symmetric kinships with ties, one in eight undefined."""

    def between(a: Recipe, b: Recipe) -> float:
        value = chance("kinship", seed, *sorted((a.digest, b.digest)))
        return float("nan") if value < 1 / 8 else round(2 * value - 1, 1)

    return between


def chance_score(seed: int, failing: float = 0.1, refusing: float = 0.0) -> Score:
    """Make up scores on three tasks, with ties; children get better with depth for a while, some fail and some are refused."""

    def score(child: Child) -> Outcome | None:
        digest, merged = child.recipe.digest, isinstance(child.recipe, Merge)
        if merged and chance("failure", seed, digest) < failing:
            return None
        scores = [round(chance("score", seed, task, digest) + 0.2 * min(child.recipe.depth, 4), 1) for task in range(3)]
        return on_tasks(*scores, refused="a floor" if merged and chance("floor", seed, digest) < refusing else None)

    return score
