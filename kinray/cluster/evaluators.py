"""All evaluators of a search, as the driver sees them: those that can be given work, that are started, and that are silent."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinray.checkpoints.models import ModelSpec
from kinray.cluster.asking import UnreachableError, asked
from kinray.cluster.evaluator import Evaluator, cache_of
from kinray.cluster.nodes import Node
from kinray.cluster.session import Session, room
from kinray.config import Config
from kinray.core.recipe import Recipe, to_text
from kinray.core.scores import Failed, Scored
from kinray.core.statistics import Statistics
from kinray.errors import RunError
from kinray.evaluation.tasks import Split

_CLOSING = 10.0
"""Seconds that evaluators have to clean up."""

_LOOK = 10.0
"""Seconds between two looks at whether a cluster has grown, and whether evaluators that did not answer do again."""

_SO_FAR = 60.0
"""Seconds for an evaluator to say what it knows already."""


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
            num_cpus=int(session.device != "cuda"),  # said also for GPUs: by itself Ray lets such an actor hold a CPU
            num_gpus=session.gpus if session.device == "cuda" else 0,
        )(Evaluator)
        self._arguments = (specs, config, session.device, os.getcwd(), cache_of(config))
        self._actors: list[Any] = []
        self._ready: list[int] = []
        self._joining: dict[Any, int] = {}
        """Evaluators that were started later, or do not answer, by what they answer when they are ready."""
        self._silent: set[int] = set()
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
        """Start evaluators where nodes have joined, and return the numbers of those that became ready since the last call.

        Raises:
            RunError: when none is left.
        """
        if not (self._session.grows or self._joining) or time.monotonic() < self._looked + _LOOK:
            return []
        self._looked = time.monotonic()
        if self._session.grows:
            wanted = room(self._session) if self._cluster.evaluators == "auto" else int(self._cluster.evaluators)
            while len(self._actors) < min(wanted, self._session.most):
                self._start("SPREAD")
        done, _ = ray.wait(list(self._joining), num_returns=max(1, len(self._joining)), timeout=0)
        new: list[int] = []
        for number, ref in ((self._joining.pop(ref), ref) for ref in done):
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                if not (self._ready or new or self._joining or self._session.grows):
                    raise RunError(f"No evaluator can score any more. The last one ended with: {_reason(error)}") from error
                node = "node where it was started again" if number in self._silent else "node that joined the cluster"
                self._say(f"The {node} is not used for {self.name(number)}, since it cannot score: {_reason(error)}")
            else:
                name = self.name(number)
                self._say(
                    f"{name} answers again." if number in self._silent else f"A node joined the cluster: {name} scores too."
                )
                self._silent.discard(number)
                new.append(number)
        self._ready += new
        return new

    def _start(self, strategy: Any) -> None:
        number = len(self._actors)
        handle = self._actor.options(name=self.name(number), scheduling_strategy=strategy).remote(*self._arguments)
        self._actors.append(handle)
        self._joining[handle.warm.remote()] = number

    def lose(self, number: int) -> None:
        """Give an evaluator that does not answer no more work until it does."""
        self._say(f"{self.name(number)} has not answered for some minutes; others go on with its work, if there are any.")
        self._ready.remove(number)
        self._silent.add(number)
        self._joining[self._actors[number].warm.options(max_task_retries=-1).remote()] = number

    def share(self, statistics: Statistics) -> None:
        """Give the founders' statistics to all evaluators; before anything is scored."""
        self._statistics = ray.put(statistics)

    def so_far(self, number: int, recipe: Recipe) -> Scored | None:
        """Return what a child scored so far that one evaluator asks in rounds; None if it has lost it."""
        try:
            told = self._actors[number].so_far.options(max_task_retries=0).remote(recipe.digest)
            known: Scored | None = ray.get(told, timeout=_SO_FAR)
        except ray.exceptions.RayError:
            return None
        return known

    def score_now(self, number: int, recipe: Recipe) -> Scored | Failed:
        """Return the result of a recipe from one evaluator, at once if it has just scored it.

        Raises:
            UnreachableError: when it does not answer.
        """
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
        busy: dict[Any, tuple[int, int, int]] = {}
        free = self.ready()
        while waiting or busy:
            while waiting and free:
                number, attempt = waiting[0]
                recipe, split = jobs[number]
                slot = free.pop()
                try:
                    ref = asked(self._actors[slot], "score", to_text(recipe), split, self._statistics)
                except UnreachableError:
                    self.lose(slot)
                    continue
                busy[ref] = (*waiting.pop(0), slot)
            if not busy:
                free = self._next_ready()
                continue
            (done,), _ = ray.wait(list(busy), num_returns=1)
            number, attempt, slot = busy.pop(done)
            free.append(slot)
            try:
                results[number] = ray.get(done)
            except ray.exceptions.RayError as error:
                if attempt < self._cluster.retries:
                    waiting.append((number, attempt + 1))
                else:
                    results[number] = Failed(_reason(error), broke=True)
        return [results[number] for number in range(len(jobs))]

    def _next_ready(self) -> list[int]:
        """Wait until an evaluator answers again, or a node joins."""
        while not (new := self.joined()):
            time.sleep(1)
        return new

    def close(self) -> None:
        """Let the evaluators remove what they keep on their nodes; one that is lost or busy is not waited for."""
        closing = [self._actors[number].close.remote() for number in self._ready]
        ray.wait(closing, num_returns=len(closing), timeout=_CLOSING)


def _reason(error: Exception) -> str:
    """Say what an evaluator ended with; of Ray's long texts the last line tells most."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1][:500]}"
