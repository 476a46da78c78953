"""``kill -9`` of the driver at any moment: nothing that was recorded is lost, and the resumed run is the unbroken one."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.conftest import Tasks, Unbroken
from tests.faults.table import Table

pytestmark = pytest.mark.faults


def test_driver_that_is_killed_at_any_moment_resumes_to_the_unbroken_run(
    unbroken: Unbroken, kill: int, config: dict[str, Any], tasks: Tasks, evolve: Evolve
) -> None:
    run = Path(config["output"])
    command = [evolve.write(config | {"cluster": {"evaluators": 2}})]
    draw = random.Random(kill)
    scored, seconds = draw.randint(0, len(unbroken.rows)), draw.expovariate(2)
    due: list[float] = []

    def at_the_moment() -> bool:
        """Tell whether as long as was drawn has gone by since as many models as were drawn had been scored."""
        if not due and len(list(run.glob("samples/*.parquet"))) >= scored:
            due.append(time.monotonic() + seconds)
        return bool(due) and time.monotonic() >= due[0]

    code, output = evolve.until(at_the_moment, signal.SIGKILL, *command)
    assert code in (-signal.SIGKILL, 0), output
    survived = Table(run).rows
    resumed = evolve(*(["--resume", str(run)] if (run / "config.yaml").exists() else command))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    table = Table(run)
    assert table.timeless == unbroken.timeless
    assert table.best == unbroken.best
    names = {row["name"] for row in survived}
    assert [row for row in table.rows if row["name"] in names] == survived
    times_scored = {row["name"]: tasks.seen().count(unbroken.models[row["name"]]) for row in table.rows}
    assert {times_scored[name] for name in names} <= {1}, "scored again after its row was written"
    again = sum(times_scored.values()) - len(table.rows)
    assert again <= 2, "more was scored again than the two evaluators had in flight"
    print(f"kill {kill}: {seconds:.2f} s after {scored} scores, {len(survived)} of {len(table.rows)} rows there, {again} again")
