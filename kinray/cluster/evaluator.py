"""Evaluator actors: long-lived processes with a resident model, each scoring one child at a time."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import ray

from kinray.checkpoints.models import ModelSpec
from kinray.cluster.session import Session
from kinray.config import Config
from kinray.core.recipe import Recipe, from_nodes, to_nodes
from kinray.core.scores import Failed, Result
from kinray.core.statistics import Statistics
from kinray.engine.parent_cache import ParentCache
from kinray.evaluation.tasks import Split

_CLOSING = 10.0
"""Seconds that evaluators have to clean up."""

_REMEMBERED = 4
"""Results that an evaluator keeps, so that asking again for one that was just scored costs nothing."""


CacheOfRun = tuple[str, float | str]
"""What ``ParentCache.of_run`` takes: the run, and the budget in gigabytes."""


def cache_of(config: Config) -> CacheOfRun:
    """Say which cache of parents the nodes keep for a run; asked where its output folder is a path."""
    return hashlib.sha256(os.path.abspath(config.output).encode()).hexdigest()[:16], config.cluster.parent_cache_gb


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
        self._results: dict[tuple[str, Split], Result] = {}
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

    def score(self, nodes: list[dict[str, Any]], split: Split, statistics: Statistics) -> Result:
        """Score a recipe on a split. Asked again for the same, it answers from memory.

        Raises:
            Exception: whatever scoring raised, at most ``cluster.retries`` times for one child; then the error is returned
                as its result.
        """
        recipe = from_nodes(nodes)
        key = (recipe.digest, split)
        if key not in self._results:
            self._results[key] = self._try(recipe, key, statistics)
            while len(self._results) > _REMEMBERED:
                self._results.pop(next(iter(self._results)))
        return self._results[key]

    def _try(self, recipe: Recipe, key: tuple[str, Split], statistics: Statistics) -> Result:
        try:
            self.warm()
            self._scorer.use(statistics)
            result: Result = self._scorer.score(recipe, key[1])
        except Exception as error:
            self._failures[key] = self._failures.get(key, 0) + 1
            if self._failures[key] <= self._config.cluster.retries:
                raise
            reason = str(error).strip().splitlines() or ["no message"]
            return Failed(f"{type(error).__name__}: {reason[0][:500]}", broke=True)
        return result


class Evaluators:
    """All evaluators of a search, seen from the driver and, by their names, from Tune's trials."""

    def __init__(self, specs: Sequence[ModelSpec], config: Config, session: Session) -> None:
        threads = str(session.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        self._retries = config.cluster.retries
        self._statistics: Any = None
        self.names = [f"evaluator-{number}" for number in range(session.evaluators)]
        actor = ray.remote(max_restarts=-1, max_task_retries=config.cluster.retries)(Evaluator)
        resources = {"num_gpus": 1} if session.device == "cuda" else {"num_cpus": 1}
        self._actors = [
            actor.options(
                name=name,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": environment if session.device == "cpu" else {}},
                **resources,
            ).remote(specs, config, session.device, os.getcwd(), cache_of(config))
            for name in self.names
        ]
        for handle in self._actors:
            handle.warm.remote()

    def share(self, statistics: Statistics) -> None:
        """Give the founders' statistics to all evaluators; before anything is scored."""
        self._statistics = ray.put(statistics)

    def score_now(self, number: int, recipe: Recipe) -> Result:
        """Return the result of a recipe from one evaluator, at once if it has just scored it."""
        for attempt in range(self._retries + 1):
            try:
                result: Result = ray.get(self._actors[number].score.remote(to_nodes(recipe), "search", self._statistics))
            except ray.exceptions.RayError as error:
                if attempt == self._retries:
                    return Failed(_reason(error), broke=True)
            else:
                return result
        raise AssertionError

    def score_all(self, jobs: Sequence[tuple[Recipe, Split]]) -> list[Result]:
        """Score recipes outside of the search, spread over all evaluators; results come in the order of the jobs."""
        results: dict[int, Result] = {}
        waiting = [(number, 0) for number in range(len(jobs))]
        busy: dict[Any, tuple[int, int, Any]] = {}
        free = list(self._actors)
        while waiting or busy:
            while waiting and free:
                number, attempt = waiting.pop(0)
                recipe, split = jobs[number]
                handle = free.pop()
                busy[handle.score.remote(to_nodes(recipe), split, self._statistics)] = (number, attempt, handle)
            (done,), _ = ray.wait(list(busy), num_returns=1)
            number, attempt, handle = busy.pop(done)
            free.append(handle)
            try:
                results[number] = ray.get(done)
            except ray.exceptions.RayError as error:
                if attempt < self._retries:
                    waiting.append((number, attempt + 1))
                else:
                    results[number] = Failed(_reason(error), broke=True)
        return [results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """Let the evaluators remove what they keep on their nodes; one that is lost or busy is not waited for."""
        ray.wait([handle.close.remote() for handle in self._actors], num_returns=len(self._actors), timeout=_CLOSING)


def _reason(error: Exception) -> str:
    """Say what an evaluator ended with; of Ray's long texts the last line tells most."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1][:500]}"
