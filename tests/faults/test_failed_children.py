"""Children that fail: recorded with their error and never parents, and a run that fails altogether stops and can be mended."""

from pathlib import Path
from typing import Any

import pytest

from tests.evolve.conftest import Evolve
from tests.faults.conftest import ALWAYS, Tasks, Unbroken
from tests.faults.table import Table

pytestmark = pytest.mark.faults


def test_children_whose_merge_is_nan_or_whose_evaluation_always_breaks_are_recorded_and_never_parents(
    unbroken: Unbroken, config: dict[str, Any], tasks: Tasks, evolve: Evolve
) -> None:
    config["merge"]["methods"] = {"task_arithmetic": {"lambda": [0.8, 1e38]}}
    tasks.plan({unbroken.models["letters"]: ("no answer", ALWAYS), unbroken.models["words"]: ("die", ALWAYS)})
    config["founders"].append({"name": "mean", "model": str(unbroken.run / "best")})
    config["cluster"] = {"retries": 1}

    done = evolve(evolve.write(config))

    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in Table(Path(config["output"])).rows}
    broken = {name: row["error"] for name, row in rows.items() if row["status"] == "broken"}
    assert broken == {
        "letters": "OSError: Planned: no answer",
        "words": "its evaluator's process was killed each time that it was tried; most often memory has run out",
    }
    failed = [row for row in rows.values() if row["status"] == "failed"]
    assert failed and all('"lambda":1e+38' in row["params"] and "NaN or infinity" in row["error"] for row in failed)
    scored = {name for name, row in rows.items() if row["status"] == "scored"}
    assert all(set(row["parents"]) <= scored for row in rows.values())
    assert (Path(config["output"]) / "best" / "model.safetensors").exists()


def test_run_whose_task_breaks_stops_and_resumes_to_the_unbroken_one_when_it_is_mended(
    unbroken: Unbroken, config: dict[str, Any], tasks: Tasks, evolve: Evolve
) -> None:
    run = Path(config["output"])
    tasks.plan({model: ("the server is gone", ALWAYS) for name, model in unbroken.models.items() if name.startswith("g2")})

    stopped = evolve(evolve.write(config))

    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    error = " ".join(stopped.stderr.split())
    fifth = [row["name"] for row in unbroken.rows if row["generation"] == 2][4]
    assert (
        f"5 children in a row failed, the last one, {fifth}, with: OSError: Planned: the server is gone. Find the cause"
        in error
    )
    assert f"kinray evolve --resume {run}" in stopped.stdout and "Traceback" not in error
    assert [row["status"] for row in Table(run).rows if row["generation"] == 2] == 5 * ["broken"]
    tasks.plan({})
    done = evolve("--resume", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    assert Table(run).timeless == unbroken.timeless
    assert Table(run).best == unbroken.best
