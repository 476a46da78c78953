"""Kinship of any two models of a running search: algebra where it can be, shards where a child must be measured."""

from collections.abc import Sequence
from typing import Any

from kinray.cluster.shards import Shards
from kinray.core.algebra import KinshipMap, MissingProduct
from kinray.core.kinship import Metric
from kinray.core.recipe import Recipe
from kinray.core.statistics import Statistics


class SearchKinship:
    """The kinship that a policy asks for. Values that were asked are kept in ``asked`` until somebody takes them.

    Args:
        statistics: of the base and the founders.
        shards: where children that algebra does not cover are measured.
        metric: of the search.
    """

    def __init__(self, statistics: Statistics, shards: Shards, metric: Metric) -> None:
        self._map, self._shards, self._metric = KinshipMap(statistics), shards, metric
        self._tensors = statistics.tensors
        self._started: dict[str, list[Any]] = {}
        self.asked: dict[tuple[str, str], float] = {}

    def __call__(self, a: Recipe, others: Sequence[Recipe]) -> list[float]:
        """Return the kinship of a model with each of several, measuring first what is missing."""
        while True:
            try:
                values: list[float] = self._map.with_each(self._metric, a, others).tolist()
            except MissingProduct as missing:
                self._measure(*missing.recipes)
            else:
                self.asked.update(((a.digest, b.digest), value) for b, value in zip(others, values, strict=True))
                return values

    def prefetch(self, recipe: Recipe) -> None:
        """Begin to measure a child that will be asked about, while it is being scored."""
        if not self._map.is_linear(recipe) and recipe.digest not in self._started:
            self._started[recipe.digest] = self._shards.start_products(recipe)

    def _measure(self, *recipes: Recipe) -> None:
        if len(recipes) == 2:
            self._map.add_dot(*recipes, self._shards.dot(*recipes))
            return
        (recipe,) = recipes
        self.prefetch(recipe)
        self._map.add_products(recipe, self._shards.finish_products(self._started.pop(recipe.digest), self._tensors))
