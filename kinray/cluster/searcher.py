"""Between Ray Tune and the search policy: trials become children, results become records."""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

from ray.tune.search import Searcher

from kinray.cluster.asking import UnreachableError
from kinray.cluster.evaluators import Evaluators
from kinray.cluster.kinship import SearchKinship
from kinray.core.recipe import to_text
from kinray.core.scores import Difference, Failed, Result, Scored, Stopped
from kinray.errors import RunError
from kinray.records.run import RunFolder
from kinray.search.floors import Floor, floors, refusal
from kinray.search.policy import TopK
from kinray.search.population import Child, Outcome
from kinray.search.races import Races

_GROWTH = 1.05
"""The policy's state is kept when the population has grown so many times since, so that this costs a child the same in a long
search as in a short one; what the state lacks is replayed from the records."""

_LOST = 32
"""How often a child's trials may break, besides ``cluster.retries``, before it is given up. The child is hardly to blame: a
trial's process is lost with its node, and Tune then takes one idle process of that node after the other."""

_DIED = "its evaluator's process was killed each time that it was tried; most often memory has run out"


class Watcher(Protocol):
    """Who is told how a search goes; the seam between the cluster and the terminal."""

    def generation(self, policy: TopK) -> None:
        """A generation was made."""

    def started(self, child: Child, evaluator: int) -> None:
        """A child is being scored."""

    def finished(self, child: Child, result: Result, gain: Difference | None, *, remembered: bool) -> None:
        """A child has its result, now or from the records of an earlier session."""


class PolicySearcher(Searcher):
    """Asks the policy for children and tells it their results.

    A child that the run folder already has a row for makes no trial: its result is told at once. So a resumed run is a new
    Tune experiment that takes up where the records end; no state of Tune's is read back, and none is unpickled.

    Contract: Tune calls all methods in one thread. An error in them ends the search: it is kept in ``error``, since Tune
    itself would log and forget it.

    Args:
        policy: the search.
        run: its records.
        kinship: of the policy, whose values are recorded.
        evaluators: one slot each.
        watcher: who is told.
        max_hours: budget of wall time from now on.
        ends: how many items a child has been asked at the end of each round; none if no child is to be stopped early.
        races: who judges children after each round; None where a rule of Tune's does.
    """

    def __init__(
        self,
        policy: TopK,
        run: RunFolder,
        kinship: SearchKinship,
        evaluators: Evaluators,
        watcher: Watcher,
        max_hours: float | None = None,
        ends: Sequence[int] = (),
        races: Races | None = None,
    ) -> None:
        super().__init__(metric="score", mode="max")
        self.error: BaseException | None = None
        self.interrupted = False
        self._policy, self._run, self._kinship, self._watcher = policy, run, kinship, watcher
        self._evaluators, self._races, self.ends = evaluators, races, list(ends)
        self._stopped: dict[str, Stopped] = {}
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._free = evaluators.ready()[::-1]
        self._out: dict[str, tuple[Child, int, float]] = {}
        self._again: list[tuple[Child, int | None]] = []
        """Children whose trials broke, each with the evaluator that it has; None where that does not answer."""
        self._broke: Counter[str] = Counter()
        self._noted: tuple[int, str | None] = (-1, None)
        self._kept = 0
        """Size of the population when the policy's state was kept last."""
        self._failed: list[Failed] = []
        """What failed since a child was last scored, in this session."""

    def suggest(self, trial_id: str) -> Any:
        """Return the next child as a trial's config, None to wait, or FINISHED."""
        if self.error is not None or self.interrupted:
            return Searcher.FINISHED
        try:
            self._free[:0] = self._evaluators.joined()
            given = self._next_again() or self._next_child()
            recipe = to_text(given[0].recipe) if given is not None else ""
        except Exception as error:
            self.error = error
            return Searcher.FINISHED
        if given is None:
            waiting = any(slot is not None for _, slot in self._again)  # when the hours are spent, not for silent evaluators
            return Searcher.FINISHED if self._policy.finished and not (self._out or waiting) else None
        child, slot = given
        self._out[trial_id] = (child, slot, time.perf_counter())
        self._watcher.started(child, slot)
        ends = self.ends if child.generation and (self._races is None or self._races.on()) else []
        return {"child": child.name, "evaluator": self._evaluators.name(slot), "recipe": recipe, "ends": ends}

    def loses(self, trial_id: str) -> bool:
        """Tell, after a round of a child, whether it has lost its race."""
        child, slot, _ = self._out[trial_id]
        try:
            partial = self._evaluators.so_far(slot, child.recipe)
            stopped = self._races.verdict(partial) if self._races is not None and partial is not None else None
        except Exception as caught:
            self.error = caught
            return True
        if stopped is not None:
            self._stopped[trial_id] = stopped
        return stopped is not None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record a child's result and tell the policy."""
        child, slot, started = self._out.pop(trial_id)
        if self.error is not None:
            return
        if error or result is None:
            self._broke[child.name] += 1
            if self._broke[child.name] <= self._run.config.cluster.retries + _LOST:
                self._again.append((child, slot))
                return
        try:
            if error or result is None or "died" in result:
                outcome: Result = Failed(_DIED, broke=True)
            else:
                outcome = self._outcome(trial_id, child, slot, result)
            self._free.append(slot)
            asked = outcome.partial if isinstance(outcome, Stopped) else outcome
            if isinstance(asked, Scored):
                asked.seconds["wait"] = max(0.0, time.perf_counter() - started - sum(asked.seconds.values()))
            self._tell(child, outcome, remembered=False)
        except UnreachableError:
            self._evaluators.lose(slot)
            self._again.append((child, None))
        except Exception as caught:
            self.error = caught

    def _outcome(self, trial_id: str, child: Child, slot: int, result: dict[str, Any]) -> Result:
        """Take a child's result from its evaluator, or what it came to when it was stopped."""
        if "unreachable" in result:
            raise UnreachableError
        if (stopped := self._stopped.pop(trial_id, None)) is not None:
            return stopped
        if self.ends and result.get("items", self.ends[-1]) < self.ends[-1]:  # a rule of Tune's stopped it
            partial = self._evaluators.so_far(slot, child.recipe)
            if partial is not None:
                return Stopped(partial, self.ends[-1], partial.score, partial.stderr)
        return self._evaluators.score_now(slot, child.recipe)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: a child's result comes when it is complete."""

    def save(self, checkpoint_path: str) -> None:
        """Leave Tune's snapshot empty; the run folder holds the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: see ``save``."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "PolicySearcher":
        return self

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Pickle as None: Tune keeps a copy of its arguments, which nothing reads."""
        return type(None), ()

    def _next_again(self) -> tuple[Child, int] | None:
        """Return a child whose trial broke, if there is an evaluator for it."""
        for place, (child, slot) in enumerate(self._again):
            if slot is not None or self._free:
                del self._again[place]
                return child, self._free.pop() if slot is None else slot
        return None

    def _next_child(self) -> tuple[Child, int] | None:
        """Return a child that was not scored before and a free evaluator for it."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._policy.stop("the budget of hours is spent")
        while self._free and (child := self._policy.ask()) is not None:
            self._note_generation()
            self._kinship.prefetch(child.recipe)
            known = self._run.known(child)
            if known is None:
                return child, self._free.pop()
            self._tell(child, known, remembered=True)
        self._note_generation()
        return None

    def _note_generation(self) -> None:
        """Keep what the policy decided when it made a generation, or ended."""
        policy = self._policy
        generation, _ = self._noted
        if self._noted == (policy.generation, policy.finished):
            return
        self._noted = (policy.generation, policy.finished)
        if policy.generation != generation:
            self._watcher.generation(policy)
        names = {child.recipe.digest: child.name for child in policy.population.children}
        metric = self._run.config.search.kinship
        if policy.finished:
            self._kinship.asked.clear()  # asked to decide whether to stop, not to mate
        values = [(names[a], names[b], metric, value) for (a, b), value in self._kinship.asked.items()]
        if values:
            self._run.record_kinship(policy.generation, values)
            self._kinship.asked.clear()
        size = len(policy.population.children)
        if policy.finished or size >= _GROWTH * self._kept:
            self._kept = size
            self._run.save_state(policy.state_dict())

    def _tell(self, child: Child, result: Result, *, remembered: bool) -> None:
        broken = refusal(self._floors, result) if child.generation and isinstance(result, Scored) else None
        self._policy.tell(child.name, Outcome.of(result, broken))
        gain = self._run.gain(child, result)
        if not remembered:
            self._run.record(child, result, gain, broken)
        self._watcher.finished(child, result, gain, remembered=remembered)
        if not remembered:
            self._failed = [*self._failed, result] if isinstance(result, Failed) else []
            self._stop_if_failing(child)

    def _stop_if_failing(self, child: Child) -> None:
        """Raise RunError when so many children failed alike that the cause hardly lies in them."""
        limit, failed = self._run.config.cluster.max_failures, self._failed
        if limit is None or not failed:
            return
        alike = len(failed) >= limit and len({re.sub(r"\d+", "", one.error) for one in failed[-limit:]}) == 1
        population = self._policy.population
        outcomes = [population.outcome(one.name) for one in population.children if one.generation == child.generation]
        lost = all(outcome is not None and outcome.score is None for outcome in outcomes)
        if alike or (lost and any(one.broke for one in failed[-len(outcomes) :])):
            which = f"{limit} children in a row" if alike else f"All {len(outcomes)} models of generation {child.generation}"
            raise RunError(
                f"{which} failed, the last one, {child.name}, with: {failed[-1].error.rstrip('.')}. Find the cause; then "
                "--resume tries children again whose evaluation broke, and goes on without the others."
            )

    @cached_property
    def _floors(self) -> list[Floor]:
        """The floors, from the records of the base and the founders; asked when the first child has its result."""
        limits = {task.name: task.floor for task in self._run.config.tasks if task.floor is not None}
        references: dict[str, Scored] = {}
        if limits:
            founders = [child.name for child in self._policy.population.contenders() if not child.generation]
            for name in ("base", *founders):
                known = self._run.kept(name)
                assert known is not None, name
                references[name] = known
        return floors(limits, references)
