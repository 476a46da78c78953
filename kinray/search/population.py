"""The population of a search: founders and children, their outcomes, and who ranks before whom."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kinray.core.recipe import Recipe
from kinray.core.scores import Failed, Result

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
    """What a policy is told of a child: its score, or the error that it ended with."""

    score: float | None
    error: str | None = None

    @classmethod
    def of(cls, result: Result) -> "Outcome":
        """Reduce a result to what the search looks at; a score that is not a number is a failure."""
        if isinstance(result, Failed):
            return cls(None, result.error)
        score = result.score
        return cls(None, "the score is NaN") if math.isnan(score) else cls(score)


class Population:
    """Children by name and by digest, with their outcomes."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self._by_name: dict[str, Child] = {}
        self._digests: set[str] = set()
        self._outcomes: dict[str, Outcome] = {}
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
        self._outcomes.setdefault(self._by_name[name].name, outcome)
        self.out.discard(name)

    def outcome(self, name: str) -> Outcome | None:
        """Return a child's outcome, None while it is out."""
        return self._outcomes.get(name)

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

    def ranked(self, among: Iterable[Child] | None = None) -> list[Child]:
        """Sort the scored children: higher score first, then the earlier number (so founders first)."""
        scored = [
            child
            for child in (self.children if among is None else among)
            if (outcome := self.outcome(child.name)) is not None and outcome.score is not None
        ]
        return sorted(scored, key=lambda child: (-self.score(child.name), child.number))
