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
@pytest.mark.parametrize("table", ["children/generation-0001-0000", "samples/g1-1"])
def test_a_torn_table_is_put_aside_with_a_notice_and_its_child_asked_again(table: str, keep: int, tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(FOUNDERS[0], scores(0.5), None)
    run.record(SLERP, scores(0.5), None)
    file = run.path / f"{table}.parquet"
    file.write_bytes(file.read_bytes()[:keep])

    opened = reopened(run)

    assert opened.known(SLERP) is None and opened.known(FOUNDERS[0]) is not None
    assert f"{file} breaks off in the middle" in opened.notices[0]
    assert not file.exists()
    opened.record(SLERP, scores(0.5), None)
    again = reopened(opened)
    assert [row["name"] for row in again.rows()] == ["ann", "g1-1"] and again.notices == []


def test_child_whose_samples_are_gone_is_asked_again(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.5), None)
    (run.path / "samples" / "g1-1.parquet").unlink()

    opened = reopened(run)

    assert opened.known(SLERP) is None and opened.rows() == []
    assert opened.notices == ["The samples of g1-1 are gone, so it is scored again."]


def test_state_that_knows_more_than_the_records_is_not_used(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(FOUNDERS[0], scores(0.5), None)
    run.save_state({"outcomes": {"ann": [0.5]}})
    assert reopened(run).load_state() == {"outcomes": {"ann": [0.5]}}

    (run.path / "children" / "generation-0000-0000.parquet").unlink()

    assert reopened(run).load_state() is None


@pytest.mark.parametrize(("told", "status"), [({}, []), ({"ann": [None, "boom"]}, ["broken"])])
def test_children_that_broke_are_forgotten_unless_the_search_went_on_without_them(
    told: dict[str, list[str]], status: list[str], tmp_path: Path
) -> None:
    run = begin(tmp_path / "run")
    run.record(FOUNDERS[0], Failed("boom", broke=True), None)
    run.record(FOUNDERS[1], Failed("the score is NaN"), None)
    run.save_state({"outcomes": told})

    assert [row["status"] for row in reopened(run).rows()] == [*status, "failed"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.5), None)
    kept = sorted(run.path.rglob("*"))
    for left in ("children/.generation-0001.parquet.1a2b3c4d.tmp", ".state.json.1a2b3c4d.tmp", "samples/.g1-2.parquet.0f.tmp"):
        (run.path / left).write_text("PAR1")
    for left in (".best.1a2b3c4d.tmp", ".best.1a2b3c4d.old"):
        (run.path / left).mkdir()
        (run.path / left / "model.safetensors").write_text("half")

    assert sorted(reopened(run).path.rglob("*")) == kept


def test_samples_without_their_summary_are_named(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    (run.path / "samples").mkdir()
    pq.write_table(tables.SAMPLES.empty_table(), run.path / "samples" / "ann.parquet")

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
