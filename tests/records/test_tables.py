"""The tables of a run: pinned schemas, and results that come back as they went in."""

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kinray.core.parameters import Varied
from kinray.core.recipe import Merge
from kinray.core.scores import Difference, Failed, Result, Scored
from kinray.search.population import Child
from tests.records.results import ANN, BASE, BOB, CHILDREN, FOUNDERS, SLERP, TIES, begin, reopened, scores

COLUMNS = """
name string
number int64
generation int64
operator string
parents list<element: string>
method string
params string
digest string
recipe string
kinship double
score double
score_stderr double
gain double
gain_stderr double
status string
error string
items int64
score/maths double
stderr/maths double
score/text double
stderr/text double
seconds double
seconds_merge double
seconds_copy double
seconds_evaluate double
seconds_wait double
gpu_seconds double
tokens int64
device string
node string
"""


def schema_of(file: Path) -> list[str]:
    """List a file's columns with their types."""
    return [f"{field.name} {field.type}" for field in pq.read_schema(file)]


def same(ours: Any, theirs: Scored) -> bool:
    """Compare results; NaN is NaN."""
    return isinstance(ours, Scored) and repr(ours.tasks) == repr(theirs.tasks) and ours.seconds == theirs.seconds


# -- schemas


def test_the_schema_of_the_children_table_is_pinned(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(FOUNDERS[0], Failed("boom"), None)

    assert schema_of(run.path / "children" / "generation-0000-0000.parquet") == COLUMNS.split("\n")[1:-1]


def test_the_schema_of_samples_is_pinned(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.keep("ann", scores(0.5))

    file = run.path / "samples" / "ann.parquet"
    assert schema_of(file) == ["child string", "task string", "item string", "score double"]
    assert pq.read_table(file).slice(2, 2).to_pylist()[0] == {"child": "ann", "task": "maths", "item": "5", "score": 0.5}


def test_the_schema_of_kinship_is_pinned(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record_kinship(2, [("ann", "bob", "pcc", 0.25), ("ann", "g1-1", "pcc", math.nan)])

    file = run.path / "kinship" / "generation-0002.parquet"
    assert schema_of(file) == ["a string", "b string", "metric string", "value double"]
    assert pq.read_table(file).to_pylist()[0] == {"a": "ann", "b": "bob", "metric": "pcc", "value": 0.25}


# -- rows


def test_a_row_tells_all_about_a_child(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")

    run.record(TIES, scores(0.75), Difference(0.05, 0.025))

    (row,) = reopened(run).rows()
    assert (row["name"], row["number"], row["generation"], row["operator"]) == ("g1-2", 3, 1, "merge")
    assert (row["parents"], row["kinship"], row["gain"], row["gain_stderr"]) == (["ann", "bob"], 0.125, 0.05, 0.025)
    assert (row["status"], row["error"]) == ("scored", None)
    assert (row["method"], row["params"]) == ("ties", '{"density":0.5,"weight":[1.0,0.5]}')
    assert row["score"] == pytest.approx((0.75 + 2 * 0.5) / 3)
    assert math.isnan(row["score_stderr"])
    assert (row["score/maths"], row["stderr/maths"], row["score/text"]) == (0.75, 0.1, 0.5)
    assert (row["seconds"], row["seconds_merge"], row["seconds_copy"], row["seconds_evaluate"]) == (2.0, 0.5, 0.25, 1.25)
    assert (row["device"], row["node"]) == ("cpu", "here")
    assert (row["tokens"], row["gpu_seconds"]) == (1234, 1.5)


def test_a_row_holds_what_the_digest_is_taken_of(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(TIES, scores(0.75), None)

    (row,) = run.rows()
    assert hashlib.sha256(row["recipe"].encode()).hexdigest() == row["digest"] == TIES.recipe.digest
    node = json.loads(row["recipe"])
    assert (node["method"], node["parents"], node["base"]) == ("ties", [ANN.digest, BOB.digest], BASE.digest)


def test_a_table_of_many_children_is_cut_into_files_of_few_rows(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    many = [Child(at, f"g1-{at}", 1, "merge", Merge("slerp", (ANN, BOB), {"t": at / 200})) for at in range(2, 150)]
    for child in reversed(many):
        run.record(child, Failed("boom"), None)

    files = sorted((run.path / "children").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [62, 64, 22]
    assert [row["number"] for row in pq.read_table(run.path / "children").to_pylist()] == list(range(2, 150))
    assert [row["number"] for row in reopened(run).rows()] == list(range(2, 150))


def test_a_row_tells_what_varies_over_the_model(tmp_path: Path) -> None:
    t = Varied((("attn.", (0.25, 0.5)), ("", (1,))))
    child = Child(2, "g1-1", 1, "merge", Merge("slerp", (ANN, BOB), {"t": t}), ("ann", "bob"), 0.125)
    run = begin(tmp_path / "run")
    run.record(child, scores(0.75), None)

    (row,) = reopened(run).rows()
    assert row["params"] == '{"t":{"cases":[{"filter":"attn.","value":[0.25,0.5]},{"value":[1.0]}]}}'
    assert row["digest"] == child.recipe.digest


def test_a_failed_child_has_a_row_with_its_error_and_no_score(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")

    run.record(SLERP, Failed("weights are NaN"), None)

    again = reopened(run)
    (row,) = again.rows()
    assert (row["status"], row["error"], row["score"], row["score/maths"]) == ("failed", "weights are NaN", None, None)
    assert again.known(SLERP) == Failed("weights are NaN")
    assert not (run.path / "samples").exists()


def test_a_refused_child_has_its_score_and_the_reason(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")

    run.record(SLERP, scores(0.625), Difference(0.1, 0.05), "loses 9.0 points")

    again = reopened(run)
    (row,) = again.rows()
    assert (row["status"], row["error"], row["score/maths"], row["gain"]) == ("refused", "loses 9.0 points", 0.625, 0.1)
    assert same(again.known(SLERP), scores(0.625))


def test_a_gain_is_over_the_mean_of_the_parents_on_the_same_items(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for child, maths in zip(FOUNDERS, (0.25, 0.5), strict=True):
        run.record(child, scores(maths), None)

    gain = run.gain(SLERP, scores(0.75, text=0.75))

    # maths: 0.75 - 0.375, weight 1; text: 0.75 - 0.5, weight 2, whose error is unknown
    assert gain is not None
    assert gain.mean == pytest.approx((0.375 + 2 * 0.25) / 3)
    assert math.isnan(gain.stderr)


def test_there_is_no_gain_of_a_founder_a_failure_or_a_child_whose_parents_samples_are_gone(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for child in FOUNDERS:
        run.record(child, scores(0.5), None)

    assert run.gain(FOUNDERS[0], scores(0.5)) is None
    assert run.gain(SLERP, Failed("boom")) is None
    assert run.gain(SLERP, scores(math.nan)) is None
    (run.path / "samples" / "bob.parquet").unlink()
    assert run.gain(SLERP, scores(0.5)) is None


def test_rows_stand_by_number_whatever_order_they_came_in(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")

    for child in (TIES, FOUNDERS[1], SLERP, FOUNDERS[0]):
        run.record(child, scores(0.5), None)

    assert [row["number"] for row in reopened(run).rows()] == [0, 1, 2, 3]


def test_files_are_the_same_bytes_whatever_order_results_came_in(tmp_path: Path) -> None:
    results: dict[str, Result] = {child.name: scores(0.1 * child.number) for child in CHILDREN} | {"g1-1": Failed("boom")}
    contents = set()
    for number, order in enumerate(itertools.permutations(CHILDREN)):
        run = begin(tmp_path / str(number))
        for child in order:
            run.record(child, results[child.name], None)
        files = sorted(file for folder in ("children", "samples") for file in (run.path / folder).iterdir())
        contents.add(tuple((file.name, file.read_bytes()) for file in files))

    assert len(contents) == 1


# -- results that come back


def test_what_is_known_of_a_child_comes_back_as_it_was(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.625), None)

    known = reopened(run).known(SLERP)

    assert same(known, scores(0.625))
    assert isinstance(known, Scored)
    assert known.tasks["text"].weight == 2.0
    assert math.isnan(known.tasks["text"].stderr)
    assert (known.tasks["maths"].paired, known.tasks["text"].paired) == (True, False)
    assert known.where == {"device": "cpu", "node": "here"}
    assert (known.tokens, known.gpu_seconds) == (1234, 1.5)


def test_a_child_is_known_by_what_it_is_and_not_by_its_name(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.625), None)

    assert run.known(Child(2, "g1-1", 1, "merge", TIES.recipe, ("ann", "bob"))) is None


def test_a_child_without_a_row_is_not_known_though_it_has_samples(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.keep(SLERP.name, scores(0.5))

    assert reopened(run).known(SLERP) is None


def test_a_child_whose_samples_are_gone_is_scored_again(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.record(SLERP, scores(0.5), None)
    (run.path / "samples" / "g1-1.parquet").unlink()

    assert reopened(run).known(SLERP) is None


def test_splits_are_kept_apart(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    run.keep("ann", scores(0.25))
    run.keep("ann", scores(0.75), "holdout")

    assert same(run.kept("ann"), scores(0.25))
    assert same(run.kept("ann", "holdout"), scores(0.75))
    assert run.kept("bob") is None


def test_founders_are_recorded_like_children(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for child in FOUNDERS:
        run.record(child, scores(0.5), None)

    rows = run.rows()

    assert [row["digest"] for row in rows] == [ANN.digest, BOB.digest]
    assert {(row["method"], row["params"], row["kinship"], row["gain"]) for row in rows} == {(None, None, None, None)}


# -- what it cost


def test_what_was_compared_is_told_apart_from_the_children(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for child in FOUNDERS:
        run.record(child, scores(0.5), None)
    for name, split in (("base", "search"), ("base", "holdout"), ("ann", "holdout")):
        run.keep(name, scores(0.75), split)

    compared = reopened(run).compared()

    assert len(compared) == 3
    assert all(same(one, scores(0.75)) for one in compared)
    assert sum(one.tokens for one in compared) == 3 * 1234


def test_records_of_a_version_that_did_not_count_are_read_and_go_on(tmp_path: Path) -> None:
    run = begin(tmp_path / "run")
    for child in (SLERP, TIES):
        run.record(child, scores(0.5), None)
    file, samples = run.path / "children" / "generation-0001-0000.parquet", run.path / "samples" / "g1-1.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["tokens", "gpu_seconds"]), file)
    table = pq.read_table(samples)
    summary = json.loads(table.schema.metadata[b"kinray"])
    del summary["tokens"], summary["gpu_seconds"]
    pq.write_table(table.replace_schema_metadata({b"kinray": json.dumps(summary).encode()}), samples)

    again = reopened(run)
    known = again.known(SLERP)
    again.record(TIES, scores(0.75), None)

    assert isinstance(known, Scored) and (known.tokens, known.gpu_seconds) == (0, 0.0)
    assert schema_of(file) == COLUMNS.split("\n")[1:-1]
    assert [row["tokens"] for row in reopened(again).rows()] == [None, 1234]
