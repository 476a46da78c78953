"""Workers and nodes that are lost in the middle of their work: it is done again, and the run is the unbroken one.

Ray's memory monitor ends a worker in the same way as these tests, with SIGKILL.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.conftest import Tasks, Unbroken
from tests.faults.processes import titled
from tests.faults.table import Table

pytestmark = pytest.mark.faults


def test_run_that_loses_evaluators_and_shards_in_the_middle_of_their_work_is_the_unbroken_one(
    unbroken: Unbroken, config: dict[str, Any], tasks: Tasks, evolve: Evolve
) -> None:
    run = Path(config["output"])
    models = unbroken.models
    tasks.plan({models["numbers"]: ("die", 1), models["g1-2"]: ("die", 2), models["g2-1"]: ("raise", 2)})
    killed: list[int] = []

    with evolve.running(evolve.write(config)) as running:

        def kill_a_shard() -> bool:
            """Stop a shard before it has an answer to give, so that it is surely killed in a call."""
            shard = titled(running.process.pid, "ray::Shard")
            if shard is None or shard in killed:
                return False
            os.kill(shard, signal.SIGSTOP)
            killed.append(shard)
            return True

        running.until(kill_a_shard, every=0.02)  # as soon as it is there: the Gram pass waits for it
        running.until(lambda: "kinship" in running.output.read_text(), timeout=3)
        os.kill(killed[0], signal.SIGKILL)
        running.until(lambda: len(Table(run).rows) >= 3)
        running.until(kill_a_shard, every=0.02)  # products of the first children that are no weighted sums wait for it
        running.until(lambda: len(Table(run).rows) >= 9, timeout=60)
        os.kill(killed[1], signal.SIGKILL)
        code, output = running.end()

    assert code == 0, output
    assert len(killed) == 2
    assert Table(run).timeless == unbroken.timeless
    assert Table(run).best == unbroken.best
    assert [tasks.seen().count(models[name]) for name in ("numbers", "g1-1", "g1-2", "g2-1")] == [2, 1, 3, 3]


@pytest.mark.slow
def test_run_that_loses_nodes_in_the_search_and_in_the_final_comparison_is_the_unbroken_one(
    unbroken: Unbroken, config: dict[str, Any], evolve: Evolve
) -> None:
    run = Path(config["output"])
    config["cluster"] = {"evaluators": 2, "shards": 3}
    command = [sys.executable, "-m", "tests.faults.cluster_program", evolve.write(config), str(run)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=evolve.environment)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "with Evaluator and Shard\n" in done.stdout and "with Evaluator\n" in done.stdout
    ours, expected = Table(run).timeless, unbroken.timeless
    assert [row.pop("kinship") for row in ours] == pytest.approx([row.pop("kinship") for row in expected], abs=1e-12)
    assert ours == expected
    assert Table(run).best == unbroken.best
