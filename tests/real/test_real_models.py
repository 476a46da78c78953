"""Kinship, merging and scoring on real models of 135 M parameters, against numpy and stock lm-eval."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinray.checkpoints.identity import model_digest
from kinray.checkpoints.models import Models, ModelSpec, open_models
from kinray.config import Config, parse_config
from kinray.core.algebra import KinshipMap
from kinray.core.kinship import METRICS, kinship_matrix
from kinray.core.recipe import Founder, Merge
from kinray.core.statistics import Statistics
from kinray.engine.gram import gram_pass
from kinray.engine.materialise import Materialiser
from kinray.evaluation.scorer import Scorer
from kinray.evolve.cli import main
from tests.real.conftest import ROOT

pytestmark = [pytest.mark.real, pytest.mark.slow]

ITEMS = 8


@pytest.fixture(scope="module")
def models(real_models: dict[str, Path]) -> Models:
    specs = [ModelSpec(Founder(model_digest(path, None, name), name), path) for name, path in real_models.items()]
    return open_models(specs)


@pytest.fixture(scope="module")
def statistics(models: Models) -> Statistics:
    return gram_pass(models, models.names)


@pytest.fixture(scope="module")
def deltas(models: Models) -> np.ndarray:
    """(3, parameters) float64, read by safetensors alone."""
    weights = [load_file(spec.folder / "model.safetensors") for spec in models.specs]
    flat = [torch.cat([tensors[name].double().reshape(-1) for name in models.names]) for tensors in weights]
    return torch.stack([theta - flat[0] for theta in flat[1:]]).numpy()


@pytest.fixture(scope="module")
def child(models: Models) -> Merge:
    """A merge of a merge, of two methods."""
    base, math, science, truth = (spec.founder for spec in models.specs)
    return Merge("task_arithmetic", (Merge("slerp", (math, science), {"t": 0.4}), truth), {"lambda": 1.2}, base)


def test_kinship_of_real_models_is_that_of_numpy_in_float64(statistics: Statistics, deltas: np.ndarray) -> None:
    norms = np.sqrt(np.einsum("nd,nd->n", deltas, deltas))
    expected = {"cs": (deltas @ deltas.T) / np.outer(norms, norms), "pcc": np.corrcoef(deltas)}
    expected["ed"] = np.array([[np.linalg.norm(a - b) for b in deltas] for a in deltas])

    for metric in METRICS:
        np.testing.assert_allclose(kinship_matrix(metric, statistics), expected[metric], rtol=1e-6, atol=1e-6)


def test_kinship_of_a_child_needs_no_weights(models: Models, statistics: Statistics, deltas: np.ndarray, child: Merge) -> None:
    weights = dict(Materialiser(models, statistics).tensors(child, torch.float32))
    base = load_file(models.specs[0].folder / "model.safetensors")
    delta = torch.cat([(weights[n].double() - base[n].double()).reshape(-1) for n in models.names]).numpy()

    for number, spec in enumerate(models.specs[1:]):
        measured = np.corrcoef(delta, deltas[number])[0, 1]
        assert KinshipMap(statistics).between("pcc", child, spec.founder) == pytest.approx(measured, abs=1e-5)


def a_config(models: Models, tasks: Path, output: Path, dtype: str = "bfloat16") -> dict[str, Any]:
    return {
        "base": str(models.specs[0].folder),
        "founders": [{"name": spec.founder.name, "model": str(spec.folder)} for spec in models.specs[1:]],
        "tasks": [{"name": "kin_arc_easy", "limit": ITEMS}, {"name": "kin_winogrande", "limit": ITEMS}],
        "task_paths": [str(tasks)],
        "search": {"max_children": 3},
        "merge": {"methods": {"slerp": {"t": 0.5}}, "dtype": dtype},
        "evaluation": {"batch_size": 8},
        "output": str(output),
    }


@pytest.mark.parametrize(("dtype", "share", "within"), [("bfloat16", False, 0.0), ("float32", True, 2e-4)])
def test_a_child_scores_as_its_export_does_in_stock_lm_eval(
    dtype: str,
    share: bool,
    within: float,
    models: Models,
    statistics: Statistics,
    child: Merge,
    real_tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16 answers depend on what goes through the model together, so there they are asked as lm-eval does."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from kinray.evaluation.task_loading import load_tasks
    from kinray.evolve.export import export_model
    from kinray.evolve.prepare import Prepared

    monkeypatch.chdir(ROOT)
    settings = a_config(models, real_tasks, tmp_path / "run", dtype)
    settings["evaluation"]["share_prompts"] = share
    config: Config = parse_config(settings)
    scorer = Scorer(models.specs, statistics, config, "cpu")
    scored = scorer.score(child)
    tasks = load_tasks(config.tasks, config.task_paths, config.evaluation, config.seed)
    export_model(Prepared(config, models, [], tasks), child, statistics, {}, tmp_path / "best")

    stock = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "best"), "dtype": dtype},
        tasks=[task.name for task in config.tasks],
        samples={leaf.name: leaf.items["search"] for leaf in tasks.leaves},
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=str(real_tasks), include_defaults=False),
    )

    for name, task in scored.tasks.items():  # type: ignore[union-attr]
        theirs = {str(sample["doc_id"]): sample["acc"] for sample in stock["samples"][name]}
        assert dict(zip(task.items, task.values, strict=True)) == theirs
    assert (scorer.sharing.reach is None) == share
    (pack,) = scorer._prepared["search"].packs
    ours = [
        instance.resps[0][0]
        for leaf in sorted(pack.instances)
        for instance in sorted(pack.instances[leaf], key=lambda instance: (instance.doc_id, instance.idx))
    ]
    samples = [sorted(stock["samples"][name], key=lambda sample: int(sample["doc_id"])) for name in scored.tasks]  # type: ignore[union-attr]
    theirs = [answer[0][0] for own in samples for sample in own for answer in sample["resps"]]
    assert ours == pytest.approx(theirs, rel=0, abs=within)


def test_the_main_job_evolves_real_models(
    models: Models, real_tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import yaml

    monkeypatch.chdir(ROOT)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(a_config(models, real_tasks, tmp_path / "run")))

    code = main([str(tmp_path / "config.yaml")])

    output = capfd.readouterr().out
    assert code == 0, output
    assert re.search(r"Finished: the budget of 3 children is spent", output)
    assert (tmp_path / "run" / "best" / "model.safetensors").stat().st_size > 200e6
