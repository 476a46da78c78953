"""``kill -9`` of the driver at any moment: nothing that was recorded is lost, and the resumed run is the unbroken one."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kinray.demo.founders import DemoFiles
from tests.evolve.conftest import Evolve, settings_for
from tests.faults.table import Table

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def unbroken(demo: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Table, float]:
    """A search of the demo's size, the records of its unbroken run, and how many seconds that took."""
    folder = tmp_path_factory.mktemp("unbroken")
    settings = settings_for(demo, folder / "run")
    settings["search"] |= {"max_children": 24, "children_per_mating": 2}
    settings["cluster"] = {"evaluators": 2}
    evolve = Evolve(folder)
    started = time.monotonic()
    done = evolve(evolve.write(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    return settings, Table(folder / "run"), time.monotonic() - started


def test_driver_that_is_killed_at_any_moment_resumes_to_the_unbroken_run(
    unbroken: tuple[dict[str, Any], Table, float], kill: int, evolve: Evolve, tmp_path: Path
) -> None:
    settings, expected, seconds = unbroken
    run = tmp_path / "run"
    command = [evolve.write(settings | {"output": str(run)})]
    moment = time.monotonic() + random.Random(kill).uniform(0, seconds)

    code, output = evolve.until(lambda: time.monotonic() > moment, signal.SIGKILL, *command)
    assert code in (-signal.SIGKILL, 0), output
    survived = Table(run).rows
    written = {row["name"]: (run / "samples" / f"{row['name']}.parquet").stat().st_mtime_ns for row in survived}
    resumed = evolve(*(["--resume", str(run)] if (run / "config.yaml").exists() else command))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    table = Table(run)
    assert table.timeless == expected.timeless
    assert table.best == expected.best
    assert [row for row in table.rows if row["name"] in written] == survived
    assert written == {name: (run / "samples" / f"{name}.parquet").stat().st_mtime_ns for name in written}
    print(f"kill {kill}: {len(survived)} of {len(table.rows)} rows were there")
