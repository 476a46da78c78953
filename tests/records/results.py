"""Made-up searches: a configuration, children and what became of them."""

import math
from pathlib import Path
from typing import Any

from kinray.config import Config, parse_config
from kinray.core.scores import Scored, TaskScore
from kinray.records.run import RunFolder
from kinray.search.population import Child
from tests.helpers import founder, merge

ANN, BOB = founder("ann"), founder("bob")
BASE = founder("base")
FOUNDERS = [Child(number, one.name, 0, "founder", one) for number, one in enumerate((ANN, BOB))]
SLERP = Child(2, "g1-1", 1, "merge", merge("slerp", ANN, BOB, t=0.25), ("ann", "bob"), 0.125)
TIES = Child(3, "g1-2", 1, "merge", merge("ties", ANN, BOB, base=BASE, density=0.5, weight=(1.0, 0.5)), ("ann", "bob"), 0.125)
CHILDREN = [*FOUNDERS, SLERP, TIES]


def a_config(output: Path, **further: Any) -> Config:
    """Configure a search on two tasks."""
    settings = {"base": "b", "founders": ["ann", "bob"], "tasks": ["maths", {"name": "text", "weight": 2}]}
    return parse_config({**settings, "output": str(output), **further})


def scores(maths: float, text: float = 0.5) -> Scored:
    """Make up a result: a paired task, and one whose metric is no mean and has no error."""
    return Scored(
        {
            "maths": TaskScore(maths, 0.1, ("0", "2", "5"), (1.0, 0.0, 3 * maths - 1.0)),
            "text": TaskScore(text, math.nan, ("a:0", "b:1"), (-2.5, math.nan), weight=2.0, paired=False),
        },
        {"merge": 0.5, "copy": 0.25, "evaluate": 1.25, "prepare": 0.0},
        {"device": "cpu", "node": "here"},
        tokens=1234,
        gpu_seconds=1.5,
    )


def begin(path: Path) -> RunFolder:
    """Begin a run."""
    return RunFolder.create(a_config(path), {})


def reopened(run: RunFolder) -> RunFolder:
    """Open a run anew, as another session would."""
    run.close()
    return RunFolder.resume(run.path)
