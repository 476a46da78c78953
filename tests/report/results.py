"""Made-up comparisons and a made-up search."""

from collections.abc import Sequence

from kinray.core.scores import Difference, Scored, TaskScore, standard_error
from kinray.report.leaderboard import Entry, Leaderboard
from kinray.search.policy import TopK
from tests.helpers.search import policy, run

WORSE = [1.0, 0.0, 0.0, 0.0]
MIDDLE = [1.0, 1.0, 0.0, 0.0]
BETTER = [1.0, 1.0, 0.0, 1.0]


def scored(*tasks: Sequence[float], weights: Sequence[float] = (1.0, 1.0)) -> Scored:
    """Make the result of a model from its items' values, task by task."""
    results = {}
    for name, values, weight in zip(("maths", "text"), tasks, weights, strict=False):
        items = tuple(str(number) for number in range(len(values)))
        score = sum(values) / len(values)
        results[name] = TaskScore(score, standard_error(values), items, tuple(values), weight)
    return Scored(results)


def around(mean: float, spread: float = 0.0) -> Scored:
    """Make a result with a mean, whose items differ from those of ``around(…, 0)`` by a standard error of ``spread``."""
    half = spread * 3**0.5  # of 4 values, two above and two below
    return scored([mean + half, mean - half, mean + half, mean - half])


def board(best: str = "g1-1", *, holdout: bool = True, gain: Difference | None = None, **means: Scored) -> Leaderboard:
    """Make a comparison of ann, bob, their average and a child, of which some are given."""
    kinds = {"ann": "founder", "bob": "founder", "average": "average", "child": "best"}
    entries = []
    for name, kind in kinds.items():
        result = means.get(name, around(0.25))
        entries.append(Entry("g1-1" if kind == "best" else name, kind, result, result if holdout else None))
    return Leaderboard(entries, best, gain)


def search() -> TopK:
    """Run a search in which kinship brings an exploration and one child fails."""
    scores = {"ann": 0.25, "bob": 0.5, "cid": 0.375, "g1-1": 0.625, "g1-2": None, "g1-3": 0.5}
    methods = {"task_arithmetic": {"lambda": 1.25, "weight": {"models": [1.0, 0.5]}}}
    made = policy(["ann", "bob", "cid"], methods=methods, k=2, max_generations=2)
    return run(made, lambda child: scores.get(child.name, 0.75))
