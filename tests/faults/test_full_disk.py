"""A disk that gets full, and one that may only be read: clear errors, nothing torn, and the run goes on when there is room."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.conftest import Unbroken
from tests.faults.table import Table

pytestmark = pytest.mark.faults


class Disk:
    """A small file system in memory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not permitted here")

    def fill(self, left: int = 0) -> None:
        """Fill it up to some bytes."""
        free = os.statvfs(self.place).f_bavail * os.statvfs(self.place).f_frsize
        with suppress(OSError), (self.place / "ballast").open("ab", buffering=0) as ballast:
            ballast.write(bytes(max(0, free - left)))
            while not left:  # until it is refused: somebody else may write, too
                ballast.write(bytes(4096))

    def make_room(self) -> None:
        """Take away what fills it."""
        (self.place / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk that is taken away again."""
    made = Disk(tmp_path / "disk")
    yield made
    subprocess.run(["umount", "-l", str(made.place)], check=True)


def test_run_whose_disk_gets_full_while_recording_and_while_exporting_resumes_to_the_unbroken_one(
    unbroken: Unbroken, config: dict[str, Any], evolve: Evolve, disk: Disk
) -> None:
    run = disk.place / "run"

    with evolve.running(evolve.write(config | {"output": str(run)})) as running:
        running.until(lambda: len(Table(run).rows) >= 5)
        disk.fill()
        code, output = running.end()
    assert code == 2 and "No space left on device" in output and "Traceback" not in output, output
    assert f"kinray evolve --resume {run}" in output
    there = len(Table(run).rows)
    assert 5 <= there < len(unbroken.rows)

    again = evolve("--resume", str(run))
    assert again.returncode == 2 and "Too little room" in again.stderr, again.stdout + again.stderr

    disk.make_room()
    with evolve.running("--resume", str(run)) as running:
        running.until(lambda: len(Table(run).rows) == len(unbroken.rows))
        disk.fill(left=1_200_000)  # for Tune and the comparison, not for the model and what must stay free
        code, output = running.end()
    assert code == 2 and "Too little room" in output and "Traceback" not in output, output
    assert f"kinray evolve --resume {run}" in output
    assert not list(run.glob("*best*"))

    disk.make_room()
    done = evolve("--resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert Table(run).timeless == unbroken.timeless
    assert Table(run).best == unbroken.best
    assert not list(run.glob("**/.*.tmp"))


def test_disk_that_may_only_be_read_is_said_before_any_work(config: dict[str, Any], evolve: Evolve, disk: Disk) -> None:
    run = disk.place / "run"
    run.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk.place)], check=True)

    done = evolve(evolve.write(config | {"output": str(run)}))

    assert done.returncode == 2
    assert f"Cannot write the run folder {run}" in done.stderr and "read-only" in done.stderr.lower(), done.stderr
    assert not done.stdout
