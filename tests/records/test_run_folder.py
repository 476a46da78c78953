"""A run folder is begun once, opened by one process at a time, and tells what it holds."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kinray.core.scores import Stopped
from kinray.errors import KinrayError, RunError
from kinray.records.claim import check_vacant
from kinray.records.config_file import read_run_config
from kinray.records.run import RunFolder
from tests.helpers import merge
from tests.records.results import ANN, BOB, FOUNDERS, SLERP, TIES, a_config, scores

ROOT = Path(__file__).resolve().parents[2]
DIGESTS = {"base": "0" * 64, "ann": "a" * 64, "bob": "b" * 64}
HOLD = """
import sys
from pathlib import Path
from kinray.records.run import RunFolder
run = RunFolder.resume(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def begin(path: Path) -> RunFolder:
    """Begin a run."""
    return RunFolder.create(a_config(path), DIGESTS)


# -- begin


@pytest.mark.parametrize("there", [False, True])
def test_a_run_begins_in_a_folder_that_is_new_or_empty(there: bool, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    if there:
        path.mkdir(parents=True)

    run = begin(path)

    assert run.rows() == []
    assert sorted(file.name for file in path.iterdir()) == [".lock", "config.yaml"]


def test_a_folder_that_holds_a_run_is_not_begun_again(tmp_path: Path) -> None:
    begin(tmp_path / "run").close()

    with pytest.raises(RunError, match=r"run already holds a run\. Continue it with --resume .*run, or choose another"):
        begin(tmp_path / "run")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")

    with pytest.raises(RunError, match="exists and is not an empty folder"):
        begin(tmp_path)

    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")

    with pytest.raises(RunError, match="exists and is not an empty folder"):
        check_vacant(tmp_path / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)

    with pytest.raises(RunError, match=r"Cannot write the run folder .*run: no permission in .*locked"):
        begin(tmp_path / "locked" / "run")


def test_a_refused_permission_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda place, mode: False)

    with pytest.raises(RunError, match=r"no permission in .*\. Choose another with --output"):
        begin(tmp_path / "run")


# -- what it was begun with


def test_the_configuration_comes_back_whole(tmp_path: Path) -> None:
    methods = {
        "slerp": {"t": {"low": 0.1, "high": 0.9}},
        "ties": {"density": [0.5, 0.75], "weight": {"models": [1.0, {"low": 0.1, "high": 1, "log": True}]}, "normalize": False},
    }
    config = a_config(tmp_path / "run", merge={"methods": methods}, cluster={"evaluators": 3})
    RunFolder.create(config, DIGESTS).close()

    assert read_run_config(tmp_path / "run") == (config, DIGESTS)


def test_a_run_that_was_moved_writes_where_it_is(tmp_path: Path) -> None:
    begin(tmp_path / "old").close()
    (tmp_path / "old").rename(tmp_path / "new")

    assert RunFolder.resume(tmp_path / "new").config.output == str(tmp_path / "new")


def test_the_versions_of_what_matters_are_kept(tmp_path: Path) -> None:
    begin(tmp_path / "run")

    about = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]

    assert about["format"] == 2
    assert set(about["versions"]) == {
        "python", "kinray", "torch", "transformers", "lm-eval", "ray", "optuna", "pyarrow", "safetensors",
    }  # fmt: skip


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run \(there is no config\.yaml in it\)"):
        RunFolder.resume(tmp_path)


@pytest.mark.parametrize(("about", "found"), [("run: {format: 1, digests: {}}", "1"), ("base: x", "None"), ("[]", "None")])
def test_a_run_of_another_format_is_refused(about: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(about)

    with pytest.raises(RunError, match=f"is a run of format {found}, this version of kinray reads format 2"):
        RunFolder.resume(tmp_path)


@pytest.mark.parametrize(
    ("contents", "problem"),
    [(b"run: {format: 2}", "its 'run' has no 'digests'"), (b"\xff\xfe", "is not text in UTF-8")],
)
def test_a_damaged_configuration_is_named(contents: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(contents)

    with pytest.raises(KinrayError, match=rf"config\.yaml .*{problem}"):
        RunFolder.resume(tmp_path)


# -- one process at a time


def test_a_folder_that_another_process_has_open_is_refused_until_it_ends(tmp_path: Path) -> None:
    begin(tmp_path / "run").close()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert other.stdout is not None and other.stdout.readline() == "open\n"

    with pytest.raises(RunError, match=rf"run is in use by process {other.pid} on .*, which began 20.*\. Wait for it"):
        RunFolder.resume(tmp_path / "run")

    other.kill()
    other.communicate()
    RunFolder.resume(tmp_path / "run").close()


def test_a_closed_folder_may_be_opened_again(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    with pytest.raises(RunError, match=f"in use by process {os.getpid()} on "):
        RunFolder.resume(tmp_path / "run")

    run.close()

    RunFolder.resume(tmp_path / "run").close()


def test_a_lock_that_cannot_be_written_is_an_error_of_the_run(tmp_path: Path) -> None:
    begin(tmp_path / "run").close()
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run" / ".lock").mkdir()

    with pytest.raises(RunError, match=r"Cannot write the run folder .*run: Is a directory"):
        RunFolder.resume(tmp_path / "run")


def test_file_system_without_locks_does_not_keep_a_run_from_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path / "run").close()

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("kinray.records.claim.fcntl.flock", unsupported)

    RunFolder.resume(tmp_path / "run").close()


def test_run_whose_beginning_was_killed_can_be_begun_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on here\n")
    (tmp_path / "run" / ".config.yaml.1a2b3c4d.tmp").write_text("base:")

    begin(tmp_path / "run").close()

    assert (tmp_path / "run" / "config.yaml").is_file()


# -- the policy's state


def test_the_state_comes_back(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    assert run.load_state() is None

    run.save_state({"generation": 3, "top": ["ann"], "finished": None})

    assert run.load_state() == {"generation": 3, "top": ["ann"], "finished": None}


@pytest.mark.parametrize("damage", [b"", b'{"generation": 3, "to', b"[1, 2]", b"\xff\xfe\x00"])
def test_a_damaged_state_is_as_good_as_none(damage: bytes, tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.save_state({"generation": 3})

    (tmp_path / "run" / "state.json").write_bytes(damage)

    assert run.load_state() is None


def test_sessions_are_counted_on_from_the_last_one(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    assert run.next_session() == tmp_path / "run" / "tune" / "session-1"

    (tmp_path / "run" / "tune" / "session-9").mkdir(parents=True)
    (tmp_path / "run" / "tune" / "session-10").mkdir()

    assert run.next_session().name == "session-11"


# -- larger budgets


@pytest.mark.parametrize("place", ["folder", "store"])
def test_a_larger_budget_is_kept_and_what_was_stopped_in_the_last_generation_is_forgotten(place: str, tmp_path: Path) -> None:
    output = tmp_path / "run" if place == "folder" else f"file://{tmp_path}/store"
    run = RunFolder.create(a_config(output), DIGESTS)  # type: ignore[arg-type]
    third = replace(TIES, number=4, name="g1-3", recipe=merge("slerp", ANN, BOB, t=0.5))
    for child in (*FOUNDERS, SLERP):
        run.record(child, scores(0.5), None)
    for child in (TIES, third):
        run.record(child, Stopped(scores(0.2), 10, 0.2, 0.1), None)
    run.save_state({"outcomes": {"ann": []}})
    before = read_run_config(output)
    run.close()

    again = RunFolder.resume(output)
    again.extend(again.config.search.model_copy(update={"max_children": 30}))

    for session in range(2):  # and still in the next session
        assert [row["name"] for row in again.rows()] == ["ann", "bob", "g1-1"]
        assert [again.known(child) is None for child in (SLERP, TIES, third)] == [False, True, True]
        assert again.load_state() is None and again.config.search.max_children == 30
        again.close()
        if not session:
            again = RunFolder.resume(output)
    config, digests = read_run_config(output)
    assert (config.search.max_children, digests) == (30, before[1])
    assert config.model_copy(update={"search": before[0].search}) == before[0]
