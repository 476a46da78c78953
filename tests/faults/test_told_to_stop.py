"""Ctrl-C, a scheduler's SIGTERM and a terminal that closes: children in flight are finished, and the run can go on."""

import fcntl
import os
import pty
import signal
import termios
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve, Running
from tests.faults.conftest import Unbroken
from tests.faults.processes import below
from tests.faults.table import Table

pytestmark = pytest.mark.faults


def rows(run: Path) -> int:
    return len(Table(run).rows)


def press_ctrl_c(running: Running) -> None:
    """Send what a terminal sends: SIGINT to every process that the command has started."""
    os.killpg(running.process.pid, signal.SIGINT)


def tell_all(running: Running, what: signal.Signals) -> None:
    """Send a signal to the command and to all that it has started."""
    everyone = [*below(running.process.pid), running.process.pid]
    assert "raylet\n" in {Path(f"/proc/{one}/comm").read_text() for one in everyone}
    for one in everyone:
        os.kill(one, what)


def test_run_that_is_told_to_stop_in_every_way_resumes_to_the_unbroken_run(
    unbroken: Unbroken, config: dict[str, Any], evolve: Evolve, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(config["output"])
    going_on = f"Continue with: kinray evolve --resume {run}"

    # Ctrl-C, once
    with evolve.running(evolve.write(config)) as running:
        running.until(lambda: rows(run) >= 1)
        press_ctrl_c(running)
        code, output = running.end()
    assert code == 130 and "children in flight are finished" in output and going_on in output, output
    assert 1 <= rows(run) < len(unbroken.rows) and "Traceback" not in output

    # a scheduler, which tells every process of the job, and then Ctrl-C
    there = rows(run)
    monkeypatch.setitem(evolve.environment, "SLURM_JOB_ID", "1")
    with evolve.running("--resume", str(run)) as running:
        running.until(lambda: rows(run) > there)
        tell_all(running, signal.SIGTERM)
        running.until(lambda: "Press Ctrl-C again" in running.output.read_text())
        press_ctrl_c(running)
        code, output = running.end()
    assert code == 130 and going_on in output and "Traceback" not in output, output

    # a terminal that closes
    there = rows(run)
    monkeypatch.delitem(evolve.environment, "SLURM_JOB_ID")
    master, terminal = pty.openpty()
    os.set_blocking(master, False)

    def has_more() -> bool:
        """Read what the terminal shows, so that it does not fill up."""
        with suppress(OSError):
            os.read(master, 1 << 16)
        return rows(run) > there

    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    with evolve.running("--resume", str(run), **streams, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) as running:
        os.close(terminal)
        running.until(has_more)
        os.close(master)
        code, _ = running.end()
    assert code == 130
    assert not (run / "best").exists()

    done = evolve("--resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert Table(run).timeless == unbroken.timeless
    assert Table(run).best == unbroken.best
