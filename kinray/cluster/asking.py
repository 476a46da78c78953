"""Calls of evaluators, whose processes and nodes may be lost at any moment."""

from contextlib import suppress
from typing import Any

import ray


def asked(evaluator: Any, method: str, *arguments: Any) -> Any:
    """Call an evaluator's method as soon as it can be reached, and return what ``ray.get`` takes; Ray tries it once.

    When a node is lost, calls are refused until Ray has noticed it and started the evaluator elsewhere. Ray would spend retries
    on that, and a child be blamed, so whoever asks counts the tries.
    """
    with suppress(ray.exceptions.RayActorError):  # one that will never be there says so when it is asked
        ray.get(evaluator.__ray_ready__.options(max_task_retries=-1).remote())
    return getattr(evaluator, method).options(max_task_retries=0).remote(*arguments)
