"""Models that answer items by what their parents answer, some of them made worse: per-item scores without weights."""

import random

import numpy as np

from kinray.core.recipe import Founder, Merge, Recipe
from kinray.core.scores import Scored, TaskScore
from kinray.search.racing import Order

WEIGHTS = {"long": 1.0, "short": 2.0}
COUNTS = {"long": 300, "short": 100}


class World:
    """What each model answers to each item."""

    def __init__(self, seed: int, out_of_bounds: str = "") -> None:
        self._seed, self._odd = seed, out_of_bounds
        self._known: dict[str, Scored] = {}

    def score(self, recipe: Recipe) -> Scored:
        if recipe.digest not in self._known:
            values = {task: self._values(recipe, task) for task in COUNTS}
            self._known[recipe.digest] = Scored(
                {
                    task: TaskScore(float(np.mean(own)), 0.1, tuple(map(str, range(len(own)))), tuple(own), WEIGHTS[task])
                    for task, own in values.items()
                }
            )
        return self._known[recipe.digest]

    def _values(self, recipe: Recipe, task: str) -> np.ndarray:
        draw = random.Random(f"{self._seed}/{recipe.digest}/{task}")
        rng = np.random.default_rng(draw.getrandbits(32))
        if isinstance(recipe, Founder):
            values = (rng.random(COUNTS[task]) < 0.5).astype(float)
            return values + 0.5 if self._odd == recipe.name else values
        assert isinstance(recipe, Merge)
        first, second = (np.array(self.score(parent).tasks[task].values) for parent in recipe.parents)
        mixed = np.where(rng.random(COUNTS[task]) < 0.5, first, second)
        better = rng.random(COUNTS[task]) < 0.1
        worse = rng.random(COUNTS[task]) < random.Random(f"{self._seed}/{recipe.digest}").choice([0.05, 0.5])
        return np.where(worse, 0.0, np.where(better, 1.0, mixed))


def first_items(whole: Scored, order: Order, count: int) -> Scored:
    """Return what a model scored on the first items of an order."""
    asked: dict[str, list[str]] = {}
    for task, place in sorted(order.items[:count]):
        asked.setdefault(task, []).append(str(place))
    return whole.on(asked)
