"""Shard actors: each owns the same tensors of all models and answers for them. Statistics travel, weights do not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from kinray.checkpoints.models import Models, ModelSpec, open_models
from kinray.core.algebra import Products
from kinray.core.recipe import Recipe, from_nodes, to_nodes
from kinray.core.statistics import Statistics
from kinray.engine.gram import Progress

_BUNDLES = 8
"""Calls that each shard's pass is cut into: progress is shown, and work is lost, by the bundle."""


class Shard:
    """The tensors of one shard, of the base and every founder, mapped from their files."""

    def __init__(self, specs: Sequence[ModelSpec]) -> None:
        from kinray.engine.materialise import Materialiser

        self._models = open_models(specs)
        self._materialiser = Materialiser(self._models)

    def gram(self, names: Sequence[str]) -> Statistics:
        """Return the statistics of some tensors."""
        from kinray.engine.gram import gram_pass

        return gram_pass(self._models, names)

    def products(self, nodes: list[dict[str, Any]], names: Sequence[str], statistics: Statistics) -> Products:
        """Merge a child and return its products with the base and the founders over some tensors."""
        self._materialiser.statistics = statistics
        return self._materialiser.products(from_nodes(nodes), names)

    def dot(self, a: list[dict[str, Any]], b: list[dict[str, Any]], names: Sequence[str], statistics: Statistics) -> float:
        """Merge two children and return the dot product of their deltas over some tensors."""
        self._materialiser.statistics = statistics
        return self._materialiser.dot(from_nodes(a), from_nodes(b), names)


class Shards:
    """All shards of a search, seen from the driver.

    Ray restarts a shard that dies and repeats the calls that it had not answered.

    Args:
        models: the base and the founders.
        count: number of shards; at most one for each tensor.
    """

    def __init__(self, models: Models, count: int) -> None:
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Shard)
        self._models = models
        self._owned = balance({name: models.base.tensors[name].nbytes for name in models.names}, count)
        self._actors = [actor.options(scheduling_strategy="SPREAD").remote(models.specs) for _ in self._owned]
        self._statistics: Any = None

    def statistics(self, progress: Progress = lambda _: None) -> Statistics:
        """Read all models once and return their statistics.

        Raises:
            CheckpointError: when a model holds NaN or infinity.
        """
        out = {
            actor.gram.remote(bundle): bundle
            for actor, names in zip(self._actors, self._owned, strict=True)
            for bundle in _bundles(names)
        }
        parts: dict[int, Statistics] = {}
        order = {ref: number for number, ref in enumerate(out)}
        while len(parts) < len(order):
            done, _ = ray.wait([ref for ref in order if order[ref] not in parts], num_returns=1)
            parts[order[done[0]]] = _get(done[0])
            progress(sum(source.tensors[n].nbytes for n in out[done[0]] for source in self._models.sources.values()))
        total = Statistics.zeros(self._models.digests, self._models.names)
        for number in sorted(parts):
            total = total + parts[number]
        self._statistics = ray.put(total)
        return total

    def start_products(self, recipe: Recipe) -> list[Any]:
        """Begin to measure a child; ``finish_products`` waits for it."""
        nodes = to_nodes(recipe)
        pairs = zip(self._actors, self._owned, strict=True)
        return [actor.products.remote(nodes, names, self._statistics) for actor, names in pairs]

    def finish_products(self, started: list[Any], tensors: Sequence[str]) -> Products:
        """Return the products that were begun, over all tensors in the given order."""
        parts: list[Products] = [_get(ref) for ref in started]
        rows = {
            name: row
            for names, part in zip(self._owned, parts, strict=True)
            for name, row in zip(names, part.dots_TM, strict=True)
        }
        dots = np.stack([rows[name] for name in tensors])
        return Products(sum(part.total for part in parts), sum(part.square for part in parts), dots)

    def dot(self, a: Recipe, b: Recipe) -> float:
        """Measure the dot product of two children's deltas."""
        left, right = to_nodes(a), to_nodes(b)
        pairs = zip(self._actors, self._owned, strict=True)
        return float(sum(_get([actor.dot.remote(left, right, names, self._statistics) for actor, names in pairs])))


def balance(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Share tensors out among at most ``count`` shards so that their bytes are nearly equal; the largest go first."""
    shards: list[list[str]] = [[] for _ in range(max(1, min(count, len(sizes))))]
    filled = [0] * len(shards)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        place = filled.index(min(filled))
        shards[place].append(name)
        filled[place] += sizes[name]
    return shards


def _bundles(names: Sequence[str]) -> list[list[str]]:
    bundles = [list(names[start::_BUNDLES]) for start in range(_BUNDLES)]
    return [bundle for bundle in bundles if bundle]


def _get(ref: Any) -> Any:
    """Wait for a result; errors come as what was raised, not as Ray's wrapping of it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
