"""Calls of evaluators, whose processes and nodes may be lost at any moment."""

from contextlib import suppress
from typing import Any

import ray

_PATIENCE = 300.0
"""Seconds for an evaluator to answer that was loading, or is started elsewhere."""


class UnreachableError(Exception):
    """An evaluator does not answer: its node was lost, and Ray has no other place for it; or it is busy with something else."""


def asked(evaluator: Any, method: str, *arguments: Any) -> Any:
    """Call an evaluator's method as soon as it can be reached, and return what ``ray.get`` takes; Ray tries it once.

    When a node is lost, calls are refused until Ray has noticed it and started the evaluator elsewhere. Ray would spend retries
    on that, and a child be blamed, so whoever asks counts the tries.

    Raises:
        UnreachableError: when it could not be reached for five minutes; another evaluator may have time.
    """
    ready = evaluator.__ray_ready__.options(max_task_retries=-1).remote()
    if not ray.wait([ready], timeout=_PATIENCE)[0]:
        raise UnreachableError
    with suppress(ray.exceptions.RayActorError):  # one that will never be there says so when it is asked
        ray.get(ready)
    return getattr(evaluator, method).options(max_task_retries=0).remote(*arguments)
