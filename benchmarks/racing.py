"""Simulate what racing saves, and how often it errs, on recorded scores: ``python benchmarks/racing.py``; see README.md."""

import argparse
import math
import random
import time
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq

from kinray.core.scores import Scored, TaskScore
from kinray.search.racing import Order, Race, item_order, level, rounds

SCORES = Path(__file__).parent / "data" / "scores.parquet"
FOUNDERS = 4
"""The first models of the table; the others are merges of them."""
K = 3
PER_GENERATION = 4
Values = Mapping[str, tuple[float, ...]]
"""A model's score on each item of each task."""


def main() -> None:
    """Resample searches of each size, run each by each rule, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[60, 250, 500, 1000, 1500, 0], help="of a search; 0 is all")
    parser.add_argument("--searches", type=int, default=200, help="resampled searches of each size")
    parser.add_argument("--children", type=int, default=16, help="children of a search, drawn from the recorded ones")
    parser.add_argument("--error-rates", type=float, nargs="+", default=[0.05, 0.2, 0.5])
    arguments = parser.parse_args()
    models = load(SCORES)
    pool = sum(len(own) for own in next(iter(models.values())).values())
    print(f"{len(models)} models, {pool} items; {arguments.searches} searches of {arguments.children} children, S of {K}\n")
    title = f"{'items':>6}  {'rule':<34}{'saved':>7}{'top-1 kept':>12}{'S kept':>9}"
    print(f"{title}{'wrong drops':>13}{'searches with':>15}{'seconds':>9}")
    for items in (min(items or pool, pool) for items in arguments.items):
        searches = [resample(models, items, arguments.children, seed) for seed in range(arguments.searches)]
        _table(searches, items, rules(arguments.error_rates))


def load(path: Path) -> dict[str, Values]:
    """Read the recorded scores, by model and task, items in the order of their numbers."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in pq.read_table(path).to_pylist():
        scores.setdefault(row["child"], {}).setdefault(row["task"], []).append(row["score"])
    return {name: {task: tuple(values) for task, values in tasks.items()} for name, tasks in scores.items()}


# -- a search whose children are given


@dataclass(frozen=True)
class Search:
    """A search as it comes: founders, then generations of children, whatever was dropped before.

    Args:
        name: what its random numbers follow from.
        scores: of each model on the search's items.
        generations: names of the models; the first are the founders.
    """

    name: str
    scores: Mapping[str, Scored]
    generations: Sequence[Sequence[str]]

    @property
    def counts(self) -> dict[str, int]:
        """Items of each task."""
        return {task: len(own.values) for task, own in next(iter(self.scores.values())).tasks.items()}


def resample(models: Mapping[str, Values], items: int, children: int, seed: int) -> Search:
    """Draw a search.

    Items are drawn as evenly over tasks as these have them. Children come in random order, but those of an earlier generation
    before those of a later one.
    """
    draw = random.Random(f"search {seed}")
    sizes = {task: len(values) for task, values in next(iter(models.values())).items()}
    chosen = {task: sorted(draw.sample(range(sizes[task]), count)) for task, count in share(items, sizes).items()}
    names = list(models)
    drawn = draw.sample(names[FOUNDERS:], min(children, len(names) - FOUNDERS))
    drawn.sort(key=lambda name: name.partition("-")[0])
    later = [drawn[start : start + PER_GENERATION] for start in range(0, len(drawn), PER_GENERATION)]
    scores = {name: _scored({task: [models[name][task][at] for at in own] for task, own in chosen.items()}) for name in names}
    return Search(f"{seed}/{items}", scores, [names[:FOUNDERS], *later])


def share(items: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Share items out evenly; what a small task cannot take goes to the others."""
    counts: dict[str, int] = {}
    for left, (task, size) in zip(range(len(sizes), 0, -1), sorted(sizes.items(), key=lambda pair: pair[1]), strict=True):
        counts[task] = min(size, round((items - sum(counts.values())) / left))
    return {task: counts[task] for task in sizes}


def _scored(values: Mapping[str, Sequence[float]]) -> Scored:
    return Scored(
        {
            task: TaskScore(math.fsum(own) / len(own), 0.0, tuple(map(str, range(len(own)))), tuple(own))
            for task, own in values.items()
        }
    )


# -- rules


class Rule(Protocol):
    """Decides how many items each child of a search is asked."""

    title: str

    def start(self, search: Search) -> None:
        """Begin a search."""

    def generation(self, top: Sequence[Scored], known: Sequence[Scored], children: int) -> None:
        """Begin a generation, with S as it stands, and the founders and children that once entered it."""

    def asked(self, child: Scored) -> int:
        """Return the number of items a child is asked before it is dropped; all of them if it is not."""


class Everything:
    """Scores every child on all items."""

    title = "full scoring"

    def start(self, search: Search) -> None:
        """Keep the number of items."""
        self._items = sum(search.counts.values())

    def generation(self, top: Sequence[Scored], known: Sequence[Scored], children: int) -> None:
        """Do nothing."""

    def asked(self, child: Scored) -> int:
        """Return all items."""
        return self._items


class Foresight:
    """Asks nothing of a child that will not enter S: no rule that keeps S can save more."""

    title = "foresight (the most that can be)"

    def start(self, search: Search) -> None:
        """Keep the number of items."""
        self._items = sum(search.counts.values())

    def generation(self, top: Sequence[Scored], known: Sequence[Scored], children: int) -> None:
        """Take the last of S as the bar."""
        self._bar = rank(top[-1])

    def asked(self, child: Scored) -> int:
        """Return all items or none."""
        return self._items if rank(child) > self._bar else 0


class Racing:
    """kinray's races; with an error rate of 0 the certain bound alone."""

    def __init__(self, error_rate: float) -> None:
        self.title = f"racing, error rate {error_rate:g}" if error_rate else "certain bound alone"
        self._error_rate = error_rate

    def start(self, search: Search) -> None:
        """Nothing is spent."""
        counts = search.counts
        self._order, self._spent = item_order(counts, dict.fromkeys(counts, 1.0), search.name), list[float]()

    def generation(self, top: Sequence[Scored], known: Sequence[Scored], children: int) -> None:
        """Set the bar and the level."""
        self._race, self._bar = Race(top, self._order, known), rank(top[-1])
        self._level = level(self._error_rate, self._spent, children) if self._error_rate else 0.0

    def asked(self, child: Scored) -> int:
        """Race the child in rounds."""
        values = self._order.gather({task: own.values for task, own in child.tasks.items()})
        ends = rounds(len(values))
        # A child that stops at one look stops at all later ones, so the first is found by bisection.
        first = bisect(ends[:-1], False, key=lambda seen: self._race.look(values[:seen], self._level).stop)
        if ends[first] == len(values) and rank(child) > self._bar:
            self._spent.append(self._level)
        return ends[first]


class Asha:
    """Tune's ASHA (ray.tune.schedulers.AsyncHyperBandScheduler, one bracket), a child after the other.

    At a rung, a trial stops when it scores below a quantile of those that were at this rung before it.
    """

    def __init__(self, reduction: float, rungs: int) -> None:
        self.title = f"ASHA, reduction {reduction:g}, first {1 / reduction**rungs:.3g}"
        self._reduction, self._rungs = reduction, rungs

    def start(self, search: Search) -> None:
        """Ask all children in one order, founders first, who are never dropped."""
        counts = search.counts
        self._order: Order = item_order(counts, dict.fromkeys(counts, 1.0), search.name)
        total = len(self._order)
        self._milestones = [max(1, round(total / self._reduction**rung)) for rung in range(self._rungs, 0, -1)]
        self._recorded: dict[int, list[float]] = {seen: [] for seen in self._milestones}
        for founder in search.generations[0]:
            values = self._values(search.scores[founder])
            for seen, recorded in self._recorded.items():
                recorded.append(self._score(values[:seen]))

    def generation(self, top: Sequence[Scored], known: Sequence[Scored], children: int) -> None:
        """Do nothing: it does not know generations."""

    def asked(self, child: Scored) -> int:
        """Ask the child until it falls below a rung's cutoff."""
        values = self._values(child)
        for seen, recorded in self._recorded.items():
            score = self._score(values[:seen])
            below = bool(recorded) and score < np.percentile(recorded, (1 - 1 / self._reduction) * 100)
            recorded.append(score)
            if below:
                return seen
        return len(values)

    def _values(self, child: Scored) -> np.ndarray:
        return self._order.gather({task: own.values for task, own in child.tasks.items()})

    def _score(self, values: np.ndarray) -> float:
        """Average over the tasks that have an item yet."""
        by_task: dict[str, list[float]] = {}
        for (task, _), value in zip(self._order.items, values, strict=False):
            by_task.setdefault(task, []).append(value)
        return float(np.mean([np.mean(own) for own in by_task.values()]))


def rules(error_rates: Sequence[float]) -> list[Rule]:
    """Return the rules that are compared, full scoring first."""
    return [Everything(), *map(Racing, error_rates), Racing(0.0), Foresight(), Asha(4, 2), Asha(2, 4)]


def rank(scored: Scored) -> float:
    """Return the score that models are ranked by, without the last bits, which depend on the order of a sum."""
    return round(scored.score, 9)


# -- results


@dataclass(frozen=True)
class Result:
    """What came of one search by one rule.

    Args:
        saved: share of the children's items that were not asked.
        wrong: children that were dropped though they would have entered S as it stood when their generation began.
        top: S at the end, best first.
    """

    saved: float
    wrong: int
    top: tuple[str, ...]


def run(search: Search, rule: Rule) -> Result:
    """Run a search by a rule."""
    rule.start(search)
    numbers = {name: number for number, name in enumerate(chain(*search.generations))}
    founders, *later = search.generations
    scored, items, wrong, children = list(founders), sum(search.counts.values()), 0, 0
    saved, good = 0.0, set(founders)

    def top() -> list[str]:
        return sorted(scored, key=lambda name: (-rank(search.scores[name]), numbers[name]))[:K]

    for generation in later:
        before = top()
        known = [search.scores[name] for name in scored if name in good and name not in before]
        rule.generation([search.scores[name] for name in before], known, len(generation))
        for name in generation:
            asked = rule.asked(search.scores[name])
            children += 1
            saved += 1 - asked / items
            enters = rank(search.scores[name]) > rank(search.scores[before[-1]])
            if asked < items:
                wrong += enters
                continue
            scored.append(name)
            if enters:
                good.add(name)
    return Result(saved / children, wrong, tuple(top()))


def _table(searches: Sequence[Search], items: int, compared: Sequence[Rule]) -> None:
    full: list[Result] = []
    for rule in compared:
        started = time.perf_counter()
        results = [run(search, rule) for search in searches]
        full = full or results
        saved = np.mean([result.saved for result in results])
        best = np.mean([own.top[0] == reference.top[0] for own, reference in zip(results, full, strict=True)])
        kept = np.mean([set(own.top) == set(reference.top) for own, reference in zip(results, full, strict=True)])
        wrong = np.mean([result.wrong for result in results])
        erring = np.mean([result.wrong > 0 for result in results])
        numbers = f"{saved:>7.1%}{best:>12.1%}{kept:>9.1%}{wrong:>13.3f}{erring:>15.1%}"
        print(f"{items:>6}  {rule.title:<34}{numbers}{time.perf_counter() - started:>9.0f}", flush=True)
    print()


if __name__ == "__main__":
    main()
