"""Scores of a model: per item, per task and overall, with standard errors, and comparisons paired on the same items."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kinray.core.statistics import Float64

CLEAR = 2.0
"""Standard errors from which a difference is called clear."""


@dataclass(frozen=True)
class TaskScore:
    """One model's result on one task's items.

    Args:
        score: the task's score, higher is better, 0..1 for tasks that are scaled.
        stderr: its standard error over items; NaN for fewer than two items.
        items: document numbers (of a group: task and number), in the order of ``values``.
        values: each item's contribution; the score is their mean when ``paired``.
        weight: the task's weight in the overall score.
        paired: whether items of two models may be compared one by one (the metric is a mean over items).
    """

    score: float
    stderr: float
    items: tuple[str, ...]
    values: tuple[float, ...]
    weight: float = 1.0
    paired: bool = True

    def on(self, items: Sequence[str]) -> "TaskScore":
        """Return the result on some of its items, of a metric that is a mean over items."""
        assert self.paired
        value = dict(zip(self.items, self.values, strict=True))
        values = tuple(value[item] for item in items)
        mean = math.fsum(values) / len(values)
        return TaskScore(mean, standard_error(values), tuple(items), values, self.weight)


FROM_CACHE = "score cache"
"""What stands for the device of a result that was remembered: nothing was computed."""


@dataclass(frozen=True)
class Scored:
    """The outcome of a child that was evaluated.

    Args:
        tasks: results by task name.
        seconds: wall time by part (``merge``, ``copy``, ``evaluate``, …).
        where: device (or ``FROM_CACHE``) and node.
        tokens: that went through the model, padding included; what answers share counts once.
        gpu_seconds: for which a GPU was held: wall time without ``wait``, times the GPUs that an evaluator has.
        asked: how many documents it was asked in this session; ``items`` are fewer where they are judged in clusters.
    """

    tasks: Mapping[str, TaskScore]
    seconds: dict[str, float] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)
    tokens: int = 0
    gpu_seconds: float = 0.0
    asked: int = 0

    @property
    def score(self) -> float:
        """The weighted mean over tasks."""
        return weighted_mean([task.score for task in self.tasks.values()], self._weights)

    @property
    def stderr(self) -> float:
        """Its standard error, the tasks' items being independent."""
        return weighted_error([task.stderr for task in self.tasks.values()], self._weights)

    @property
    def items(self) -> int:
        """How many items it has scores of."""
        return sum(len(task.items) for task in self.tasks.values())

    def on(self, items: Mapping[str, Sequence[str]]) -> "Scored":
        """Return what it scored on some of its items, at no cost; tasks of which there are none are left out.

        Args:
            items: of each task whose metric is a mean over items.
        """
        return Scored({name: self.tasks[name].on(own) for name, own in items.items() if own}, where=self.where)

    @property
    def _weights(self) -> list[float]:
        return [task.weight for task in self.tasks.values()]


@dataclass(frozen=True)
class Failed:
    """The outcome of a child that could not be evaluated; it is never a parent and never the best.

    Args:
        error: why.
        broke: whether the evaluation broke, which may not happen again; else it is the child's own fault and would.
    """

    error: str
    broke: bool = False


@dataclass(frozen=True)
class Stopped:
    """The outcome of a child that was not asked all items, since it had no prospect; it is never a parent and never the best.

    Args:
        partial: its results on the items that it was asked; tasks of which it was asked none are missing.
        of: how many items it would have been asked.
        score: estimate of its score on all of them.
        stderr: its standard error.
    """

    partial: Scored
    of: int
    score: float
    stderr: float


Result = Scored | Failed | Stopped


@dataclass(frozen=True)
class Difference:
    """How much better one model scored than another, in score points of 0..1."""

    mean: float
    stderr: float

    @property
    def sigmas(self) -> float:
        """The difference in units of its standard error.

        Infinite when no item differs in spread but the mean does; zero when the error is unknown, since then nothing is clear.
        """
        if self.stderr > 0:
            return self.mean / self.stderr
        return math.copysign(math.inf, self.mean) if self.mean and self.stderr == 0 else 0.0

    @property
    def clear(self) -> bool:
        """Whether the better one is better by ``CLEAR`` standard errors at least."""
        return self.sigmas >= CLEAR


def difference(better: Scored, *worse: Scored) -> Difference:
    """Compare a model with another, or with the mean of several, task by task on the same items."""
    gaps = [task_difference(task, *(one.tasks[name] for one in worse)) for name, task in better.tasks.items()]
    weights = [task.weight for task in better.tasks.values()]
    return Difference(weighted_mean([gap.mean for gap in gaps], weights), weighted_error([gap.stderr for gap in gaps], weights))


def on_items_of(partial: Scored, whole: Scored) -> Scored:
    """Return what a model scored on the items that another one was asked, on tasks whose metric is a mean over items."""
    tasks = {name: (whole.tasks[name], task) for name, task in partial.tasks.items()}
    return Scored({name: one.on(own.items) if one.paired and own.paired else one for name, (one, own) in tasks.items()})


def task_difference(better: TaskScore, *worse: TaskScore) -> Difference:
    """Compare results on one task: paired item by item where the metric is a mean, else by their errors."""
    if better.paired and all(one.items == better.items for one in worse):
        gaps = np.subtract(better.values, np.mean([one.values for one in worse], axis=0))
        return Difference(float(gaps.mean()), standard_error(gaps))
    equal = [1.0] * len(worse)
    other = weighted_mean([one.score for one in worse], equal)
    return Difference(better.score - other, math.hypot(better.stderr, weighted_error([one.stderr for one in worse], equal)))


def standard_error(values: Sequence[float] | Float64) -> float:
    """Estimate the standard error of a mean (sample standard deviation over √n); NaN for fewer than two values."""
    n = len(values)
    return float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Average values by weights that need not add up to one."""
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def weighted_error(errors: Sequence[float], weights: Sequence[float]) -> float:
    """Propagate independent standard errors through ``weighted_mean``."""
    return math.sqrt(math.fsum((e * w) ** 2 for e, w in zip(errors, weights, strict=True))) / math.fsum(weights)
