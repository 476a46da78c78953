"""A run in a bucket whose driver is killed: another machine, which has nothing of it, goes on from the bucket alone."""

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.conftest import Unbroken
from tests.faults.table import Table
from tests.helpers.stores import ACCESS, SECRET, s3_bucket

pytestmark = pytest.mark.faults


def test_run_in_a_bucket_whose_driver_is_killed_goes_on_elsewhere_to_the_unbroken_one(
    unbroken: Unbroken, config: dict[str, Any], evolve: Evolve, tmp_path: Path
) -> None:
    evolve.environment |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    with s3_bucket() as bucket:
        uri = bucket.uri("runs/first")
        command = evolve.write(config | {"output": uri})

        def under_way() -> bool:
            return len(bucket.names("runs/first/samples")) >= 7

        code, output = evolve.until(under_way, signal.SIGKILL, command)
        assert code == -signal.SIGKILL, output
        survived = Table(bucket.copy("runs/first", tmp_path / "killed")).rows
        evolve.environment["KINRAY_CACHE"] = str(tmp_path / "another machine")
        done = evolve("--resume", uri)
        found = bucket.copy("runs/first", tmp_path / "found")
        names = bucket.names("runs/first")

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Best model: s3://bucket/runs/first/best?{bucket.query}" in done.stdout.replace("\n", "")
    table = Table(found)
    assert table.timeless == unbroken.timeless
    assert table.best == unbroken.best
    kept = [row["name"] for row in survived]
    assert len(kept) >= 6 and [row for row in table.rows if row["name"] in kept] == survived, "a row was scored again"
    assert {name.partition("/")[0] for name in names} == {"config.yaml", "state.json", "children", "samples", "kinship", "best"}
    written = [file for place in (found, tmp_path / "another machine") for file in place.rglob("*") if file.is_file()]
    assert not [file for file in written if SECRET.encode() in file.read_bytes()]
