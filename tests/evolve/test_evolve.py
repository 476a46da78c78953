"""``python -m kinray.evolve`` from end to end, with real processes: Ray, Tune, lm-eval, transformers."""

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from kinray.records.tables import TIMES
from tests.evolve.conftest import Evolve, settings_for


def children(run: Path) -> list[dict[str, Any]]:
    """Read the children table without what differs between two runs of one search."""
    rows = pq.read_table(run / "children").to_pylist()
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def finished(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One unbroken run, which several tests look at."""
    folder = tmp_path_factory.mktemp("finished")
    settings = settings_for(demo, folder / "run")
    evolve = Evolve(folder)
    done = evolve(evolve.write(settings))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", settings, done.stdout


def test_a_search_fills_its_run_folder(finished: Any) -> None:
    run, _, output = finished
    rows = children(run)

    assert [row["generation"] for row in rows[:3]] == [0, 0, 0]
    assert 4 <= sum(row["generation"] > 0 for row in rows) <= 6
    assert {row["status"] for row in rows} == {"scored"}
    assert {"score/demo_numbers", "score/demo_words", "recipe", "kinship", "gain"} <= set(rows[0])
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["search"]["k"] == 3 and "versions" in resolved["run"]
    assert "Leaderboard" in output and "held-out" in output and "Warning" not in output


def test_hyperparameters_lie_where_the_configuration_says(finished: Any) -> None:
    merged = [row for row in children(finished[0]) if row["method"]]

    for row in merged:
        params = json.loads(row["params"])
        if row["method"] == "ties":
            assert params == {"density": [0.5, 0.5]}
        else:
            assert row["method"] == "task_arithmetic" and 0.5 <= params["lambda"] <= 1.5
    assert len({row["digest"] for row in merged}) == len(merged)


def test_samples_average_to_the_scores(finished: Any) -> None:
    run, _, _ = finished
    for row in children(run):
        table = pq.read_table(run / "samples" / f"{row['name']}.parquet").to_pylist()
        for task in ("demo_numbers", "demo_words"):
            scores = [sample["score"] for sample in table if sample["task"] == task]
            assert len(scores) == 40
            assert sum(scores) / len(scores) == pytest.approx(row[f"score/{task}"])


def test_the_exported_best_is_the_child_that_was_scored(finished: Any) -> None:
    """Stock lm-eval on the exported folder, loaded by transformers, gives every item the score that the search gave it."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    run, settings, _ = finished
    rows = children(run)
    best = max(rows, key=lambda row: (row["score"], -row["number"]))
    samples = pq.read_table(run / "samples" / f"{best['name']}.parquet").to_pylist()
    items = {task: [int(s["item"]) for s in samples if s["task"] == task] for task in ("demo_numbers", "demo_words")}

    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(run / "best"), "dtype": "float32"},
        tasks=list(items),
        samples=items,
        batch_size=64,
        device="cpu",
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=settings["task_paths"], include_defaults=False),
    )

    for task, own in items.items():
        stock = {sample["doc_id"]: sample["acc"] for sample in results["samples"][task]}
        ours = {int(s["item"]): s["score"] for s in samples if s["task"] == task}
        assert len(own) == 40 and ours == stock


def test_the_export_is_a_whole_hugging_face_folder(finished: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    best = finished[0] / "best"
    model = AutoModelForCausalLM.from_pretrained(best)
    tokens = AutoTokenizer.from_pretrained(best)("The largest of 82 2 62 32 is", return_tensors="pt")

    assert model.dtype == torch.float32
    assert torch.isfinite(model(tokens["input_ids"]).logits).all()
    card = (best / "README.md").read_text()
    assert "## Lineage" in card and "## Scores" in card and "## Kinship" in card


def test_other_numbers_of_workers_give_the_same_search(finished: Any, config: dict[str, Any], evolve: Evolve) -> None:
    done = evolve(evolve.write(config), "--set", "cluster.evaluators=2", "--set", "cluster.shards=3")

    assert done.returncode == 0, done.stdout + done.stderr
    ours, expected = children(Path(config["output"])), children(finished[0])
    assert [row.pop("kinship") for row in ours] == pytest.approx([row.pop("kinship") for row in expected], abs=1e-12)
    assert ours == expected


def test_a_search_for_a_front_with_a_floor_resumes_to_the_same_table(
    demo: Any, config: dict[str, Any], evolve: Evolve, tmp_path: Path
) -> None:
    config["search"] = {"objective": "pareto", "k": 5, "max_children": 5}
    config["tasks"][0]["floor"] = -2.0
    done = evolve(evolve.write(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Pareto front" in done.stdout and "front" in done.stdout.split("Leaderboard")[1]
    cut = tmp_path / "cut"
    code, _ = evolve.until(
        (cut / "samples" / "g1-1.parquet").exists, signal.SIGKILL, evolve.write(config), "--output", str(cut)
    )
    assert code == -signal.SIGKILL

    resumed = evolve("--resume", str(cut))

    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert children(cut) == children(Path(config["output"]))
    assert (cut / "samples" / "base.parquet").exists()


def test_a_finished_run_goes_on_under_a_larger_budget(finished: Any, tmp_path: Path, evolve: Evolve) -> None:
    before = children(finished[0])
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))

    done = evolve("--resume", str(run), "--set", "search.max_children=8", "--set", "cluster.evaluators=2")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 evaluators" in done.stdout and "the budget of 8 children is spent" in done.stdout
    rows = children(run)
    assert [row for row in rows if row in before] == before and len(rows) == len(before) + 2
    assert yaml.safe_load((run / "config.yaml").read_text())["search"]["max_children"] == 8
    assert (run / "best" / "model.safetensors").is_file()


def test_a_finished_run_can_be_shown_again(finished: Any, evolve: Evolve) -> None:
    run, _, output = finished
    before = children(run)

    done = evolve("--resume", str(run))

    assert done.returncode == 0, done.stdout + done.stderr
    assert children(run) == before
    board = output[output.index("Leaderboard") :]
    assert board.splitlines()[:6] == done.stdout[done.stdout.index("Leaderboard") :].splitlines()[:6]


def test_a_dry_run_prints_the_first_generation_and_the_cost_and_writes_nothing(config: dict[str, Any], evolve: Evolve) -> None:
    done = evolve(evolve.write(config), "--dry-run", "--set", "search.children_per_mating=2")

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"numbers × letters +g1-1, g1-4\n", done.stdout)
    assert "80 (40 of demo_numbers, 40 of demo_words)" in done.stdout
    assert not Path(config["output"]).exists()


def test_a_backend_that_loads_folders_gives_the_same_search_and_a_score_cache_gives_it_again(
    finished: Any, config: dict[str, Any], evolve: Evolve, tmp_path: Path
) -> None:
    settings = ["--set", "evaluation.backend=hf", "--set", f"evaluation.score_cache={tmp_path / 'scores'}"]

    first = evolve(evolve.write(config), *settings)
    second = evolve(evolve.write(config), *settings, "--output", str(tmp_path / "again"))

    assert first.returncode == second.returncode == 0, first.stdout + first.stderr + second.stdout + second.stderr
    assert children(Path(config["output"])) == children(tmp_path / "again") == children(finished[0])
    costs = [pq.read_table(run / "children").to_pylist() for run in (Path(config["output"]), tmp_path / "again")]
    assert all(row["device"] == "cpu" and row["tokens"] > 0 for row in costs[0])
    assert all(row["device"] == "score cache" and row["tokens"] == 0 for row in costs[1])
    models = len(costs[1])
    assert re.search(rf"Scoring {models} models and \d comparisons took .* tokens\.", " ".join(first.stdout.split()))
    assert f"Scoring {models} models ({models} from the score cache)" in " ".join(second.stdout.split())


@pytest.mark.parametrize("racing", [True, *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("asha", "median"))])
def test_hopeless_children_are_stopped_and_said_to_be(config: dict[str, Any], evolve: Evolve, racing: bool | str) -> None:
    config["search"] |= {"max_children": 8, "children_per_mating": 4}
    config["merge"]["methods"] = {"task_arithmetic": {"lambda": [0.9, 1.1, 40.0, 60.0]}}
    config["evaluation"] |= {"racing": racing, "racing_error": 0.5, "pack": 8}
    config["cluster"] = {"evaluators": 2}

    done = evolve(evolve.write(config))

    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["name"]: row for row in children(Path(config["output"]))}
    stopped = {name: row for name, row in rows.items() if row["status"] == "stopped"}
    assert stopped and all(row["items"] < 80 and row["items"] % 8 == 0 and row["generation"] for row in stopped.values())
    assert {row["items"] for row in rows.values() if row["status"] == "scored"} == {80}
    assert not {parent for row in rows.values() for parent in row["parents"]} & set(stopped)
    said = " ".join(done.stdout.split())
    assert f"Stopping {len(stopped)} of {len(rows) - 3} children early saved" in said
