"""Evaluator actors: long-lived processes with a resident model, each scoring one child at a time."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinray.checkpoints.models import ModelSpec
from kinray.cluster.asking import asked
from kinray.cluster.nodes import Node
from kinray.cluster.session import Session, room
from kinray.config import Config
from kinray.core.recipe import Recipe, from_text, to_text
from kinray.core.scores import Failed, Scored
from kinray.core.statistics import Statistics
from kinray.engine.parent_cache import ParentCache
from kinray.evaluation.tasks import Split
from kinray.records.store import is_uri

_CLOSING = 10.0
"""Seconds that evaluators have to clean up."""

_LOOK = 10.0
"""Seconds between two looks at whether a cluster has grown."""

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
            if isinstance(result, Scored) and result.items < ends[-1]:
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


class Evaluators:
    """All evaluators of a search, seen from the driver and, by their names, from Tune's trials.

    Args:
        specs: the base and the founders.
        config: of the run.
        session: what the cluster gives.
        nodes: the node of each evaluator to begin with; elsewhere if it is lost.
        say: told of nodes that joined.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        config: Config,
        session: Session,
        nodes: Sequence[Node],
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        threads = str(session.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
        self._cluster, self._session, self._say = config.cluster, session, say
        self._statistics: Any = None
        self._actor = ray.remote(
            max_restarts=-1,
            max_task_retries=config.cluster.retries,
            runtime_env={"env_vars": environment if session.device == "cpu" else {}},
            **({"num_gpus": session.gpus} if session.device == "cuda" else {"num_cpus": 1}),
        )(Evaluator)
        self._arguments = (specs, config, session.device, os.getcwd(), cache_of(config))
        self._actors: list[Any] = []
        self._ready: list[int] = []
        self._joining: dict[Any, int] = {}
        """Evaluators that were started later and are not ready yet, by what they answer when they are."""
        self._looked = time.monotonic()
        for node in nodes:
            self._start(NodeAffinitySchedulingStrategy(node.id, soft=True))
        self._ready += self._joining.values()
        self._joining.clear()

    def name(self, number: int) -> str:
        """Return the name by which Ray knows an evaluator."""
        return f"evaluator-{number}"

    def ready(self) -> list[int]:
        """Return the numbers of all evaluators that can be given work."""
        return list(self._ready)

    def joined(self) -> list[int]:
        """Start evaluators where nodes have joined, and return the numbers of those that became ready since the last call."""
        if not self._session.grows or time.monotonic() < self._looked + _LOOK:
            return []
        self._looked = time.monotonic()
        wanted = room(self._session) if self._cluster.evaluators == "auto" else int(self._cluster.evaluators)
        while len(self._actors) < wanted:
            self._start("SPREAD")
        done, _ = ray.wait(list(self._joining), num_returns=max(1, len(self._joining)), timeout=0)
        new = []
        for number, ref in ((self._joining.pop(ref), ref) for ref in done):
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                self._say(f"A node that joined the cluster is not used, since it cannot score: {_reason(error)}")
            else:
                self._say(f"A node joined the cluster: {self.name(number)} scores too.")
                new.append(number)
        self._ready += new
        return new

    def _start(self, strategy: Any) -> None:
        number = len(self._actors)
        handle = self._actor.options(name=self.name(number), scheduling_strategy=strategy).remote(*self._arguments)
        self._actors.append(handle)
        self._joining[handle.warm.remote()] = number

    def share(self, statistics: Statistics) -> None:
        """Give the founders' statistics to all evaluators; before anything is scored."""
        self._statistics = ray.put(statistics)

    def so_far(self, number: int, recipe: Recipe) -> Scored | None:
        """Return what a child scored so far that one evaluator asks in rounds; None if it has lost it."""
        try:
            known: Scored | None = ray.get(self._actors[number].so_far.remote(recipe.digest))
        except ray.exceptions.RayError:
            return None
        return known

    def score_now(self, number: int, recipe: Recipe) -> Scored | Failed:
        """Return the result of a recipe from one evaluator, at once if it has just scored it."""
        retries = self._cluster.retries
        for attempt in range(retries + 1):
            try:
                return self._result(self._actors[number], recipe)
            except ray.exceptions.RayError as error:
                if attempt == retries:
                    return Failed(_reason(error), broke=True)
        raise AssertionError

    def _result(self, handle: Any, recipe: Recipe) -> Scored | Failed:
        """Ask with the recipe's digest first: with its ancestors it is long in a late generation."""
        known: Scored | Failed | None = ray.get(asked(handle, "recall", recipe.digest, "search"))
        if known is not None:
            return known
        scored: Scored | Failed = ray.get(asked(handle, "score", to_text(recipe), "search", self._statistics))
        return scored

    def score_all(self, jobs: Sequence[tuple[Recipe, Split]]) -> list[Scored | Failed]:
        """Score recipes outside of the search, spread over all evaluators; results come in the order of the jobs."""
        results: dict[int, Scored | Failed] = {}
        waiting = [(number, 0) for number in range(len(jobs))]
        busy: dict[Any, tuple[int, int, Any]] = {}
        free = [self._actors[number] for number in self._ready]
        while waiting or busy:
            while waiting and free:
                number, attempt = waiting.pop(0)
                recipe, split = jobs[number]
                handle = free.pop()
                busy[asked(handle, "score", to_text(recipe), split, self._statistics)] = (number, attempt, handle)
            (done,), _ = ray.wait(list(busy), num_returns=1)
            number, attempt, handle = busy.pop(done)
            free.append(handle)
            try:
                results[number] = ray.get(done)
            except ray.exceptions.RayError as error:
                if attempt < self._cluster.retries:
                    waiting.append((number, attempt + 1))
                else:
                    results[number] = Failed(_reason(error), broke=True)
        return [results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """Let the evaluators remove what they keep on their nodes; one that is lost or busy is not waited for."""
        closing = [self._actors[number].close.remote() for number in self._ready]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSING)


def _reason(error: Exception) -> str:
    """Say what an evaluator ended with; of Ray's long texts the last line tells most."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1][:500]}"
