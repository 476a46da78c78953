"""Measure how kinray's own work grows with the number of children, without models: a search with instant scores.

    python benchmarks/scale.py [--children 10000] [--items 1000] [--tune 300] [--evaluators 4] [--folder /tmp/kinray-scale]

The searcher is driven as Tune drives it. All that a child costs besides its evaluation and Tune's own trial is real: proposals
of Optuna, kinship by algebra over the tensors of an 8B Llama, ranking, rows, samples and state on the disk, the terminal.
Then a search under Tune itself, on a private Ray with actors that answer at once, shows what Tune's trials cost.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kinray.cluster.kinship import SearchKinship
from kinray.cluster.population import run_population
from kinray.cluster.searcher import PolicySearcher
from kinray.cluster.session import ray_session
from kinray.config import Config, parse_config
from kinray.core.recipe import Founder, Merge, Recipe
from kinray.core.scores import Result, Scored, TaskScore
from kinray.core.statistics import Statistics
from kinray.records.run import RunFolder
from kinray.report.terminal import Terminal
from kinray.search.policy import TopK
from kinray.search.proposals import Proposal, Proposer, proposer_for
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

    def __init__(self, items: int, count: int = 4) -> None:
        self._count = count
        self._items = tuple(str(number) for number in range(items))
        self.asked_at: list[tuple[float, float]] = []
        """Time on the clock and of the CPU when each child's result was fetched."""

    def ready(self) -> list[int]:
        """Number them."""
        return list(range(self._count))

    def joined(self) -> list[int]:
        """Never grow."""
        return []

    def name(self, number: int) -> str:
        """Name one."""
        return f"evaluator-{number}"

    def score_now(self, number: int, recipe: Recipe) -> Result:
        """Make up the answers to each item."""
        self.asked_at.append((time.perf_counter(), time.process_time()))
        draw = np.random.default_rng(int(recipe.digest[:12], 16))
        values = draw.random(len(self._items)) + 0.02 * recipe.depth
        return Scored({"task": TaskScore(float(values.mean()), 0.01, self._items, tuple(values.tolist()))}, {"evaluate": 0.0})


class TimedProposer:
    """Counts the CPU time of the proposals, which is Optuna's."""

    def __init__(self, proposer: Proposer) -> None:
        self._proposer, self.seconds = proposer, 0.0

    def propose(self, number: int, attempt: int) -> Proposal:
        """Ask."""
        started = time.process_time()
        try:
            return self._proposer.propose(number, attempt)
        finally:
            self.seconds += time.process_time() - started

    def learn(self, recipe: Merge, gains: Sequence[float] | None, *, refused: bool = False) -> None:
        """Tell."""
        started = time.process_time()
        self._proposer.learn(recipe, gains, refused=refused)
        self.seconds += time.process_time() - started


class Search:
    """A search in a folder, new or resumed."""

    def __init__(self, config: Config, evaluators: InstantEvaluators) -> None:
        base, *founders = [Founder(digest(name), name) for name in ("base", *(f"founder-{at}" for at in range(FOUNDERS)))]
        path = Path(config.output)
        self.run = RunFolder.resume(path) if (path / "config.yaml").exists() else RunFolder.create(config, {})
        self.statistics = made_up_statistics([base, *founders])
        kinship = SearchKinship(self.statistics, None, "pcc")  # type: ignore[arg-type]
        self.proposer = TimedProposer(proposer_for(search_space(config.merge.methods), 0))
        self.policy = TopK(founders, base, self.proposer, kinship, config.search)
        if (state := self.run.load_state()) is not None:
            self.policy.load_state_dict(state)
        self._out: list[str] = []
        self._asked = 0
        self._terminal = Terminal(Console(file=io.StringIO(), force_terminal=True))
        self.searcher = PolicySearcher(self.policy, self.run, kinship, evaluators, self._terminal)  # type: ignore[arg-type]

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

    def run_under_tune(self, slots: int) -> None:
        """Score all children."""
        run_population(self.searcher, self.statistics, self.run.next_session(), slots, self.run.config, lambda: None)
        self._terminal.rest()
        self.run.close()


def under_tune(config: Config, children: int, items: int, count: int) -> None:
    """Let Tune itself run a search whose evaluators answer at once, and print what a child costs the driver."""
    import ray

    class Instant:
        """Stands for an evaluator."""

        def score(self, written: object, split: object, statistics: object) -> Scored:
            """Answer at once; what counts is made up by the driver."""
            return Scored({"task": TaskScore(0.5, 0.01, (), ())})

    with ray_session(config.cluster, config.evaluation):
        evaluators = InstantEvaluators(items, count)
        actors = [
            ray.remote(num_cpus=0)(Instant).options(name=evaluators.name(number)).remote() for number in evaluators.ready()
        ]
        ray.get([actor.__ray_ready__.remote() for actor in actors])
        search = Search(config, evaluators)
        started = time.perf_counter()
        search.run_under_tune(count)
    (first, first_cpu), *_, (last, last_cpu) = evaluators.asked_at
    each = [1000 * seconds / (len(evaluators.asked_at) - 1) for seconds in (last_cpu - first_cpu, last - first)]
    print(
        f"under Tune: the first of {children} children after {first - started:.1f} s, "
        f"then {each[0]:.1f} ms of the driver's CPU each, {each[1]:.1f} ms in all"
    )


def configured(folder: Path, children: int) -> Config:
    """Configure a search of so many children at most."""
    return parse_config(
        {
            "base": "base",
            "founders": [f"founder-{at}" for at in range(FOUNDERS)],
            "tasks": ["task"],
            "search": {"k": 4, "children_per_mating": 16, "max_children": children},
            "merge": {"methods": METHODS},
            "output": str(folder),
        }
    )


def main() -> None:
    """Run, resume, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--tune", type=int, default=300, help="children of the search under Tune; 0 for none")
    parser.add_argument("--evaluators", type=int, default=4, help="of that search")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/kinray-scale"))  # noqa: S108
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    config = configured(arguments.folder, 2 * arguments.children)
    search = Search(config, InstantEvaluators(arguments.items))
    profile = cProfile.Profile(time.process_time)
    if arguments.profile:
        profile.enable()
    step = arguments.children // 10
    for _ in range(10):
        begin, search.proposer.seconds = time.perf_counter(), 0.0
        seconds = search.play(step)
        wall = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{len(search.run.rows()):6} children  {1000 * stats.mean(seconds):6.2f} ms of CPU each, "
            f"{1000 * search.proposer.seconds / step:5.2f} of it Optuna's, {1000 * wall / step:6.2f} ms in all  "
            f"generation {search.policy.generation:3}  {peak:5.0f} MB",
            flush=True,
        )
    profile.disable()
    if arguments.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(60)
    search.run.close()
    started = time.perf_counter()
    again = Search(config, InstantEvaluators(arguments.items))
    again.play(1)
    asked = time.perf_counter()
    again.play(150)
    print(f"resumed in {asked - started:.1f} s; 150 children more, with a generation, took {time.perf_counter() - asked:.1f} s")
    sizes = {
        part.name: sum(f.stat().st_size for f in (part, *part.rglob("*")) if f.is_file()) for part in arguments.folder.iterdir()
    }
    print("MB on the disk:", ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sorted(sizes.items()) if size > 1e5))
    if arguments.tune:
        shutil.rmtree(arguments.folder)
        under_tune(configured(arguments.folder, arguments.tune), arguments.tune, arguments.items, arguments.evaluators)


if __name__ == "__main__":
    main()
