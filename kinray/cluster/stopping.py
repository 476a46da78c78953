"""Tune's schedulers: who decides after each round whether a child goes on."""

import math
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from kinray.config import EvaluationConfig

if TYPE_CHECKING:
    from kinray.cluster.searcher import PolicySearcher


class RaceScheduler(FIFOScheduler):
    """Stops a trial when its child has lost its race, which the searcher judges."""

    def __init__(self, searcher: "PolicySearcher") -> None:
        super().__init__()
        self._searcher = searcher

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial or let it go on."""
        decision: str = TrialScheduler.STOP if self._searcher.loses(trial.trial_id) else TrialScheduler.CONTINUE
        return decision


def scheduler_for(evaluation: EvaluationConfig, searcher: "PolicySearcher") -> TrialScheduler:
    """Make the scheduler that the configuration names.

    Tune's own compare children by the mean score of what they were asked so far, in the order in which results arrive.
    """
    ends = searcher.ends
    if not ends or evaluation.racing is False:
        return FIFOScheduler()
    common: dict[str, Any] = {"time_attr": "items", "metric": "score", "mode": "max", "grace_period": ends[0]}
    if evaluation.racing == "asha":
        return AsyncHyperBandScheduler(**common, max_t=ends[-1])
    if evaluation.racing == "median":
        # Each child has its evaluator, so none need yield to one that waits; a trial that was paused would begin anew.
        return MedianStoppingRule(**common | {"min_time_slice": math.inf})
    return RaceScheduler(searcher)
