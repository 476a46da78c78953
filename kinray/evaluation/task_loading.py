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
from kinray.evaluation.tasks import Leaf, LoadedTask, Prompts, Split, TaskSet, clusters

_UNBOUNDED = ("perplexity", "likelihood", "bleu", "chrf", "rouge", "mcc", "matthews", "corr", "pearson", "spearman", "kappa")
"""Parts of the names of metrics that do not lie between 0 and 1 though higher is better; ``bleu_acc`` and its like do."""

_OWN_DATA = ("dataset_path", "custom_dataset", "class")
"""What a task brings that a group defines, and does not only name."""


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
        tasks = [_loaded(spec, own, config, seed) for spec, own in zip(specs, managers, strict=True)]
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


def _indexed(member: Any, index: Mapping[str, Any]) -> bool:
    """Tell whether a task was found, and of a group all that it names too, with settings of their own or without."""
    match member:
        case {"group": str() as group} if group in index:
            return _indexed(group, index)
        case {"task": list()}:
            members: Any = member["task"]
        case dict():
            return any(key in member for key in _OWN_DATA) or _indexed(member.get("task"), index)
        case str() if member in index:
            members = (index[member].cfg or {}).get("task")
        case _:
            return False
    return not isinstance(members, list) or all(_indexed(one, index) for one in members)


def _loaded(spec: TaskSpec, manager: Any, config: EvaluationConfig, seed: int) -> LoadedTask:
    try:
        found = manager.load([spec.name])
    except Exception as error:  # whatever a task's files or data raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise TaskError(f"Task '{spec.name}' cannot be loaded: {type(error).__name__}: {reason[0][:300]}") from error
    leaves = [_leaf(name, task, spec, config, seed) for name, task in found["tasks"].items()]
    if spec.gen_kwargs and not any(leaf.task.OUTPUT_TYPE == "generate_until" for leaf in leaves):
        raise TaskError(f"Task '{spec.name}' generates no text, so it takes no gen_kwargs. Leave them out.")
    return LoadedTask(spec, leaves, _equally(found["groups"].get(spec.name), leaves))


def _equally(group: Any, leaves: Sequence[Leaf]) -> bool:
    """Tell whether a group averages its tasks whatever their sizes, where these differ."""
    said = {one.metric: one.weight_by_size for one in getattr(group, "aggregate_metric_list", None) or []}
    by_size = said.get(leaves[0].metric, next(iter(said.values()), True))
    return not by_size and any(len({len(leaf.items[split]) for leaf in leaves}) > 1 for split in leaves[0].items)


def _leaf(name: str, task: Any, spec: TaskSpec, config: EvaluationConfig, seed: int) -> Leaf:
    if getattr(task, "UNSAFE_CODE", False) and not _first(spec.confirm_run_unsafe_code, config.confirm_run_unsafe_code):
        raise TaskError(f"Task '{name}' runs code that models write. Consent with evaluation.confirm_run_unsafe_code: true.")
    if spec.num_fewshot is not None:
        task.set_config("num_fewshot", spec.num_fewshot)
    if spec.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
        task.set_config("generation_kwargs", spec.gen_kwargs, update=True)
    wanted, _, chosen = (spec.metric or "").partition(",")
    better, functions = task.higher_is_better(), _functions(task)
    if wanted and wanted not in better and not functions:
        raise TaskError(f"Task '{name}' has no metric '{wanted}'.{did_you_mean(wanted, better)}")
    metric = wanted or next(iter(better))
    declared = metric if metric in better else functions[0]
    filters = [pipeline.name for pipeline in task._filters]
    if chosen and chosen not in filters:
        raise TaskError(f"Task '{name}' has no filter '{chosen}'.{did_you_mean(chosen, filters)}")
    if spec.scale is None and not (better[declared] and _bounded(metric)):
        raise TaskError(f"Metric '{metric}' of task '{name}' is not between 0 and 1. Give the task a scale: [worst, best].")
    aggregate = task.aggregation().get(declared)
    from lm_eval.api.metrics import acc_all, mean

    units = clusters(task.eval_docs) if aggregate is acc_all else [[number] for number in range(len(task.eval_docs))]
    items = _split(name, units, spec.limit, config.held_share, seed)
    if spec in config.held_tasks:
        items = {"search": [], "holdout": items["search"]}
    elif task.config.num_fewshot:
        _keep_apart(name, task, items["holdout"])
    prompts = _prompts(spec, config, seed)
    return Leaf(name, task, metric, chosen or None, aggregate or mean, aggregate in (mean, None), items, prompts)


def _functions(task: Any) -> list[str]:
    """Name the metrics that are functions of the task's own: what they return may have further names."""
    metrics = [entry.get("metric") for entry in getattr(task.config, "metric_list", None) or []]
    return [metric.__name__ for metric in metrics if callable(metric)]


def _keep_apart(name: str, task: Any, held: Sequence[int]) -> None:
    """Let no held-out item be an example in a prompt, where a task draws examples from its own items."""
    sampler = getattr(task, "sampler", None)
    pool = list(task.fewshot_docs() if sampler is None else sampler.df)
    hidden = {repr(task.eval_docs[number]) for number in held}
    kept = [document for document in pool if repr(document) not in hidden]
    if len(kept) == len(pool):
        return
    if len(kept) <= task.config.num_fewshot:
        raise TaskError(
            f"Task '{name}' draws its {task.config.num_fewshot} few-shot examples from its own items, and {len(kept)} are left "
            "beside those held out. Lower num_fewshot or evaluation.holdout."
        )
    if sampler is None:
        task._fewshot_docs = kept
    else:
        sampler.replace_df(kept)


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


def _split(name: str, units: Sequence[Sequence[int]], limit: int | None, holdout: float, seed: int) -> dict[Split, list[int]]:
    """Draw the items of both splits: held out first, so that changing ``limit`` never moves an item between them.

    Returns:
        the documents of each split, ascending; an item is one document, or all that are judged together.
    """
    count = len(units)
    order = list(range(count))
    random.Random(f"{seed}/{name}/items").shuffle(order)
    held = round(count * holdout)
    search, rest = order[held:], order[:held]
    if limit is not None:
        search, rest = search[:limit], rest[: max(2, math.ceil(limit * holdout / (1 - holdout)))]
    if len(search) < 2 or (holdout and len(rest) < 2):
        raise TaskError(f"Task '{name}' has {count} items: too few to search on {1 - holdout:.0%} and hold out {holdout:.0%}.")
    drawn: dict[Split, list[int]] = {"search": search, "holdout": rest}
    return {split: sorted(document for unit in own for document in units[unit]) for split, own in drawn.items()}
