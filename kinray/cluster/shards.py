"""Shard actors: each owns the same tensors of all models and answers for them. Statistics travel, weights do not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinray.checkpoints.models import Models, ModelSpec, open_models
from kinray.cluster.evaluator import CacheOfRun
from kinray.cluster.nodes import Node, living
from kinray.cluster.placement import Placement, place
from kinray.cluster.session import Session
from kinray.core.algebra import Products
from kinray.core.recipe import Recipe, from_text, to_text
from kinray.core.statistics import Statistics
from kinray.engine.gram import Progress
from kinray.engine.parent_cache import ParentCache
from kinray.errors import RunError

_BUNDLES = 16
"""Calls that each shard's pass is cut into, at most: progress is shown, and work is lost, by the bundle."""


class Shard:
    """The tensors of one shard, of the base and every founder: on its GPU where it has one and they fit, else mapped.

    Args:
        specs: where the models lie on this node.
        names: the tensors that the shard owns.
        device: ``cpu`` or ``cuda``.
        rows: tensors of which only the first rows count in statistics.
        cache: of parents' weights on its node, if there is one.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        names: Sequence[str],
        device: str,
        rows: Mapping[str, int],
        cache: CacheOfRun | None = None,
    ) -> None:
        import torch

        from kinray.engine.materialise import Materialiser
        from kinray.engine.placement import placed

        self._device, self._rows = torch.device(device), rows
        self._models = placed(open_models(specs), names, self._device)
        kept = None if cache is None else ParentCache.of_run(*cache)
        self._materialiser = Materialiser(self._models, device=device, cache=kept)

    def gram(self, names: Sequence[str]) -> Statistics:
        """Return the statistics of some tensors."""
        from kinray.engine.gram import gram_pass

        return gram_pass(self._models, names, rows=self._rows, device=self._device)

    def products(self, written: str, names: Sequence[str], statistics: Statistics) -> Products:
        """Merge a child and return its products with the base and the founders over some tensors."""
        self._materialiser.statistics = statistics
        return self._materialiser.products(from_text(written), names)

    def dot(self, a: str, b: str, names: Sequence[str], statistics: Statistics) -> float:
        """Merge two children and return the dot product of their deltas over some tensors."""
        self._materialiser.statistics = statistics
        return self._materialiser.dot(from_text(a), from_text(b), names)


class Shards:
    """All shards of a search, seen from the driver.

    Ray starts a shard that dies, or whose node does, again (elsewhere if need be) and repeats the calls that it had not
    answered; what was answered is not done again.

    Args:
        models: the base and the founders.
        count: number of shards; at most one for each tensor.
        device: ``cpu``, or ``cuda`` for a GPU to each shard.
        rows: tensors of which only the first rows count in statistics.
        cache: of parents' weights on each node, if there is one.
        nodes: of each shard, on a CPU; by default the bytes are spread evenly. Elsewhere if a node is lost.
    """

    def __init__(
        self,
        models: Models,
        count: int,
        device: str = "cpu",
        rows: Mapping[str, int] | None = None,
        cache: CacheOfRun | None = None,
        nodes: Sequence[Node] = (),
    ) -> None:
        actor = ray.remote(num_cpus=0, num_gpus=int(device == "cuda"), max_restarts=-1, max_task_retries=-1)(Shard)
        self._models = models
        self._owned = balance(tensor_bytes(models), count)
        if device == "cuda":
            strategies: list[Any] = ["SPREAD"] * len(self._owned)
        else:
            places = nodes or place(living(), 0, shard_bytes(models, count), device).shards
            strategies = [NodeAffinitySchedulingStrategy(node.id, soft=True) for node in places]
        self._actors = [
            actor.options(scheduling_strategy=strategy).remote(models.specs, names, device, rows or {}, cache)
            for names, strategy in zip(self._owned, strategies, strict=True)
        ]
        self._statistics: Any = None

    def statistics(self, progress: Progress = lambda _: None) -> Statistics:
        """Read all models once and return their statistics, added up as shards answer.

        Raises:
            CheckpointError: when a model holds NaN or infinity.
            RunError: when a shard cannot be started.
        """
        sizes = tensor_bytes(self._models)
        out = {
            actor.gram.remote(bundle): bundle
            for actor, names in zip(self._actors, self._owned, strict=True)
            for bundle in bundles({name: sizes[name] for name in names})
        }
        # A tensor is in one bundle only, so the order in which they come does not change a bit of the sums.
        total = Statistics.zeros(self._models.digests, self._models.names)
        while out:
            done, _ = ray.wait(list(out), num_returns=1)
            total = total + _get(done[0])
            progress(sum(sizes[name] for name in out.pop(done[0])))
        total = total.take(self._models.names)
        self._statistics = ray.put(total)
        return total

    def start_products(self, recipe: Recipe) -> list[Any]:
        """Begin to measure a child; ``finish_products`` waits for it."""
        written = to_text(recipe)
        pairs = zip(self._actors, self._owned, strict=True)
        return [actor.products.remote(written, names, self._statistics) for actor, names in pairs]

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
        left, right = to_text(a), to_text(b)
        pairs = zip(self._actors, self._owned, strict=True)
        return float(sum(_get([actor.dot.remote(left, right, names, self._statistics) for actor, names in pairs])))


def tensor_bytes(models: Models) -> dict[str, int]:
    """Return the bytes of each tensor, over the base and all founders."""
    sources = [models.sources[digest] for digest in models.digests]
    return {name: sum(source.tensors[name].nbytes for source in sources) for name in models.names}


def shard_bytes(models: Models, count: int) -> list[int]:
    """Return the bytes that each of at most ``count`` shards holds."""
    sizes = tensor_bytes(models)
    return [sum(sizes[name] for name in names) for names in balance(sizes, count)]


def planned(models: Models, session: Session) -> Placement:
    """Plan which node does what in a search."""
    return place(session.nodes, session.evaluators, shard_bytes(models, session.shards), session.device, session.gpus)


def balance(sizes: dict[str, int], count: int) -> list[list[str]]:
    """Share tensors out among at most ``count`` shards so that their bytes are nearly equal; the largest go first."""
    shards: list[list[str]] = [[] for _ in range(max(1, min(count, len(sizes))))]
    filled = [0] * len(shards)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        place = filled.index(min(filled))
        shards[place].append(name)
        filled[place] += sizes[name]
    return shards


def bundles(sizes: Mapping[str, int]) -> list[list[str]]:
    """Cut a shard's tensors into at most 16 runs of nearly equal bytes; no run is empty."""
    share, filled = sum(sizes.values()) / _BUNDLES, 0
    result: list[list[str]] = []
    for name, size in sizes.items():
        if not result or filled + size / 2 > share * len(result):
            result.append([name])
        else:
            result[-1].append(name)
        filled += size
    return result


def _get(ref: Any) -> Any:
    """Wait for a result; errors come as what was raised, not as Ray's wrapping of it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayActorError as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise RunError(
            f"A shard could not be started: {reason} Every node needs the models' folders at the same paths."
        ) from error
