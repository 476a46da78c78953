"""Tune's trial: a thin handle that passes a child to a long-lived evaluator and reports what it scored."""

import json
from typing import Any

import ray
from ray import tune

from kinray.core.scores import Scored
from kinray.core.statistics import Statistics


class ChildTrial(tune.Trainable):
    """One step: the whole evaluation of one child."""

    def setup(self, config: dict[str, Any], statistics: Statistics) -> None:
        """Keep what every child needs."""
        self._statistics = ray.put(statistics)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another child: the actor of a finished trial serves the next one."""
        return True

    def step(self) -> dict[str, Any]:
        """Let the evaluator score the child; scalars are reported, the full result is fetched by the searcher."""
        evaluator = ray.get_actor(self.config["evaluator"])
        recipe = json.loads(self.config["recipe"])
        try:
            result = ray.get(evaluator.score.remote(recipe, "search", self._statistics))
        except ray.exceptions.RayActorError:  # Ray has tried it as often as the configuration says
            return {"score": float("nan"), "died": True, "done": True}
        if not isinstance(result, Scored):
            return {"score": float("nan"), "done": True}
        return {
            "score": result.score,
            "stderr": result.stderr,
            "tokens": result.tokens,
            **{f"score/{name}": task.score for name, task in result.tasks.items()},
            "done": True,
        }
