"""The evaluator actor: a long-lived process with a resident model, scoring one child at a time."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kinray.checkpoints.models import ModelSpec
from kinray.config import Config
from kinray.core.recipe import Recipe, from_text
from kinray.core.scores import Failed, Scored
from kinray.core.statistics import Statistics
from kinray.engine.parent_cache import ParentCache
from kinray.evaluation.tasks import Split
from kinray.records.store import is_uri

_REMEMBERED = 4
"""Results that an evaluator keeps, so that asking again for one that was just scored costs nothing."""

CacheOfRun = tuple[str, float | str]
"""What ``ParentCache.of_run`` takes: the run, and the budget in gigabytes."""


def cache_of(config: Config) -> CacheOfRun:
    """Say which cache of parents the nodes keep for a run; asked where its output folder is a path."""
    place = config.output if is_uri(config.output) else os.path.abspath(config.output)
    return hashlib.sha256(place.encode()).hexdigest()[:16], config.cluster.parent_cache_gb


class Evaluator:
    """Scores recipes. Its model, tasks and prompts are made once, when the first recipe comes or ``warm`` is called.

    Args:
        specs: the base and the founders.
        config: of the run.
        device: ``cpu`` or ``cuda``.
        folder: working folder of the driver, which tasks' relative paths start from.
        cache: of parents' weights on its node.
    """

    def __init__(self, specs: Sequence[ModelSpec], config: Config, device: str, folder: str, cache: CacheOfRun) -> None:
        if os.path.isdir(folder):
            os.chdir(folder)
        self._specs, self._config, self._device = specs, config, device
        self._scorer: Any = None
        self._cache_of_run = cache
        self._cache: ParentCache | None = None
        self._results: dict[tuple[str, Split], Scored | Failed] = {}
        self._under_way: tuple[str, Iterator[Scored | Failed], list[Scored | Failed]] | None = None
        self._failures: dict[tuple[str, Split], int] = {}

    def warm(self) -> bool:
        """Make everything that does not depend on a child."""
        from kinray.evaluation.scorer import Scorer

        if self._scorer is None:
            self._cache = ParentCache.of_run(*self._cache_of_run)
            self._scorer = Scorer(self._specs, None, self._config, self._device, self._cache)
            self._scorer.prepare("search")
        return True

    def close(self) -> None:
        """Remove what this node keeps of the run."""
        from kinray.evaluation.scratch import sweep

        sweep()
        if self._cache is not None:
            self._cache.clear()

    def score(self, written: str, split: Split, statistics: Statistics) -> Scored | Failed:
        """Score a recipe, as ``to_text`` writes it, on a split. Asked again for the same, it answers from memory.

        Raises:
            Exception: whatever scoring raised, at most ``cluster.retries`` times for one child; then the error is returned
                as its result.
        """
        recipe = from_text(written)
        key = (recipe.digest, split)
        if key not in self._results:
            self._under_way = None
            self._remember(key, self._try(lambda: self._scorer.score(recipe, split), key, statistics))
        return self._results[key]

    def ask(self, written: str, ends: Sequence[int], number: int, statistics: Statistics) -> tuple[Scored | Failed, bool]:
        """Ask a child the search's items up to the end of a round. Asked again for the same, it answers from memory.

        Args:
            written: the child's recipe.
            ends: how many items have been asked at the end of each round.
            number: of the round, from 0.
            statistics: of the founders.

        Returns:
            what is known then, and whether it is the result.

        Raises:
            Exception: as ``score`` does.
        """
        recipe = from_text(written)
        key: tuple[str, Split] = (recipe.digest, "search")
        if key not in self._results:
            if self._under_way is None or self._under_way[0] != recipe.digest:
                self._under_way = recipe.digest, self._rounds(recipe, ends), []
            _, rounds, known = self._under_way
            while len(known) <= number:
                known.append(self._try(lambda: next(rounds), key, statistics))
            result = known[number]
            if isinstance(result, Scored) and result.asked < ends[-1]:
                return result, False
            self._under_way = None
            self._remember(key, result)
        return self._results[key], True

    def recall(self, digest: str, split: Split) -> Scored | Failed | None:
        """Return the result of a recipe that was scored a moment ago, named by its digest; None if it is not remembered."""
        return self._results.get((digest, split))

    def so_far(self, digest: str) -> Scored | None:
        """Return what the child that is under way scored so far, if it is the one of this digest."""
        if self._under_way is None or self._under_way[0] != digest:
            return None
        known = self._under_way[2][-1]
        return known if isinstance(known, Scored) else None

    def _rounds(self, recipe: Recipe, ends: Sequence[int]) -> Iterator[Scored | Failed]:
        yield from self._scorer.rounds(recipe, "search", ends)  # first looked at when there is a scorer

    def _remember(self, key: tuple[str, Split], result: Scored | Failed) -> None:
        self._results[key] = result
        while len(self._results) > _REMEMBERED:
            self._results.pop(next(iter(self._results)))

    def _try(self, scored: Callable[[], Scored | Failed], key: tuple[str, Split], statistics: Statistics) -> Scored | Failed:
        try:
            self.warm()
            self._scorer.use(statistics)
            result = scored()
        except Exception as error:
            self._under_way = None
            self._failures[key] = self._failures.get(key, 0) + 1
            if self._failures[key] <= self._config.cluster.retries:
                raise
            reason = str(error).strip().splitlines() or ["no message"]
            return Failed(f"{type(error).__name__}: {reason[0][:500]}", broke=True)
        return result
