"""The search of the paper (Hu et al., arXiv 2410.12613, evolution path 1), replayed from its printed scores."""

import pytest

from kinray.core.recipe import Recipe
from kinray.search.policy import TopK
from kinray.search.population import Child
from tests.helpers.search import lineage, parents_of, policy, run

FOUNDERS = {"MetaMath": 63.72, "Instruct": 61.82, "OpenChat": 66.28}
PRINTED = {
    ("MetaMath", "Instruct"): ("1-1", 62.17, 0.01),
    ("Instruct", "OpenChat"): ("1-2", 64.02, -0.02),
    ("MetaMath", "OpenChat"): ("1-3", 66.84, 0.05),
    ("1-3", "OpenChat"): ("2-1", 68.72, 0.93),
    ("1-3", "1-2"): ("2-2", 61.47, 0.57),
    ("OpenChat", "1-2"): ("2-3", 61.32, 0.58),
    ("1-3", "Instruct"): ("2-exp", 68.11, -0.02),
    ("2-1", "1-3"): ("3-2", 67.74, 0.93),
    ("2-1", "2-exp"): ("3-3", 69.06, 0.24),
    ("2-exp", "1-3"): ("3-4", 68.61, 0.32),
    ("2-1", "Instruct"): ("3-exp", 68.15, 0.03),
}
UNPRINTED = ("?", 60.0, 0.7)


class Paper:
    """Answers with what the paper prints; a pair that it does not print scores low and is close kin."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._children = {frozenset(pair): printed for pair, printed in PRINTED.items()}

    def score(self, child: Child) -> float:
        if not child.parents:
            self.names[child.recipe.digest] = child.name
            return FOUNDERS[child.name]
        name, score, _ = self._of(*(parent.digest for parent in child.recipe.parents))  # type: ignore[union-attr]
        self.names[child.recipe.digest] = child.name if name == "?" else name
        return score

    def kinship(self, a: Recipe, b: Recipe) -> float:
        return self._of(a.digest, b.digest)[2]

    def _of(self, a: str, b: str) -> tuple[str, float, float]:
        return self._children.get(frozenset((self.names[a], self.names[b])), UNPRINTED)

    def matings(self, search: TopK, generation: int) -> list[tuple[str, ...]]:
        """Name the pairs of a generation as the paper does."""
        named = {child.name: self.names[child.recipe.digest] for child in search.population.children}
        return [tuple(named[parent] for parent in parents) for parents in parents_of(search, generation).values()]


@pytest.fixture
def paper() -> Paper:
    return Paper()


def test_first_generation_is_every_pair_of_founders_best_first(paper: Paper) -> None:
    search = run(policy(list(FOUNDERS), paper.kinship, max_generations=1), paper.score)

    assert paper.matings(search, 1) == [("OpenChat", "MetaMath"), ("OpenChat", "Instruct"), ("MetaMath", "Instruct")]


def test_second_generation_is_the_papers(paper: Paper) -> None:
    search = run(policy(list(FOUNDERS), paper.kinship, max_generations=2), paper.score)

    assert paper.matings(search, 2) == [("1-3", "OpenChat"), ("1-3", "1-2"), ("OpenChat", "1-2"), ("1-3", "Instruct")]
    exploration = search.population.children[-1]
    assert (exploration.name, exploration.operator, exploration.kinship) == ("g2-x", "exploration", -0.02)


def test_third_generation_is_the_papers(paper: Paper) -> None:
    search = run(policy(list(FOUNDERS), paper.kinship, max_generations=3), paper.score)

    assert paper.matings(search, 3) == [("2-1", "2-exp"), ("2-1", "1-3"), ("2-exp", "1-3"), ("2-1", "Instruct")]
    assert [paper.names[child.recipe.digest] for child in search.top()] == ["3-3", "2-1", "3-4"]


def test_printed_kinships_are_those_at_mating(paper: Paper) -> None:
    search = run(policy(list(FOUNDERS), paper.kinship, max_generations=3), paper.score)

    at_mating = {paper.names[child.recipe.digest]: child.kinship for child in search.population.children}
    assert at_mating == dict.fromkeys(FOUNDERS) | {name: kinship for name, _, kinship in PRINTED.values()}


def test_greedy_stops_at_its_second_generation_without_exploring(paper: Paper) -> None:
    search = run(policy(list(FOUNDERS), paper.kinship, policy="greedy"), paper.score)

    assert {child.operator for child in search.population.children} == {"founder", "merge"}
    assert search.population.score(search.top()[0].name) == 68.72
    assert search.top()[0].generation == 2
    assert search.finished == "the top 3 did not change in generation 4"


def test_kinship_and_greedy_part_only_at_the_exploration(paper: Paper) -> None:
    kinship = run(policy(list(FOUNDERS), paper.kinship, max_generations=2), paper.score)
    greedy = run(policy(list(FOUNDERS), paper.kinship, policy="greedy", max_generations=2), paper.score)

    assert lineage(kinship)[:-1] == lineage(greedy)
