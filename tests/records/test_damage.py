"""Torn files are named, and a write that breaks off harms nothing that was there."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kinray.core.scores import Failed
from kinray.errors import RunError
from kinray.records import run as run_module
from kinray.records import tables
from tests.records.results import FOUNDERS, SLERP, begin, reopened, scores


@pytest.mark.parametrize("keep", [0, 4, 200, -9])
def test_a_torn_children_table_is_named(keep: int, tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.5), None)
    file = run.path / "children" / "generation-0001-0000.parquet"
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(RunError, match=r"generation-0001-0000\.parquet is not a readable Parquet file"):
        reopened(run)


def test_torn_samples_are_named(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.5), None)
    file = run.path / "samples" / "g1-1.parquet"
    file.write_bytes(file.read_bytes()[:-20])

    with pytest.raises(RunError, match=r"g1-1\.parquet is not a readable record of scores"):
        run.known(SLERP)


def test_samples_without_their_summary_are_named(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    tables.write_table(run.path / "samples" / "ann.parquet", [], tables.SAMPLES)

    with pytest.raises(RunError, match=r"ann\.parquet is not a readable record of scores"):
        run.kept("ann")


def test_a_row_is_written_after_its_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_samples", full)
        with pytest.raises(OSError, match="No space"):
            run.record(SLERP, scores(0.5), None)

    assert reopened(run).rows() == []


def test_a_write_that_breaks_off_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begin(tmp_path / "run")
    run.record(FOUNDERS[0], scores(0.5), None)

    def half(table: object, path: Path) -> None:
        path.write_bytes(b"PAR1 and then the power went")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", half)
        with pytest.raises(OSError, match="No space"):
            run.record(FOUNDERS[1], Failed("boom"), None)

    assert [row["name"] for row in reopened(run).rows()] == ["ann"]
    assert [file.name for file in (run.path / "children").iterdir()] == ["generation-0000-0000.parquet"]
