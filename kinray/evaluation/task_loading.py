"""Load lm-eval tasks and their data, check what is asked of them, and split their items."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from os.path import isdir
from pathlib import Path
from typing import Any

from kinray.config import EvaluationConfig, TaskSpec
from kinray.errors import TaskError, did_you_mean
from kinray.evaluation.randomness import seeded
from kinray.evaluation.task_files import check_task_files
from kinray.evaluation.tasks import Leaf, LoadedTask, Prompts, Split, TaskSet

_UNBOUNDED = ("perplexity", "likelihood", "bleu", "chrf", "rouge")
"""Parts of the names of metrics that do not lie between 0 and 1 though higher is better; ``bleu_acc`` and its like do."""


def load_tasks(specs: Sequence[TaskSpec], paths: Sequence[str], config: EvaluationConfig, seed: int) -> TaskSet:
    """Load tasks and their data, check their metrics and split their items; those that ``config`` holds out come last.

    Raises:
        TaskError: for an unknown task or metric, a metric that needs a scale, data that cannot be read, or too few items.
    """
    for path in paths:
        if not isdir(path):
            raise TaskError(f"task_paths: there is no folder {path}.")
    check_task_files([Path(path) for path in paths])
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    _keep_templates()
    specs = [*specs, *config.held_tasks]
    manager = _manager([spec.name for spec in specs], paths)
    managers = [_manager([spec.name], paths, spec.metadata) if spec.metadata else manager for spec in specs]
    with seeded(seed):  # some tasks shuffle their choices while they load
        tasks = [LoadedTask(spec, _leaves(spec, own, config, seed)) for spec, own in zip(specs, managers, strict=True)]
    names = [leaf.name for task in tasks for leaf in task.leaves]
    for name in names:
        if names.count(name) > 1:
            raise TaskError(f"Task '{name}' is named by two entries of tasks. Name each task once.")
    return TaskSet(tasks)


def _keep_templates() -> None:
    """Let lm-eval compile each Jinja template once; by itself it does so for each document, which takes most of its time."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=4096)(env.from_string)


def _manager(names: Sequence[str], paths: Sequence[str], metadata: dict[str, Any] | None = None) -> Any:
    """Index the given folders, and lm-eval's own 10 000 files only when a task is not found there."""
    from lm_eval.tasks import TaskManager

    include = [str(Path(path).resolve()) for path in paths]
    if include:
        manager = TaskManager(include_path=include, include_defaults=False, metadata=metadata)
        if all(_indexed(name, manager.task_index) for name in names):
            return manager
    manager = TaskManager(include_path=include or None, metadata=metadata)
    for name in names:
        if name not in manager.all_tasks:
            raise TaskError(f"There is no lm-eval task '{name}'.{did_you_mean(name, manager.all_tasks)}")
    return manager


def _indexed(name: str, index: Mapping[str, Any]) -> bool:
    """Tell whether a task was found, and of a group all that it names too."""
    if name not in index:
        return False
    members = (index[name].cfg or {}).get("task")
    return not isinstance(members, list) or all(_indexed(member, index) for member in members if isinstance(member, str))


def _leaves(spec: TaskSpec, manager: Any, config: EvaluationConfig, seed: int) -> list[Leaf]:
    try:
        loaded: dict[str, Any] = manager.load([spec.name])["tasks"]
    except Exception as error:  # whatever a task's files or data raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TaskError(f"Task '{spec.name}' cannot be loaded: {type(error).__name__}: {reason[0][:300]}") from error
    leaves = [_leaf(name, task, spec, config, seed) for name, task in loaded.items()]
    if spec.gen_kwargs and not any(leaf.task.OUTPUT_TYPE == "generate_until" for leaf in leaves):
        raise TaskError(f"Task '{spec.name}' generates no text, so it takes no gen_kwargs. Leave them out.")
    return leaves


def _leaf(name: str, task: Any, spec: TaskSpec, config: EvaluationConfig, seed: int) -> Leaf:
    if getattr(task, "UNSAFE_CODE", False) and not _first(spec.confirm_run_unsafe_code, config.confirm_run_unsafe_code):
        raise TaskError(f"Task '{name}' runs code that models write. Consent with evaluation.confirm_run_unsafe_code: true.")
    if spec.num_fewshot is not None:
        task.set_config("num_fewshot", spec.num_fewshot)
    if spec.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", spec.gen_kwargs, update=True)
    wanted, _, chosen = (spec.metric or "").partition(",")
    better = task.higher_is_better()
    if wanted and wanted not in better:
        raise TaskError(f"Task '{name}' has no metric '{wanted}'.{did_you_mean(wanted, better)}")
    metric = wanted or next(iter(better))
    filters = [pipeline.name for pipeline in task._filters]
    if chosen and chosen not in filters:
        raise TaskError(f"Task '{name}' has no filter '{chosen}'.{did_you_mean(chosen, filters)}")
    if spec.scale is None and not (better[metric] and _bounded(metric)):
        raise TaskError(f"Metric '{metric}' of task '{name}' is not between 0 and 1. Give the task a scale: [worst, best].")
    aggregate = task.aggregation().get(metric)
    from lm_eval.api.metrics import mean

    items = _split(name, len(task.eval_docs), spec.limit, config.held_share, seed)
    if spec in config.held_tasks:
        items = {"search": [], "holdout": items["search"]}
    prompts = _prompts(spec, config, seed)
    return Leaf(name, task, metric, chosen or None, aggregate or mean, aggregate in (mean, None), items, prompts)


def _prompts(spec: TaskSpec, config: EvaluationConfig, seed: int) -> Prompts:
    """Take what a task says of its prompts, and of the rest what holds for all tasks."""
    template = _first(spec.apply_chat_template, config.apply_chat_template)
    return Prompts(
        template,
        # As lm-eval's command line has it: examples are turns of their own where there are turns.
        bool(template) and _first(spec.fewshot_as_multiturn, config.fewshot_as_multiturn, True),
        _first(spec.system_instruction, config.system_instruction),
        _first(spec.fewshot_seed, seed),
        _first(spec.batch_size, config.batch_size),
    )


def _first(*values: Any) -> Any:
    """Return the first value that is given."""
    return next((value for value in values if value is not None), None)


def _bounded(metric: str) -> bool:
    return metric.endswith("acc") or not any(part in metric.lower() for part in _UNBOUNDED)


def _split(name: str, count: int, limit: int | None, holdout: float, seed: int) -> dict[Split, list[int]]:
    """Draw the items of both splits: held out first, so that changing ``limit`` never moves an item between them."""
    order = list(range(count))
    random.Random(f"{seed}/{name}/items").shuffle(order)
    held = round(count * holdout)
    search, rest = order[held:], order[:held]
    if limit is not None:
        search, rest = search[:limit], rest[: math.ceil(limit * holdout / (1 - holdout))]
    if len(search) < 2 or (holdout and len(rest) < 2):
        raise TaskError(f"Task '{name}' has {count} items: too few to search on {1 - holdout:.0%} and hold out {holdout:.0%}.")
    return {"search": sorted(search), "holdout": sorted(rest)}
