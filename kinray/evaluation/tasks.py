"""lm-eval tasks as a search sees them: their items in two splits, and what score the answers give."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, Literal

from kinray.config import TaskSpec
from kinray.core.scores import TaskScore, standard_error
from kinray.errors import RunError, TaskError, did_you_mean
from kinray.search.racing import Order, item_order

Split = Literal["search", "holdout"]

_GROUPS = 20
"""Parts of the delete-a-group jackknife, for metrics that are no mean over items."""


@dataclass(frozen=True)
class Prompts:
    """How the prompts of a task are made, and how many go through the model together when it generates.

    Args:
        chat_template: whether to use the tokenizer's chat template, or the name of one of its templates.
        multiturn: whether few-shot examples are turns of their own.
        system_instruction: system prompt.
        fewshot_seed: of the draw of few-shot examples.
        batch_size: prompts that are generated for at once.
    """

    chat_template: bool | str
    multiturn: bool
    system_instruction: str | None
    fewshot_seed: int
    batch_size: int


@dataclass
class Leaf:
    """One lm-eval task with its metric and its items split.

    Args:
        name: of the task.
        task: lm-eval's object.
        metric: name of the metric.
        filter: name of the filter whose answers count; None for the first.
        aggregate: from the items' values to the score.
        is_mean: whether that is their mean.
        items: document numbers of each split, ascending.
        prompts: how they are asked.
    """

    name: str
    task: Any
    metric: str
    filter: str | None
    aggregate: Callable[[Sequence[Any]], float]
    is_mean: bool
    items: dict[Split, list[int]]
    prompts: Prompts

    @cached_property
    def clustered(self) -> bool:
        """Whether documents are judged in clusters: lm-eval's ``acc_all`` wants all answers to a question right."""
        from lm_eval.api.metrics import acc_all

        return self.aggregate is acc_all

    def by_item(self, values: Mapping[int, Any]) -> dict[int | str, Any]:
        """Order the values of documents by number; those of clusters become one each, which is then an item."""
        ordered = [(number, values[number]) for number in sorted(values)]
        if not self.clustered:
            return dict(ordered)
        right: dict[int | str, bool] = {}
        for _, (said, document) in ordered:
            name = _cluster(document)
            right[name] = right.get(name, True) and (document["label"] == 1) == said
        return {name: float(all_right) for name, all_right in right.items()}

    def values(self, instances: Sequence[Any]) -> dict[int, Any]:
        """Let lm-eval judge answered instances and return the metric of each item, by document number."""
        self.task._instances = list(instances)
        self.task.apply_filters()
        by_doc: dict[int, list[Any]] = defaultdict(list)
        for instance in instances:
            by_doc[instance.doc_id].append(instance)
        chosen = self.filter or next(iter(instances[0].filtered_resps))
        values = {}
        for doc_id in by_doc:
            group = sorted(by_doc[doc_id], key=lambda instance: instance.idx)
            metrics = self.task.process_results(group[0].doc, [one.filtered_resps[chosen] for one in group])
            values[doc_id] = metrics[self._name_in(metrics)]
        return values

    def _name_in(self, metrics: Mapping[str, Any]) -> str:
        """Return what lm-eval calls the metric; a function of the task's own gives its results names, such as pass@1."""
        if self.metric in metrics:
            return self.metric
        declared = getattr(self.task, "_metric_fn_list", {})
        if self.metric in declared and (named := [name for name in metrics if name not in declared]):
            return named[0]
        raise TaskError(f"Task '{self.name}' gives no metric '{self.metric}'.{did_you_mean(self.metric, metrics)}")


@dataclass(frozen=True)
class Item:
    """A document that is asked about.

    Args:
        task: the entry of ``tasks`` that it belongs to.
        label: what records call it.
        leaf: number of its lm-eval task among all.
        document: its number there.
    """

    task: str
    label: str
    leaf: int
    document: int


@dataclass
class LoadedTask:
    """One entry of ``tasks``: a task, or the tasks of a group or tag.

    Args:
        spec: its configuration.
        leaves: the lm-eval tasks that it names.
        equally: whether leaves of different sizes count alike (``weight_by_size: false`` of lm-eval's groups).
    """

    spec: TaskSpec
    leaves: list[Leaf] = field(default_factory=list)
    equally: bool = False

    def count(self, split: Split) -> int:
        """Count the items of a split."""
        return sum(len(leaf.items[split]) for leaf in self.leaves)

    @property
    def bounded(self) -> bool:
        """Whether its score is a mean over items that lie between 0 and 1, which racing is for."""
        return self.spec.scale is None and not self.equally and all(leaf.is_mean for leaf in self.leaves)

    @property
    def separable(self) -> bool:
        """Whether each document contributes by itself, whatever else is asked."""
        return not self.equally and not any(leaf.clustered for leaf in self.leaves)

    def judge(self, values: Sequence[Mapping[int, Any]]) -> TaskScore:
        """Turn the items' values into one score; leaves count by their items or equally, as in lm-eval's groups.

        Args:
            values: of each leaf, by document number; there is at least one.

        Raises:
            TaskError: when the score lies outside of 0..1 and no scale was given.
        """
        judged = [(leaf, leaf.by_item(own)) for leaf, own in zip(self.leaves, values, strict=True) if own]
        total = sum(len(own) for _, own in judged)
        shares = [1 / len(judged) if self.equally else len(own) / total for _, own in judged]
        pairs = [_score(leaf, list(own.values())) for leaf, own in judged]
        score = math.fsum(share * pair[0] for share, pair in zip(shares, pairs, strict=True))
        error = math.sqrt(math.fsum((share * pair[1]) ** 2 for share, pair in zip(shares, pairs, strict=True)))
        paired = all(leaf.is_mean or leaf.clustered for leaf in self.leaves)
        # What an item contributes to equal parts depends on their sizes, which are others as long as not all is asked.
        paired = paired and (not self.equally or total in (self.count("search"), self.count("holdout")))
        # What each item contributes, so that the score is the mean.
        parts = [total / (len(judged) * len(own)) if self.equally else 1.0 for _, own in judged]
        flat = [_number(value) * part for part, (_, own) in zip(parts, judged, strict=True) for value in own.values()]
        if paired and len(self.leaves) > 1 and not self.equally:
            error = standard_error(flat)
        if self.spec.scale is not None:
            worst, best = self.spec.scale
            scaled = (score - worst) / (best - worst)
            clipped = scaled if math.isnan(scaled) else min(1.0, max(0.0, scaled))
            error /= abs(best - worst)
            flat = [(value - worst) / (best - worst) for value in flat]
            paired = paired and clipped == scaled
            score = clipped
        elif not -1e-9 <= score <= 1 + 1e-9 and not math.isnan(score):
            raise TaskError(
                f"Task '{self.spec.name}' scored {score:g}, which is not between 0 and 1. Give it a scale: [worst, best]."
            )
        labels = tuple(self.label(leaf, item) for leaf, own in judged for item in own)
        return TaskScore(score, error, labels, tuple(flat), self.spec.weight, paired)

    def label(self, leaf: Leaf, item: int | str) -> str:
        """Name an item: a document number or a cluster of them, in a group with its task."""
        return f"{leaf.name}:{item}" if len(self.leaves) > 1 else str(item)


@dataclass
class TaskSet:
    """All tasks of a search."""

    tasks: list[LoadedTask]

    @cached_property
    def leaves(self) -> list[Leaf]:
        """The lm-eval tasks of all entries."""
        return [leaf for task in self.tasks for leaf in task.leaves]

    def count(self, split: Split) -> int:
        """Count the items of a split over all tasks."""
        return sum(task.count(split) for task in self.tasks)

    def order(self, split: Split, seed: int) -> Order:
        """Draw the order in which all models of a run are asked the items of a split."""
        asked = [task for task in self.tasks if task.count(split)]
        counts = {task.spec.name: task.count(split) for task in asked}
        return item_order(counts, {task.spec.name: task.spec.weight for task in asked}, f"{seed}/{split}")

    def items(self, split: Split, seed: int) -> list[Item]:
        """List the items of a split in that order."""
        places: dict[str, list[Item]] = {}
        number = count()
        for task in self.tasks:
            own = places[task.spec.name] = []
            for leaf in task.leaves:
                place = next(number)
                own += [Item(task.spec.name, task.label(leaf, item), place, item) for item in leaf.items[split]]
        return [places[task][place] for task, place in self.order(split, seed).items]


def clusters(documents: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """List the documents that are judged together."""
    together: dict[str, list[int]] = defaultdict(list)
    for number, document in enumerate(documents):
        together[_cluster(document)].append(number)
    return list(together.values())


def _cluster(document: Mapping[str, Any]) -> str:
    return f"{document['idx']['paragraph']}/{document['idx']['question']}"


def _score(leaf: Leaf, values: Sequence[Any]) -> tuple[float, float]:
    """Return score and standard error of one task; by the jackknife where the metric is no mean over items."""
    if leaf.clustered:
        return math.fsum(values) / len(values), standard_error(values)
    score = _aggregate(leaf, values)
    if leaf.is_mean:
        return score, standard_error([_number(value) for value in values])
    if len(values) < 2:
        return score, math.nan
    groups = min(_GROUPS, len(values))
    parts = [
        _aggregate(leaf, [value for place, value in enumerate(values) if place % groups != group]) for group in range(groups)
    ]
    middle = math.fsum(parts) / groups
    return score, math.sqrt((groups - 1) / groups * math.fsum((part - middle) ** 2 for part in parts))


def _aggregate(leaf: Leaf, values: Sequence[Any]) -> float:
    try:
        return float(leaf.aggregate(values))
    except OverflowError as error:  # the perplexity of a model that knows nothing
        raise RunError(f"{leaf.metric} of task '{leaf.name}' is too large for a number") from error


def _number(value: Any) -> float:
    """Reduce an item's value to one number for the record; metrics of several numbers keep their first."""
    while isinstance(value, tuple | list) and value:
        value = value[0]
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
