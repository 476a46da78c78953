"""A run folder that two want, that was moved, that is of another version, or that a power cut has torn."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evolve.conftest import Evolve
from tests.faults.conftest import Unbroken
from tests.faults.table import Table

pytestmark = pytest.mark.faults


@pytest.fixture
def copy(unbroken: Unbroken, tmp_path: Path) -> Path:
    """The folder of a finished run, at another place than where it was made."""
    shutil.copytree(unbroken.run, tmp_path / "moved")
    return tmp_path / "moved"


def test_second_run_in_a_folder_is_refused_and_the_first_goes_on(config: dict[str, Any], evolve: Evolve) -> None:
    run = Path(config["output"])
    with evolve.running(evolve.write(config)) as running:
        running.until((run / "config.yaml").exists)
        holder = f"in use by process {running.process.pid} on "

        resumed, begun = evolve("--resume", str(run)), evolve(evolve.write(config))

        assert running.process.poll() is None
    assert resumed.returncode == begun.returncode == 2
    assert holder in resumed.stderr and "already holds a run" in begun.stderr


def test_torn_and_moved_run_resumes_to_the_unbroken_one_and_says_what_it_makes_again(
    unbroken: Unbroken, copy: Path, evolve: Evolve
) -> None:
    last = sorted((copy / "children").glob("*.parquet"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    (copy / "samples" / "g1-2.parquet").write_bytes(b"")
    (copy / "kinship" / "generation-0002.parquet").write_bytes(b"PAR1")
    (copy / "samples" / ".g1-3.parquet.1a2b3c4d.tmp").write_bytes(b"PAR1")
    (copy / ".best.1a2b3c4d.tmp").mkdir()
    shutil.rmtree(copy / "best")

    done = evolve("--resume", str(copy))

    assert done.returncode == 0, done.stdout + done.stderr
    told = "".join(done.stdout.split())  # lines may end within a path
    assert all(f"{file.name}breaksoffinthemiddle" in told for file in (last, copy / "samples" / "g1-2.parquet"))
    assert "Thesamplesofg1-2aregone,soitisscoredagain." in told
    table = Table(copy)
    assert table.timeless == unbroken.timeless
    assert table.best == unbroken.best
    again = [row["name"] for row, before in zip(table.rows, unbroken.rows, strict=True) if row != before]
    assert again == ["g1-2", *(row["name"] for row in table.rows if row["generation"] == table.rows[-1]["generation"])]
    assert (copy / "kinship" / "generation-0002.parquet").stat().st_size > 1000
    assert not list(copy.glob("**/.*.tmp"))


@pytest.mark.parametrize("version", [1, 99])
def test_run_of_another_format_is_refused_and_left_as_it_is(version: int, copy: Path, evolve: Evolve) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["run"]["format"] = version
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}

    done = evolve("--resume", str(copy))

    assert done.returncode == 2
    assert f"{copy} is a run of format {version}, this version of kinray reads format 2" in done.stderr
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
