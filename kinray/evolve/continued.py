"""What may be changed when a run goes on: its budgets, upwards, and where the work is done."""

import math
from collections.abc import Sequence

from kinray.config import Config
from kinray.config.loading import changed
from kinray.errors import RunError

_BUDGETS = ("max_children", "max_generations", "stop_kinship")
"""What ends a search. Under a larger one it makes the same children first, and then more."""


def continued(config: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration of a run that goes on with some settings changed.

    Raises:
        ConfigError: for a value that cannot be used.
        RunError: for a setting that makes another search of it, and for a smaller budget.
    """
    allowed = [f"search.{name}" for name in (*_BUDGETS, "max_hours")]
    for key in (override.partition("=")[0].strip() for override in overrides):
        if key not in allowed and not key.startswith("cluster."):
            raise RunError(
                f"--set {key}: --resume continues a run as it was configured. It can change {', '.join(allowed)}, and what is "
                "under cluster. For another search, begin another run; with evaluation.score_cache it scores nothing again."
            )
    result = changed(config, overrides)
    for name in _BUDGETS:
        old, new = getattr(config.search, name), getattr(result.search, name)
        if _unlimited(new) < _unlimited(old):
            limit = "none" if old is None else f"{old:g}"
            raise RunError(f"--set search.{name}={new:g}: it was {limit}, and what the run made stays. It can only be raised.")
    return result


def _unlimited(budget: float | None) -> float:
    return math.inf if budget is None else budget
