"""The population of a search: founders and children, their outcomes, and who ranks before whom."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kinray.core.recipe import Recipe
from kinray.core.scores import Failed, Result, Stopped
from kinray.core.statistics import Float64
from kinray.search.pareto import crowded_order, fronts

Objective = Literal["mean", "pareto"]
Operator = Literal["founder", "merge", "exploration"]


@dataclass(frozen=True)
class Child:
    """A model of the search, before or after it is scored. Founders are the children of generation 0.

    Args:
        number: 0, 1, 2 … in the order in which the policy made them; founders first.
        name: a founder's name, or ``g2-1`` and for explorations ``g2-x``.
        generation: 0 for founders.
        operator: how its parents were chosen.
        recipe: what it is.
        parents: names of its two parents, the higher ranked one first; none for founders.
        kinship: of its parents at mating, in the search's metric; None for founders.
    """

    number: int
    name: str
    generation: int
    operator: Operator
    recipe: Recipe
    parents: tuple[str, ...] = ()
    kinship: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a policy is told of a child.

    Args:
        score: the mean over tasks; None when it failed.
        error: what it failed with.
        tasks: its score on each task.
        refused: which floor it breaks; it then keeps its score, but has no rank, so it is never a parent and never the best.
        stopped: whether it was not asked all items; its score is an estimate, and it has no rank either.
    """

    score: float | None
    error: str | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    refused: str | None = None
    stopped: bool = False

    @classmethod
    def of(cls, result: Result, refused: str | None = None) -> "Outcome":
        """Reduce a result to what the search looks at; a score that is not a number is a failure."""
        if isinstance(result, Failed):
            return cls(None, result.error)
        if math.isnan(result.score):
            return cls(None, "the score is NaN")
        if isinstance(result, Stopped):
            return cls(result.score, stopped=True)
        return cls(result.score, None, {name: task.score for name, task in result.tasks.items()}, refused)


class Population:
    """Children by name and by digest, with their outcomes.

    Args:
        objective: what ranks them: the mean over tasks, or ``pareto``: non-dominated fronts, then distance from each other.
    """

    def __init__(self, objective: Objective = "mean") -> None:
        self._objective = objective
        self.children: list[Child] = []
        self._by_name: dict[str, Child] = {}
        self._digests: set[str] = set()
        self._outcomes: dict[str, Outcome] = {}
        self._best: Child | None = None
        self.out: set[str] = set()
        """Names of the children whose outcomes are awaited."""

    def add(self, child: Child) -> None:
        """Take in a new child; its number is its place."""
        assert child.number == len(self.children) and child.recipe.digest not in self._digests
        self.children.append(child)
        self._by_name[child.name] = child
        self._digests.add(child.recipe.digest)
        self.out.add(child.name)

    def __getitem__(self, name: str) -> Child:
        return self._by_name[name]

    def has(self, recipe: Recipe) -> bool:
        """Tell whether this very model is known already."""
        return recipe.digest in self._digests

    def tell(self, name: str, outcome: Outcome) -> None:
        """Keep the outcome of a child; telling the same one again changes nothing."""
        child = self._by_name[name]
        if name in self._outcomes:
            return
        self._outcomes[name] = outcome
        self.out.discard(name)
        if _ranks(outcome) and (self._best is None or self._place(child) < self._place(self._best)):
            self._best = child

    def outcome(self, name: str) -> Outcome | None:
        """Return a child's outcome, None while it is out."""
        return self._outcomes.get(name)

    def contends(self, name: str) -> bool:
        """Tell whether a child has a rank: it was scored on all items and not refused."""
        outcome = self.outcome(name)
        return outcome is not None and _ranks(outcome)

    def refused(self, name: str) -> str | None:
        """Return why a child was refused; None while it is out, and when it was not."""
        outcome = self.outcome(name)
        return outcome.refused if outcome else None

    def score(self, name: str) -> float:
        """Return the score of a child that has one."""
        outcome = self._outcomes[name]
        assert outcome.score is not None
        return outcome.score

    def gain(self, child: Child) -> float | None:
        """Return the merge gain, score minus the parents' mean; None for founders and for what failed."""
        outcome = self.outcome(child.name)
        if outcome is None or outcome.score is None or not child.parents:
            return None
        return outcome.score - sum(self.score(parent) for parent in child.parents) / len(child.parents)

    def gains(self, child: Child) -> tuple[float, ...] | None:
        """Return what hyperparameters are judged by: the merge gain, or under ``pareto`` that on each task."""
        gain = self.gain(child)
        if gain is None or self._objective == "mean":
            return None if gain is None else (gain,)
        parents = [self._outcomes[parent].tasks for parent in child.parents]
        return tuple(
            score - sum(parent[task] for parent in parents) / len(parents)
            for task, score in self._outcomes[child.name].tasks.items()
        )

    def contenders(self, among: Iterable[Child] | None = None) -> list[Child]:
        """Sort what was scored and not refused by the mean over tasks, then by number (so founders first)."""
        scored = [child for child in (self.children if among is None else among) if self.contends(child.name)]
        return sorted(scored, key=self._place)

    def ranked(self, among: Iterable[Child] | None = None) -> list[Child]:
        """Sort contenders by the objective; the order of ``contenders`` decides what that leaves equal."""
        children = self.contenders(among)
        if self._objective == "mean" or not children:
            return children
        return [children[number] for number in crowded_order(self._by_task(children))]

    def best(self) -> Child | None:
        """Return the contender with the highest mean, None while there is none.

        It is always on the front, since a model that dominated it would have a higher mean.
        """
        return self._best

    def front(self) -> list[Child]:
        """Return the contenders that no other one dominates, the highest mean first; under ``mean`` there is no front."""
        children = self.contenders()
        if self._objective == "mean" or not children:
            return []
        ranks_N = fronts(self._by_task(children)).tolist()
        return [child for child, rank in zip(children, ranks_N, strict=True) if rank == 0]

    def _place(self, child: Child) -> tuple[float, int]:
        return -self.score(child.name), child.number

    def _by_task(self, children: Iterable[Child]) -> Float64:
        """(N, T) float64, the scores of children on each task."""
        return np.array([list(self._outcomes[child.name].tasks.values()) for child in children], np.float64)


def _ranks(outcome: Outcome) -> bool:
    return outcome.score is not None and outcome.refused is None and not outcome.stopped
