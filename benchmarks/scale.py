"""Measure how kinray's own work grows with the number of children, without models: a search with instant scores.

    python benchmarks/scale.py [--children 10000] [--items 1000] [--folder /tmp/kinray-scale]

The searcher is driven as Tune drives it. All that a child costs besides its evaluation and Tune's own trial is real: proposals
of Optuna, kinship by algebra over the tensors of an 8B Llama, ranking, rows, samples and state on the disk, the terminal.
"""

import argparse
import cProfile
import hashlib
import io
import pstats
import resource
import shutil
import statistics as stats
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kinray.cluster.kinship import SearchKinship
from kinray.cluster.searcher import PolicySearcher
from kinray.config import Config, parse_config
from kinray.core.recipe import Founder, Recipe
from kinray.core.scores import Result, Scored, TaskScore
from kinray.core.statistics import Statistics
from kinray.records.run import RunFolder
from kinray.report.terminal import Terminal
from kinray.search.policy import TopK
from kinray.search.proposals import proposer_for
from kinray.search.space import search_space

FOUNDERS, TENSORS = 4, 291
METHODS: dict[str, Any] = {
    "slerp": {"t": {"low": 0.2, "high": 0.8}},
    "task_arithmetic": {"lambda": {"low": 0.5, "high": 1.5}, "weight": [0.5, 1.0]},
}


def digest(name: str) -> str:
    """Make up an identity."""
    return hashlib.sha256(name.encode()).hexdigest()


def made_up_statistics(models: list[Founder]) -> Statistics:
    """Make the statistics of deltas that are random and a little alike."""
    draw = np.random.default_rng(0)
    factors_TMR = draw.normal(size=(TENSORS, len(models), 8)) + 0.5
    gram_TMM = factors_TMR @ factors_TMR.transpose(0, 2, 1) * 1e6
    names = tuple(f"model.layers.{at // 9}.{at % 9}.weight" for at in range(TENSORS))
    counts_T = np.full(TENSORS, 1 << 24)
    return Statistics(tuple(one.digest for one in models), names, counts_T, draw.normal(size=(TENSORS, len(models))), gram_TMM)


class InstantEvaluators:
    """Scores a recipe from its digest, deeper ones higher, so that the search goes on."""

    def __init__(self, items: int) -> None:
        self._items = tuple(str(number) for number in range(items))

    def ready(self) -> list[int]:
        """Number four of them."""
        return [0, 1, 2, 3]

    def joined(self) -> list[int]:
        """Never grow."""
        return []

    def name(self, number: int) -> str:
        """Name one."""
        return f"evaluator-{number}"

    def score_now(self, number: int, recipe: Recipe) -> Result:
        """Make up the answers to each item."""
        draw = np.random.default_rng(int(recipe.digest[:12], 16))
        values = draw.random(len(self._items)) + 0.02 * recipe.depth
        return Scored({"task": TaskScore(float(values.mean()), 0.01, self._items, tuple(values.tolist()))}, {"evaluate": 0.0})


class Search:
    """A search in a folder, new or resumed."""

    def __init__(self, config: Config, items: int) -> None:
        base, *founders = [Founder(digest(name), name) for name in ("base", *(f"founder-{at}" for at in range(FOUNDERS)))]
        path = Path(config.output)
        self.run = RunFolder.resume(path) if (path / "config.yaml").exists() else RunFolder.create(config, {})
        kinship = SearchKinship(made_up_statistics([base, *founders]), None, "pcc")  # type: ignore[arg-type]
        self.policy = TopK(founders, base, proposer_for(search_space(config.merge.methods), 0), kinship, config.search)
        if (state := self.run.load_state()) is not None:
            self.policy.load_state_dict(state)
        self._out: list[str] = []
        self._asked = 0
        evaluators: Any = InstantEvaluators(items)
        self._terminal = Terminal(Console(file=io.StringIO(), force_terminal=True))
        self.searcher = PolicySearcher(self.policy, self.run, kinship, evaluators, self._terminal)

    def play(self, children: int) -> list[float]:
        """Score so many children and return the seconds that each took."""
        seconds: list[float] = []
        started = time.process_time()
        while len(seconds) < children:
            self._asked += 1
            trial = f"trial-{self._asked}"
            if isinstance(self.searcher.suggest(trial), dict):
                self._out.append(trial)
            elif not self._out:
                break
            else:
                self.searcher.on_trial_complete(self._out.pop(0), {"score": 0.0})
                seconds.append(time.process_time() - started)
                started = time.process_time()
            if self.searcher.error is not None:
                raise self.searcher.error
        self._terminal.rest()
        return seconds


def main() -> None:
    """Run, resume, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kinray-scale"))  # noqa: S108
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    config = parse_config(
        {
            "base": "base",
            "founders": [f"founder-{at}" for at in range(FOUNDERS)],
            "tasks": ["task"],
            "search": {"k": 4, "children_per_mating": 16, "max_children": 2 * arguments.children},
            "merge": {"methods": METHODS},
            "output": str(arguments.folder),
        }
    )
    search = Search(config, arguments.items)
    profile = cProfile.Profile(time.process_time)
    if arguments.profile:
        profile.enable()
    step = arguments.children // 10
    for _ in range(10):
        begin = time.perf_counter()
        seconds = search.play(step)
        wall = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{len(search.run.rows()):6} children  {1000 * stats.mean(seconds):6.2f} ms of CPU each, "
            f"{1000 * wall / step:6.2f} ms in all  generation {search.policy.generation:3}  {peak:5.0f} MB",
            flush=True,
        )
    profile.disable()
    if arguments.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
    search.run.close()
    started = time.perf_counter()
    again = Search(config, arguments.items)
    again.play(1)
    asked = time.perf_counter()
    again.play(150)
    print(f"resumed in {asked - started:.1f} s; 150 children more, with a generation, took {time.perf_counter() - asked:.1f} s")
    sizes = {
        part.name: sum(f.stat().st_size for f in (part, *part.rglob("*")) if f.is_file()) for part in arguments.folder.iterdir()
    }
    print("MB on the disk:", ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sorted(sizes.items()) if size > 1e5))


if __name__ == "__main__":
    main()
