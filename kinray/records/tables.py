"""The Parquet tables of a run, their schemas, and how results become rows and come back."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kinray.core.parameters import as_json
from kinray.core.recipe import Merge, canonical_json
from kinray.core.scores import Difference, Failed, Result, Scored, Stopped, TaskScore
from kinray.errors import RunError
from kinray.files import replacing
from kinray.search.population import Child

SAMPLES = pa.schema([("child", pa.string()), ("task", pa.string()), ("item", pa.string()), ("score", pa.float64())])
KINSHIP = pa.schema([("a", pa.string()), ("b", pa.string()), ("metric", pa.string()), ("value", pa.float64())])
_FIXED = [
    ("name", pa.string()),
    ("number", pa.int64()),
    ("generation", pa.int64()),
    ("operator", pa.string()),
    ("parents", pa.list_(pa.string())),
    ("method", pa.string()),
    ("params", pa.string()),
    ("digest", pa.string()),
    ("recipe", pa.string()),
    ("kinship", pa.float64()),
    ("score", pa.float64()),
    ("score_stderr", pa.float64()),
    ("gain", pa.float64()),
    ("gain_stderr", pa.float64()),
    ("status", pa.string()),
    ("error", pa.string()),
    ("items", pa.int64()),
]
_COSTS = [
    ("seconds", pa.float64()),
    ("seconds_merge", pa.float64()),
    ("seconds_copy", pa.float64()),
    ("seconds_evaluate", pa.float64()),
    ("seconds_wait", pa.float64()),
    ("gpu_seconds", pa.float64()),
    ("tokens", pa.int64()),
    ("device", pa.string()),
    ("node", pa.string()),
]
TIMES = tuple(name for name, _ in _COSTS)
"""Columns that differ from one run of the same search to another."""
BROKEN = "broken"
"""Status of a child whose evaluation broke each time, for which it may not be to blame."""
STOPPED = "stopped"
"""Status of a child that was not asked all items."""

_META = b"kinray"


def children_schema(tasks: Sequence[str]) -> pa.Schema:
    """Return the schema of the children table: fixed columns, then ``score/TASK`` and ``stderr/TASK``, then costs."""
    scores = [(f"{what}/{task}", pa.float64()) for task in tasks for what in ("score", "stderr")]
    return pa.schema([*_FIXED, *scores, *_COSTS])


def child_row(child: Child, result: Result, gain: Difference | None, refused: str | None) -> dict[str, Any]:
    """Describe one child and what became of it as a row of the children table.

    Its status is ``scored``, ``refused`` (it has scores but broke a floor), ``stopped`` (it was not asked all items, and its
    score is an estimate), ``failed`` (it has none, and would not the next time) or ``broken`` (its evaluation broke each
    time); ``error`` says why.
    """
    recipe = child.recipe
    row: dict[str, Any] = {
        "name": child.name,
        "number": child.number,
        "generation": child.generation,
        "operator": child.operator,
        "parents": list(child.parents),
        "method": recipe.method if isinstance(recipe, Merge) else None,
        "params": canonical_json(as_json(recipe.params)) if isinstance(recipe, Merge) else None,
        "digest": recipe.digest,
        "recipe": recipe.alone if isinstance(recipe, Merge) else None,
        "kinship": child.kinship,
        "gain": gain and gain.mean,
        "gain_stderr": gain and gain.stderr,
    }
    if isinstance(result, Failed):
        return row | {"status": BROKEN if result.broke else "failed", "error": result.error}
    row |= {"score": result.score, "score_stderr": result.stderr}
    if isinstance(result, Stopped):
        row |= {"status": STOPPED, "error": f"stopped after {result.partial.items} of {result.of} items"}
        result = result.partial
    else:
        row |= {"status": "refused" if refused else "scored", "error": refused}
    row["items"] = result.items
    for name, task in result.tasks.items():
        row |= {f"score/{name}": task.score, f"stderr/{name}": task.stderr}
    row |= {f"seconds_{part}": result.seconds.get(part) for part in ("merge", "copy", "evaluate", "wait")}
    spent = {"seconds": sum(result.seconds.values()), "gpu_seconds": result.gpu_seconds, "tokens": result.tokens}
    return row | spent | dict(result.where)


def write_children(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
    """Write rows of the children table."""
    _write(path, pa.Table.from_pylist(list(rows), schema))


def write_kinship(path: Path, values: Sequence[tuple[str, str, str, float]]) -> None:
    """Write kinship values (a, b, metric, value)."""
    columns = zip(*values, strict=True) if values else KINSHIP.empty_table().columns
    _write(path, pa.table(list(columns), KINSHIP))


def _write(path: Path, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def torn(path: Path) -> bool:
    """Tell whether a Parquet file is missing or was not written to its end; it is looked at, not read."""
    try:
        with path.open("rb") as file:
            begin, size = file.read(4), file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4))
            return size < 12 or not begin == file.read() == b"PAR1"
    except FileNotFoundError:
        return True


def read_table(path: Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """Read the rows of one Parquet file, columns that it lacks as None, or raise RunError when it is damaged."""
    try:
        rows: list[dict[str, Any]] = pq.read_table(path, schema=schema).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise RunError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0][:200]}.") from error
    return rows


def write_samples(path: Path, name: str, outcome: Scored | Stopped) -> None:
    """Write a model's per-item scores; the file alone gives the whole result back."""
    result = outcome.partial if isinstance(outcome, Stopped) else outcome
    tasks = result.tasks.items()
    columns = [
        [name] * result.items,
        [task for task, scored in tasks for _ in scored.items],
        [item for _, scored in tasks for item in scored.items],
        [value for _, scored in tasks for value in scored.values],
    ]
    summary = {
        "tasks": {
            name: {"score": task.score, "stderr": task.stderr, "weight": task.weight, "paired": task.paired}
            for name, task in result.tasks.items()
        },
        "seconds": dict(result.seconds),
        "where": dict(result.where),
        "tokens": result.tokens,
        "gpu_seconds": result.gpu_seconds,
    }
    if isinstance(outcome, Stopped):
        summary["stopped"] = {"of": outcome.of, "score": outcome.score, "stderr": outcome.stderr}
    _write(path, pa.table(columns, SAMPLES.with_metadata({_META: json.dumps(summary).encode()})))


def read_samples(path: Path) -> Scored | Stopped:
    """Read back what ``write_samples`` wrote, or raise RunError when it is damaged."""
    try:
        table = pq.read_table(path)
        summary = json.loads(table.schema.metadata[_META])
        items: dict[str, list[str]] = {}
        values: dict[str, list[float]] = {}
        for task, item, score in zip(*(table[column].to_pylist() for column in ("task", "item", "score")), strict=True):
            items.setdefault(task, []).append(item)
            values.setdefault(task, []).append(score)
        tasks = {
            name: TaskScore(items=tuple(items[name]), values=tuple(values[name]), **own)
            for name, own in summary["tasks"].items()
        }
        # Records of versions that did not count have neither.
        result = Scored(tasks, summary["seconds"], summary["where"], summary.get("tokens", 0), summary.get("gpu_seconds", 0.0))
        return Stopped(result, **summary["stopped"]) if "stopped" in summary else result
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunError(f"{path} is not a readable record of scores: {reason}.") from error
