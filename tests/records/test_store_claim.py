"""A run's folder in a store belongs to one process: the living keep it, what the dead left behind is taken over."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kinray.errors import RunError
from kinray.records import store_claim
from kinray.records.run import RunFolder
from kinray.records.store import Store
from kinray.records.store_claim import StoreClaim
from tests.helpers.stores import breaking_store
from tests.records.results import FOUNDERS, a_config, scores

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from kinray.records import store_claim
from kinray.records.run import RunFolder
store_claim.PERIOD = 0.05
run = RunFolder.resume(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(f"file://{tmp_path}/store")


def quickly(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    monkeypatch.setattr(store_claim, "PERIOD", 0.05)
    monkeypatch.setattr(store_claim, "PATIENCE", patience)


def left_by_another_machine(store: Store) -> None:
    claim = {"token": "t", "holder": "process 7 on node-3", "renewed": 9, "process": ["another machine", 7]}
    store.write(".claim", json.dumps(claim).encode())


def test_a_second_process_is_refused_as_long_as_the_first_renews_its_claim(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    quickly(monkeypatch, patience=60)
    first, told = StoreClaim(store), []

    with pytest.raises(RunError, match=rf"store is in use by process {os.getpid()} on .*, which began .*\. Wait for it, or"):
        StoreClaim(store, told.append)

    assert told[0].startswith("waiting up to 60 s to see whether process") and told[0].endswith(f"still uses {store.uri}")
    first.check()
    first.close()
    StoreClaim(store).close()
    assert store.names() == []


@pytest.mark.parametrize("left", [b"", b"\xff", b"[]", b'{"process": [1, 2, 3]}', b'{"process": ["x", -1], "holder": 5}', None])
def test_a_claim_that_nobody_renews_is_taken_over(left: bytes | None, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch, patience=0.2)
    if left is None:
        left_by_another_machine(store)
    else:
        store.write(".claim", left)

    claim = StoreClaim(store)

    assert json.loads(store.read(".claim", 1000) or b"")["process"][1] == os.getpid()
    claim.close()


def test_a_claim_that_is_given_back_meanwhile_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_claim, "PERIOD", 0.05)
    left_by_another_machine(store)

    claim = StoreClaim(store, lambda told: store.remove(".claim"))

    claim.close()


def test_run_of_a_process_is_refused_while_it_lives_and_taken_over_at_once_when_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"file://{tmp_path}/store"
    RunFolder.create(a_config(uri), {}).close()
    quickly(monkeypatch, patience=60)
    command = [sys.executable, "-c", HOLD, uri]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"open\n"
        in_use = rf"^{uri} is in use by process {holder.pid} on "
        with pytest.raises(RunError, match=in_use):
            RunFolder.resume(uri)
        monkeypatch.setenv("KINRAY_CACHE", str(tmp_path / "of another user"))
        with pytest.raises(RunError, match=in_use):
            RunFolder.resume(uri)
        holder.kill()
    monkeypatch.setattr(StoreClaim, "_watch", lambda self, found: pytest.fail("it waits"))

    RunFolder.resume(uri).close()

    assert not (tmp_path / "store" / ".claim").exists()


def test_whoever_lost_the_folder_records_nothing_more_and_leaves_the_others_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_claim, "PERIOD", 0.02)
    run = RunFolder.create(a_config(f"file://{tmp_path}/store"), {})
    renewals = threading.Semaphore(0)
    monkeypatch.setattr(StoreClaim, "_write", lambda self: renewals.release())
    assert renewals.acquire(timeout=60)
    left_by_another_machine(Store(f"file://{tmp_path}/store"))
    while renewals.acquire(timeout=0.5):  # as long as it believes the folder to be its own
        pass

    with pytest.raises(RunError, match="is in use by process 7 on node-3, which has taken it over"):
        run.record(FOUNDERS[0], scores(0.5), None)
    run.close()

    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == [".claim", "config.yaml"]
    assert b"node-3" in (tmp_path / "store" / ".claim").read_bytes()


def test_a_process_that_was_asleep_looks_at_its_claim_before_it_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(a_config(f"file://{tmp_path}/store"), {})
    left_by_another_machine(Store(f"file://{tmp_path}/store"))
    now = store_claim._now()
    monkeypatch.setattr(store_claim, "_now", lambda: now + 3600)

    with pytest.raises(RunError, match="is in use by process 7 on node-3"):
        run.record(FOUNDERS[0], scores(0.5), None)

    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == [".claim", "config.yaml"]
    run.close()


def test_a_store_that_is_away_for_a_while_costs_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_claim, "PERIOD", 0.02)
    breaking = breaking_store(monkeypatch, tmp_path / "store")
    claim = StoreClaim(Store("s3://bucket/run"))
    tried = threading.Event()
    breaking.writes_left = 0
    write = claim._store.write
    monkeypatch.setattr(claim._store, "write", lambda *file: (tried.set(), write(*file)))
    assert tried.wait(10)

    breaking.writes_left, before = 10**9, (tmp_path / "store" / ".claim").read_bytes()
    while (tmp_path / "store" / ".claim").read_bytes() == before:
        tried.wait(0.01)

    claim.check()
    claim.close()
