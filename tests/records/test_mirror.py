"""A run whose folder is a URI: what is recorded is in the store, and all that a run needs comes back from there alone."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileSystem

from kinray.core.scores import Failed
from kinray.errors import RunError
from kinray.records.config_file import read_run_config
from kinray.records.mirror import check_output, working_folder
from kinray.records.run import RunFolder
from kinray.search.population import Child
from tests.helpers.stores import Bucket, breaking_store
from tests.records.results import CHILDREN, FOUNDERS, SLERP, TIES, a_config, scores

DIGESTS = {"base": "0" * 64, "ann": "a" * 64, "bob": "b" * 64}


def begin(uri: str) -> RunFolder:
    return RunFolder.create(a_config(uri), DIGESTS)


def on_another_machine(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Leave nothing of the run on this machine."""
    monkeypatch.setenv("KINRAY_CACHE", str(cache))


def record(run: RunFolder, children: list[Child]) -> None:
    for child in children:
        run.record(child, scores(0.25), None)


def files_of(run: RunFolder) -> dict[str, bytes]:
    """Read all that a run has on this machine."""
    files = (file for file in run.path.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(run.path)): file.read_bytes() for file in files}


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that no other test uses, in a folder of this machine and in a bucket."""
    if request.param == "file":
        return f"file://{tmp_path}/store/runs/one"
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.uri(f"{tmp_path.name}/runs/one")


def test_a_run_goes_on_from_its_store_on_a_machine_that_has_nothing_of_it(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(uri)
    for number, child in enumerate(CHILDREN):
        run.record(child, scores(number / 8), None)
    run.keep("ann", scores(0.75), "holdout")
    run.record_kinship(1, [("ann", "bob", "pcc", 0.5)])
    run.save_state({"outcomes": {"ann": [0.5]}})
    recorded = files_of(run)
    run.close()

    on_another_machine(monkeypatch, tmp_path / "other")
    again = RunFolder.resume(uri)

    assert files_of(again) == recorded and len(recorded) == 10
    assert [row["name"] for row in again.rows()] == ["ann", "bob", "g1-1", "g1-2"]
    assert again.load_state() == {"outcomes": {"ann": [0.5]}}
    assert [again.known(child) is not None for child in CHILDREN] == 4 * [True] and again.kept("ann", "holdout") is not None
    assert again.place == uri and again.path.is_relative_to(tmp_path / "other")
    assert read_run_config(uri) == (a_config(uri), DIGESTS)
    again.close()


def test_a_row_is_in_the_store_when_it_is_recorded(tmp_path: Path) -> None:
    run = begin(f"file://{tmp_path}/store")

    run.record(SLERP, scores(0.5), None)

    (row,) = pq.read_table(tmp_path / "store" / "children").to_pylist()
    assert row["name"] == "g1-1" and (tmp_path / "store" / "samples" / "g1-1.parquet").is_file()
    assert not list((tmp_path / "store").rglob("*.tmp"))
    run.close()
    assert not (tmp_path / "store" / ".claim").exists()


def test_what_an_earlier_session_left_on_the_machine_does_not_count(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/store"
    run = begin(uri)
    run.record(FOUNDERS[0], scores(0.5), None)
    run.close()
    (run.path / "samples" / "ann.parquet").write_bytes(b"torn")
    (run.path / "children" / "generation-0009-0000.parquet").write_bytes(b"of a child that was not recorded")
    (run.path / "best").mkdir()
    (run.path / "tune").mkdir()

    again = RunFolder.resume(uri)

    assert [row["name"] for row in again.rows()] == ["ann"] and again.kept("ann") is not None
    assert again.notices == [] and not (run.path / "best").exists() and (run.path / "tune").exists()
    again.close()


@pytest.mark.parametrize("writes", range(4))
def test_a_run_whose_store_breaks_at_any_write_stops_and_loses_nothing(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = breaking_store(monkeypatch, tmp_path / "store")
    run = begin("s3://bucket/run")
    run.record(FOUNDERS[0], scores(0.5), None)
    store.writes_left = writes

    with pytest.raises(RunError, match=r"Cannot write s3://bucket/run/(samples|children)/.*: .*Connection timed out"):
        record(run, CHILDREN[1:])
    run.close()
    store.writes_left = 10**9
    on_another_machine(monkeypatch, tmp_path / "other")
    again = RunFolder.resume("s3://bucket/run")

    assert [row["name"] for row in again.rows()] == [child.name for child in CHILDREN[: 1 + writes // 2]]
    assert all(again.known(child) is not None for child in CHILDREN[: 1 + writes // 2]) and again.notices == []
    assert again.known(TIES) is None
    again.record(TIES, Failed("again"), None)
    again.close()


def test_a_store_that_is_gone_at_the_end_of_a_run_lets_it_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = breaking_store(monkeypatch, tmp_path / "store")
    run = begin("s3://bucket/run")
    monkeypatch.setattr(store, "info", lambda *path, **more: (_ for _ in ()).throw(OSError("gone")))

    run.close()

    assert (tmp_path / "store" / ".claim").exists()


# -- the best model


def exported(run: RunFolder, weights: bytes) -> None:
    (run.path / "best").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        (run.path / "best" / name).write_bytes(weights)


def test_the_best_model_takes_the_place_of_an_older_one_and_leaves_this_machine(uri: str, tmp_path: Path) -> None:
    run = begin(uri)
    exported(run, b"old")
    (run.path / "best" / "surplus.json").write_bytes(b"old")
    run.publish_best()
    exported(run, b"new")

    place = run.publish_best()

    assert place.partition("?")[0] == f"{uri.partition('?')[0]}/best" and not (run.path / "best").exists()
    files, path = FileSystem.from_uri(place)
    found = files.get_file_info(FileSelector(path))
    assert sorted(one.base_name for one in found) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert all(files.open_input_stream(one.path).read() == b"new" for one in found)
    run.close()


def test_a_model_that_is_not_all_there_has_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = breaking_store(monkeypatch, tmp_path / "store")
    run = begin("s3://bucket/run")
    exported(run, b"old")
    run.publish_best()
    exported(run, b"new")
    store.writes_left = 3

    with pytest.raises(RunError, match=r"Cannot write s3://bucket/run/best/config\.json"):
        run.publish_best()

    assert {file.name for file in (tmp_path / "store" / "best").iterdir()} == {
        "README.md", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    run.close()


# -- where a run may begin


def test_a_run_does_not_begin_where_one_is_or_where_something_else_lies(uri: str, tmp_path: Path) -> None:
    begin(uri).close()

    with pytest.raises(RunError, match=r"already holds a run\. Continue it with --resume (file|s3)://"):
        check_output(uri)
    with pytest.raises(RunError, match=r"runs/?.* is not empty: it holds 'one'"):
        check_output(uri.replace("/runs/one", "/runs"))


def test_looking_leaves_nothing_behind(uri: str) -> None:
    check_output(uri)
    check_output(uri)

    assert not working_folder(uri).exists()


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s4://bucket/run", "Unrecognized filesystem type in URI: s4://bucket/run"),
        ("s3:///run", "Missing bucket name"),
        ("file://elsewhere/run", "Unsupported hostname"),
        ("file:///", "names no folder in a store"),
        ("hdfs://name:8020/run", "HDFS replaces no file in one step. Mount it"),
        ("s3://bucket/run?colour=red", "Unexpected query parameter in S3 URI: 'colour'"),
    ],
)
def test_a_uri_that_leads_nowhere_is_refused(uri: str, says: str) -> None:
    with pytest.raises(RunError, match=uri.partition("?")[0]) as refused:
        check_output(uri)

    assert says in str(refused.value)


def test_a_bucket_that_is_missing_is_named_before_any_work(bucket: Bucket) -> None:
    with pytest.raises(RunError, match=r"Cannot write s3://nowhere/run/\.probe.*bucket does not exist"):
        check_output(f"s3://nowhere/run?{bucket.query}")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA123:hush%2Fhush@bucket/run",
        "s3://AKIA123:hush/hush@bucket/run",
        "s3://AKIA123:hush@hush@bucket/run",
        "s3://bucket/run?region=us-east-1&secret_key=hush",
        "abfss://container@account.dfs.core.windows.net/run?client_secret=hush",
    ],
)
def test_a_uri_with_a_password_or_a_key_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(RunError, match="holds a password or a key") as refused:
        check_output(uri)

    assert "hush" not in str(refused.value) and "AKIA" not in str(refused.value)
    with pytest.raises(RunError, match="holds a password or a key"):
        read_run_config(uri)


def test_a_user_without_a_password_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking_store(monkeypatch, tmp_path / "store")

    check_output("gs://anonymous@bucket/run")


def test_a_large_or_missing_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"file://.*/store holds no run \(there is no config\.yaml in it\)"):
        RunFolder.resume(f"file://{tmp_path}/store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "config.yaml").write_bytes(b" " * (2 << 20))

    with pytest.raises(ValueError, match=r"store/config\.yaml is too large"):
        RunFolder.resume(f"file://{tmp_path}/store")
