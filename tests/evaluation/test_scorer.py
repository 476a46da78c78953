"""Scores of founders and merges are what stock lm-eval says of the same weights in a folder."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.metrics import mean_stderr

from kinray.checkpoints.models import ModelSpec
from kinray.core.recipe import Recipe
from kinray.core.scores import Scored, TaskScore
from kinray.demo import DemoFiles
from kinray.evaluation.resident import DTYPES
from kinray.evaluation.scorer import Scorer
from tests.evaluation.stock import StockResult, simple_evaluate, write_merged
from tests.evaluation.tiny import GENERATED, configure, model_specs, write_task
from tests.helpers import merge

AS_IT_IS = [0, 1]
"""The scale that leaves values alone."""
KINDS = [
    ("demo_numbers", "acc", None),
    ("likelihood", "perplexity", AS_IT_IS),
    ("shots", "acc", None),
    ("likelihood_shots", "perplexity", AS_IT_IS),
    ("generated", "exact_match", None),
]


@pytest.fixture(scope="module")
def specs(demo: DemoFiles) -> list[ModelSpec]:
    """The demo's base and founders."""
    return model_specs(demo)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """The dtype in which children are scored."""
    return str(request.param)


@pytest.fixture(scope="module")
def scorer(specs: list[ModelSpec], tasks: list[Path], dtype: str) -> Scorer:
    """One scorer of all kinds of tasks at once, half of whose items are held out.

    In half precision answers depend on what goes through the model together, so there prompts are not shared.
    """
    entries = [{"name": name, "scale": scale} for name, _, scale in KINDS]
    share = dtype == "float32"
    return Scorer(specs, None, configure(entries, tasks, dtype=dtype, holdout=0.5, seed=7, share_prompts=share), "cpu")


def recipes(specs: list[ModelSpec]) -> dict[str, Recipe]:
    """A founder, an algebraic child and one that is not."""
    base, numbers, letters, words = (spec.founder for spec in specs)
    return {
        "founder": words,
        "slerp": merge("slerp", numbers, words, t=0.3),
        "ties": merge("ties", numbers, merge("linear", letters, words), base=base, density=0.5),
    }


def scored(scorer: Scorer, recipe: Recipe, split: Any = "search") -> Scored:
    """Score a recipe that can be scored."""
    result = scorer.score(recipe, split)
    assert isinstance(result, Scored), result
    return result


@pytest.mark.parametrize("name", ["founder", "slerp", "ties"])
@pytest.mark.parametrize("split", ["search", "holdout"])
def test_every_kind_of_task_scores_as_in_lm_eval(
    name: str, split: str, scorer: Scorer, specs: list[ModelSpec], tasks: list[Path], dtype: str, tmp_path: Path
) -> None:
    recipe = recipes(specs)[name]
    folder = write_merged(tmp_path / "child", recipe, specs, DTYPES[dtype])

    result = scored(scorer, recipe, split)

    items = {task: [int(item) for item in result.tasks[task].items] for task, _, _ in KINDS}
    stock = simple_evaluate(folder, items, tasks, dtype=dtype, seed=7)
    for task, metric, _ in KINDS:
        agrees(result.tasks[task], stock[task], metric, exactly=dtype == "bfloat16")


def agrees(ours: TaskScore, stock: StockResult, metric: str, *, exactly: bool) -> None:
    """Compare one task's result item by item; in float32 likelihoods may differ in the last digits."""
    theirs = stock.values(metric)
    assert ours.values == (tuple(theirs) if exactly or metric != "perplexity" else pytest.approx(theirs, abs=2e-5))
    if metric != "perplexity":
        assert ours.score == pytest.approx(stock.results[f"{metric},none"])
        assert ours.stderr == pytest.approx(mean_stderr(theirs))


def test_shared_prompts_in_half_precision_move_likelihoods_by_rounding_only(
    specs: list[ModelSpec], tasks: list[Path], tmp_path: Path
) -> None:
    scorer = Scorer(specs, None, configure([{"name": "likelihood_shots", "scale": AS_IT_IS}], tasks, dtype="bfloat16"), "cpu")
    assert scorer.sharing.reach is None

    ours = scored(scorer, specs[3].founder).tasks["likelihood_shots"].values

    stock = simple_evaluate(specs[3].folder, {"likelihood_shots": None}, tasks, dtype="bfloat16")["likelihood_shots"]
    assert ours == pytest.approx(stock.values("perplexity"), rel=2**-6)


def test_tasks_tell_the_models_apart(scorer: Scorer, specs: list[ModelSpec]) -> None:
    """Guards the tests above: answers are neither all right nor all wrong, and differ from model to model."""
    results = [scored(scorer, recipe) for recipe in recipes(specs).values()]

    for task, _, scale in KINDS:
        assert len({result.tasks[task].values for result in results}) > 1, task
        assert scale or any(0 < result.tasks[task].score < 1 for result in results), task


def test_rolling_likelihoods_are_lm_evals(specs: list[ModelSpec], tasks: list[Path]) -> None:
    scorer = Scorer(specs, None, configure([{"name": "rolling", "scale": [1000, 0]}], tasks), "cpu")

    ours = scored(scorer, specs[1].founder).tasks["rolling"]

    stock = simple_evaluate(specs[1].folder, {"rolling": None}, tasks)["rolling"]
    assert ours.score == pytest.approx(1 - stock.results["word_perplexity,none"] / 1000, abs=1e-6)
    assert ours.values == pytest.approx([1 - pair[0] / 1000 for pair in stock.values("word_perplexity")], abs=1e-6)
    assert not ours.paired


def test_a_filter_chooses_the_answers_that_count(specs: list[ModelSpec], tmp_path: Path, words: Path) -> None:
    nothing = {"name": "nothing", "filter": [{"function": "regex", "regex_pattern": "(#+)"}, {"function": "take_first"}]}
    plain = {"name": "plain", "filter": [{"function": "take_first"}]}
    write_task(tmp_path, "filtered", GENERATED, words, filter_list=[nothing, plain])

    scores = {}
    for metric in ("exact_match", "exact_match,nothing", "exact_match,plain"):
        config = configure([{"name": "filtered", "metric": metric}], [tmp_path])
        scores[metric] = scored(Scorer(specs, None, config, "cpu"), specs[3].founder).tasks["filtered"].score

    stock = simple_evaluate(specs[3].folder, {"filtered": None}, [tmp_path])["filtered"].results
    assert scores["exact_match"] == scores["exact_match,nothing"] == pytest.approx(stock["exact_match,nothing"])
    assert scores["exact_match,plain"] == pytest.approx(stock["exact_match,plain"])
    assert scores["exact_match,plain"] != scores["exact_match,nothing"]


def test_a_longest_prompt_cuts_prompts_as_lm_eval_does(specs: list[ModelSpec], tasks: list[Path]) -> None:
    task = {"name": "likelihood_shots", "scale": AS_IT_IS}
    scorer = Scorer(specs, None, configure([task], tasks, max_length=12), "cpu")

    ours = scored(scorer, specs[2].founder).tasks["likelihood_shots"]

    stock = simple_evaluate(specs[2].folder, {"likelihood_shots": None}, tasks, max_length=12)["likelihood_shots"]
    whole = simple_evaluate(specs[2].folder, {"likelihood_shots": None}, tasks)["likelihood_shots"]
    assert ours.values == pytest.approx(stock.values("perplexity"), abs=2e-5)
    assert ours.values != pytest.approx(whole.values("perplexity"), abs=2e-5)
