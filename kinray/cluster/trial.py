"""Tune's trial: a thin handle that passes a child to a long-lived evaluator and reports what it scored."""

from typing import Any

import ray
from ray import tune

from kinray.cluster.asking import UnreachableError, asked
from kinray.core.scores import Scored
from kinray.core.statistics import Statistics


class ChildTrial(tune.Trainable):
    """One step: a round of one child's items, or all of them if it is not to be stopped early."""

    def setup(self, config: dict[str, Any], statistics: Statistics, retries: int) -> None:
        """Keep what every child needs."""
        self._statistics, self._retries = ray.put(statistics), retries
        self._round = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another child: the actor of a finished trial serves the next one."""
        self._round = 0
        return True

    def step(self) -> dict[str, Any]:
        """Let the evaluator score the child; scalars are reported, the full result is fetched by the searcher."""
        evaluator = ray.get_actor(self.config["evaluator"])
        recipe = self.config["recipe"]
        try:
            if ends := self.config["ends"]:
                result, done = self._answer(evaluator, "ask", recipe, ends, self._round, self._statistics)
            else:
                result, done = self._answer(evaluator, "score", recipe, "search", self._statistics), True
        except ray.exceptions.RayActorError:
            return {"score": float("nan"), "items": 0, "died": True, "done": True}
        except UnreachableError:
            return {"score": float("nan"), "items": 0, "unreachable": True, "done": True}
        self._round += 1
        if not isinstance(result, Scored):
            return {"score": float("nan"), "items": 0, "done": True}
        return {
            "score": result.score,
            "stderr": result.stderr,
            "tokens": result.tokens,
            "items": result.asked,
            **{f"score/{name}": task.score for name, task in result.tasks.items()},
            "done": done,
        }

    def _answer(self, evaluator: Any, method: str, *arguments: Any) -> Any:
        """Call the evaluator, and again when it dies meanwhile, as often as the configuration says."""
        retries = self._retries
        while True:
            try:
                return ray.get(asked(evaluator, method, *arguments))
            except ray.exceptions.RayActorError:
                if not retries:
                    raise
                retries -= 1
