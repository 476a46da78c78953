"""What a driver leaves that is killed: its workers end by themselves, and its folders are removed by whoever comes next."""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.processes import alive, below
from tests.faults.table import Table

pytestmark = pytest.mark.faults

PATIENCE = 60.0
"""Seconds for workers to notice that their driver is gone."""


def folders_of_sessions() -> set[Path]:
    return set(Path("/tmp").glob("kinray-ray-*")) | set(Path(tempfile.gettempdir()).glob(f"kinray-{os.geteuid()}/*"))


def is_agent(process: int) -> bool:
    """Tell whether a process is one of Ray's two agents, which do no work and end a minute after all others."""
    return b"Agent" in Path(f"/proc/{process}/cmdline").read_bytes()


def test_workers_of_a_killed_driver_end_and_its_folders_go_with_the_next_run(config: dict[str, Any], evolve: Evolve) -> None:
    run = Path(config["output"])
    config["search"]["max_children"] = 6
    before = folders_of_sessions()

    with evolve.running(evolve.write(config)) as running:
        running.until(lambda: len(Table(run).rows) >= 4)
        workers = [process for process in below(running.process.pid) if not is_agent(process)]
        left = folders_of_sessions() - before
        running.process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        assert len(workers) >= 4 and left
        while any(map(alive, workers)) and time.monotonic() < killed + PATIENCE:
            time.sleep(0.1)
        print(f"{len(workers)} processes ended within {time.monotonic() - killed:.1f} s; {len(left)} folders left")
        assert not any(map(alive, workers))

    done = evolve("--resume", str(run))

    assert done.returncode == 0, done.stdout + done.stderr
    assert not left & folders_of_sessions()
