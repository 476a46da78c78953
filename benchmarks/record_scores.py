"""Record what each model of a small family answers to each item: ``python benchmarks/record_scores.py``; see README.md here.

The models are real fine-tunes of one base and merges of them, good and bad, of three generations, in bfloat16. They are asked
the items in passes, each with its share of every task. What a model answers in a pass is kept in a file of its own, so the
script may be interrupted and goes on. At the end one table is written.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kinray.core.methods import method_named
from kinray.core.recipe import Founder, Merge, Recipe, to_text

HERE = Path(__file__).parent
SHARED = HERE.parents[1] / "shared"
SCORES, RECIPES = HERE / "data" / "scores.parquet", HERE / "data" / "recipes.json"
FOUNDERS = ("base", "math", "science", "truth")
TASKS = ("kin_arc_easy", "kin_winogrande", "kin_truthfulqa_mc1", "kin_arithmetic")
PASSES = 4


@dataclass(frozen=True)
class Made:
    """A merge of the family: its method, the names of its parents, which stand before it, and its hyperparameters."""

    method: str
    parents: tuple[str, ...]
    params: dict[str, Any]


TUNED = ("math", "science", "truth")
MERGES = {
    "g1-1": Made("linear", ("math", "science"), {}),
    "g1-2": Made("linear", ("math", "truth"), {}),
    "g1-3": Made("linear", ("science", "truth"), {}),
    "g1-4": Made("task_arithmetic", ("math", "science"), {"lambda": 1.0}),
    "g1-5": Made("task_arithmetic", ("science", "truth"), {"lambda": 1.0}),
    "g1-6": Made("task_arithmetic", TUNED, {"lambda": 0.7}),
    "g1-7": Made("slerp", ("math", "science"), {"t": 0.3}),
    "g1-8": Made("slerp", ("science", "truth"), {"t": 0.25}),
    "g1-9": Made("ties", TUNED, {"density": 0.5}),
    "g1-10": Made("dare_ties", TUNED, {"density": 0.5}),
    "g1-11": Made("task_arithmetic", TUNED, {"lambda": 1.5}),
    "g1-12": Made("dare_ties", ("science", "truth"), {"density": 0.1}),
    "g1-13": Made("task_arithmetic", ("math", "science"), {"lambda": 3.0}),
    "g2-1": Made("slerp", ("g1-5", "g1-4"), {"t": 0.5}),
    "g2-2": Made("linear", ("g1-1", "g1-3"), {}),
    "g2-3": Made("slerp", ("g1-9", "science"), {"t": 0.4}),
    "g2-4": Made("task_arithmetic", ("g1-1", "truth"), {"lambda": 1.2}),
    "g2-5": Made("dare_ties", ("g1-1", "g1-5"), {"density": 0.7}),
    "g3-1": Made("slerp", ("g2-1", "g2-3"), {"t": 0.5}),
    "g3-2": Made("linear", ("g2-4", "g1-10"), {}),
}


def main() -> None:
    """Ask what is not asked yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help=f"folder with the models {', '.join(FOUNDERS)}")
    parser.add_argument("--tasks", type=Path, default=SHARED / "tasks", help="folder of the tasks' files")
    parser.add_argument("--parts", type=Path, required=True, help="where answers are kept until all are there")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    record(arguments)
    write(arguments.parts)


def record(arguments: argparse.Namespace) -> None:
    """Ask all models one pass after the other, unless their answers are there."""
    import torch

    from kinray.checkpoints.identity import model_digest
    from kinray.checkpoints.models import ModelSpec, open_models
    from kinray.config import parse_config
    from kinray.core.scores import Scored
    from kinray.engine.gram import gram_pass
    from kinray.evaluation.scorer import Scorer
    from kinray.files import write_atomically
    from kinray.records.tables import write_samples

    torch.set_num_threads(arguments.threads)
    folders = {name: arguments.models / name for name in FOUNDERS}
    specs = [ModelSpec(Founder(model_digest(path, None, name), name), path) for name, path in folders.items()]
    config = parse_config(
        {
            "base": str(folders["base"]),
            "founders": [{"name": name, "model": str(folders[name])} for name in FOUNDERS[1:]],
            "tasks": list(TASKS),
            "task_paths": [str(arguments.tasks)],
            "merge": {"dtype": "bfloat16"},
            "evaluation": {"holdout": 0.0, "device": "cpu"},
            "output": str(arguments.parts),
        },
        "benchmark",
    )
    recipes = recipes_of([spec.founder for spec in specs])
    write_atomically(
        arguments.parts / RECIPES.name, _json({name: json.loads(to_text(recipe)) for name, recipe in recipes.items()})
    )
    opened = open_models(specs)
    statistics = gram_pass(opened, opened.names)
    for number in range(PASSES):
        waiting = [name for name in recipes if not _part(arguments.parts, name, number).is_file()]
        if not waiting:
            continue
        scorer = Scorer(specs, statistics, config, "cpu")
        _ask_only(scorer, number)
        for name in waiting:
            started = time.perf_counter()
            result = scorer.score(recipes[name])
            if not isinstance(result, Scored):
                raise SystemExit(f"{name}: {result.error}")
            write_samples(_part(arguments.parts, name, number), name, result)
            seconds = f"{time.perf_counter() - started:.0f} s, load {os.getloadavg()[0]:.1f}"
            print(f"pass {number}  {name:<8}{result.score:.4f}  {seconds}", flush=True)


def recipes_of(founders: Sequence[Founder]) -> dict[str, Recipe]:
    """Return all models as recipes, founders first, the base first of all."""
    recipes: dict[str, Recipe] = {founder.name: founder for founder in founders}
    for name, made in MERGES.items():
        base = founders[0] if method_named(made.method).uses_base else None
        recipes[name] = Merge(made.method, tuple(recipes[parent] for parent in made.parents), made.params, base)
    return recipes


def _ask_only(scorer: Any, number: int) -> None:
    """Leave the scorer one pass of its items."""
    for leaf in scorer._tasks.leaves:
        leaf.items["search"] = leaf.items["search"][number::PASSES]


def write(parts: Path) -> None:
    """Write one table of all models and passes, and their recipes beside it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from kinray.files import replacing, write_atomically
    from kinray.records.tables import read_samples

    names = (*FOUNDERS, *MERGES)
    rows: list[tuple[str, str, int, float]] = []
    for name in names:
        own = []
        for number in range(PASSES):
            for task, scored in read_samples(_part(parts, name, number)).tasks.items():
                own += [(name, task, int(item), value) for item, value in zip(scored.items, scored.values, strict=True)]
        rows += sorted(own, key=lambda row: (TASKS.index(row[1]), row[2]))
    words = pa.dictionary(pa.int32(), pa.string())
    schema = pa.schema([("child", words), ("task", words), ("item", pa.int32()), ("score", pa.float32())])
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    with replacing(SCORES) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary, compression="zstd")
    write_atomically(RECIPES, (parts / RECIPES.name).read_bytes())
    print(f"{SCORES.name}: {len(names)} models, {len(rows) // len(names)} items, {SCORES.stat().st_size / 1e3:.0f} kB")


def _part(parts: Path, name: str, number: int) -> Path:
    return parts / f"pass-{number}" / f"{name}.parquet"


def _json(recipes: dict[str, Any]) -> bytes:
    """Write recipes as JSON, one a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(nodes)}" for name, nodes in recipes.items())
    return f"{{\n{lines}\n}}\n".encode()


if __name__ == "__main__":
    main()
