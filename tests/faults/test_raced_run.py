"""A search that stops hopeless children, broken between the rounds of one: the resumed run is the unbroken one."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.conftest import Tasks, Unbroken
from tests.faults.table import Table

pytestmark = pytest.mark.faults


def test_raced_run_that_is_broken_between_rounds_resumes_to_the_unbroken_run(
    config: dict[str, Any], tasks: Tasks, evolve: Evolve, tmp_path: Path
) -> None:
    config["search"]["max_children"] = 12
    config["merge"]["methods"] = {"task_arithmetic": {"lambda": [0.9, 1.1, 40.0, 60.0]}}
    config["evaluation"] |= {"racing": True, "racing_error": 0.5, "pack": 2}
    config["cluster"] = {"evaluators": 1}
    whole, run = tmp_path / "whole", Path(config["output"])
    done = evolve(evolve.write(config), "--output", str(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    unbroken = Unbroken(whole, tasks)
    assert {row["status"] for row in unbroken.rows} == {"scored", "stopped"}
    (tasks.folder / "seen").unlink()
    tasks.plan({unbroken.models["g1-2"]: ("die", 1)})

    def between_rounds() -> bool:
        """Tell whether a child was asked its first items, but has no row yet: many rounds are still to come."""
        rows = len(Table(run).rows)
        return rows >= 6 and len(set(tasks.seen())) > rows

    code, output = evolve.until(between_rounds, signal.SIGKILL, evolve.write(config))
    assert code == -signal.SIGKILL, output
    survived = Table(run).rows

    resumed = evolve("--resume", str(run))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert len(survived) < len(unbroken.rows)
    assert Table(run).timeless == unbroken.timeless
    assert Table(run).best == unbroken.best
    assert [row for row in Table(run).rows if row["name"] in {row["name"] for row in survived}] == survived
    assert sum(tasks.seen().count(model) - 1 for model in unbroken.models.values()) == 2, "one evaluator died, and one driver"
