"""From the values of items to a task's score and its standard error."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kinray.core.scores import TaskScore
from kinray.errors import RunError, TaskError
from kinray.evaluation.tasks import LoadedTask
from tests.evaluation.tiny import CHOICES, load, write_task

RIGHT = [float(number % 3 == 0) for number in range(40)]


def judged(tasks: list[Path], task: str | dict[str, Any], *values: list[Any]) -> TaskScore:
    """Judge made-up values of a task's items, all of which are searched on."""
    (loaded,) = load([task], tasks, holdout=0).tasks
    return loaded.judge([dict(enumerate(own)) for own in values])


def test_score_and_error_of_a_mean_are_lm_evals_own(tasks: list[Path]) -> None:
    from lm_eval.api.metrics import mean, mean_stderr

    result = judged(tasks, "demo_numbers", RIGHT)

    assert result.score == pytest.approx(mean(RIGHT), rel=1e-15)
    assert result.stderr == pytest.approx(mean_stderr(RIGHT), rel=1e-12)
    assert result.paired
    assert result.items == tuple(str(number) for number in range(40))
    assert result.values == tuple(RIGHT)


def test_the_weight_of_the_entry_is_kept(tasks: list[Path]) -> None:
    assert judged(tasks, {"name": "demo_numbers", "weight": 2.5}, RIGHT).weight == 2.5


def test_items_are_labelled_by_their_place_in_the_data(tasks: list[Path]) -> None:
    (loaded,) = load([{"name": "demo_numbers", "limit": 5}], tasks).tasks

    result = loaded.judge([dict(zip(loaded.leaves[0].items["search"], [1.0, 0.0, 0.0, 1.0, 1.0], strict=True))])

    assert result.items == tuple(str(item) for item in loaded.leaves[0].items["search"])


# -- scales


@pytest.mark.parametrize(("perplexity", "score"), [(500, 0.0), (1, 1.0), (250.5, 0.5), (9000, 0.0), (0.5, 1.0)])
def test_a_scale_maps_worst_to_0_and_best_to_1_and_clips(perplexity: float, score: float, tasks: list[Path]) -> None:
    result = judged(tasks, {"name": "likelihood", "scale": [500, 1]}, [-math.log(perplexity)] * 40)

    assert result.score == pytest.approx(score, abs=1e-12)


def test_a_scale_divides_the_error_by_its_length(tasks: list[Path]) -> None:
    plain = judged(tasks, "demo_numbers", RIGHT)

    scaled = judged(tasks, {"name": "demo_numbers", "scale": [0.25, 0.75]}, RIGHT)

    assert scaled.stderr == pytest.approx(plain.stderr / 0.5)
    assert scaled.values == pytest.approx([(value - 0.25) / 0.5 for value in RIGHT])
    assert np.mean(scaled.values) == pytest.approx(scaled.score)


def test_a_score_that_was_clipped_is_not_compared_by_items(tasks: list[Path]) -> None:
    inside = judged(tasks, {"name": "demo_numbers", "scale": [0.2, 1]}, RIGHT)
    clipped = judged(tasks, {"name": "demo_numbers", "scale": [0.5, 1]}, RIGHT)

    assert (inside.paired, clipped.paired) == (True, False)
    assert clipped.score == 0.0


def test_a_score_out_of_bounds_asks_for_a_scale(tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match=r"'demo_numbers' scored 37\.5, .* Give it a scale: \[worst, best\]"):
        judged(tasks, "demo_numbers", [37.5] * 40)


# -- metrics that are no mean


def test_the_error_of_a_perplexity_is_the_jackknifes(words: Path, tasks: list[Path]) -> None:
    likelihoods = list(np.random.default_rng(0).normal(-3.0, 1.0, 12))
    spec = {"name": "likelihood", "limit": 12, "scale": [1000, 0]}
    (loaded,) = load([spec], tasks, holdout=0).tasks

    result = loaded.judge([dict(enumerate(likelihoods))])

    left_out = [np.exp(-np.mean(np.delete(likelihoods, item))) for item in range(12)]
    expected = np.sqrt(11 / 12 * np.sum((left_out - np.mean(left_out)) ** 2)) / 1000
    assert result.stderr == pytest.approx(expected, rel=1e-9)
    assert not result.paired


def test_the_jackknife_by_groups_agrees_with_the_delta_method(tasks: list[Path]) -> None:
    likelihoods = list(np.random.default_rng(1).normal(-3.0, 0.5, 40))

    result = judged(tasks, {"name": "likelihood", "scale": [1000, 0]}, likelihoods)

    perplexity = np.exp(-np.mean(likelihoods))
    assert result.stderr == pytest.approx(perplexity * np.std(likelihoods, ddof=1) / np.sqrt(40) / 1000, rel=0.2)


def test_a_metric_of_pairs_is_lm_evals_own(words: Path, tmp_path: Path) -> None:
    from sklearn.metrics import matthews_corrcoef  # type: ignore[import-untyped]

    metrics = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    write_task(tmp_path, "pairs", CHOICES, words, metric_list=metrics)
    drawn = np.random.default_rng(2)
    gold = drawn.integers(0, 4, 40)
    predicted = np.where(drawn.random(40) < 0.6, gold, drawn.integers(0, 4, 40))

    result = judged([tmp_path], {"name": "pairs", "scale": [-1, 1]}, list(zip(gold, predicted, strict=True)))

    assert result.score == pytest.approx((matthews_corrcoef(gold, predicted) + 1) / 2)
    assert 0 < result.stderr < 0.2
    assert not result.paired


def test_a_perplexity_beyond_numbers_says_so(tasks: list[Path]) -> None:
    with pytest.raises(RunError, match="perplexity of task 'likelihood' is too large for a number"):
        judged(tasks, {"name": "likelihood", "scale": [500, 1]}, [-1e4] * 40)


# -- groups and tags


@pytest.fixture
def grouped(tasks: list[Path], words: Path, tmp_path: Path) -> list[Path]:
    """Folders with a group of the demo's tasks and a tag on two of 8 and 40 items."""
    (tmp_path / "both.yaml").write_text("group: both\ntask: [demo_numbers, demo_words]\n")
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(words.read_text().splitlines()[:8]))
    write_task(tmp_path, "short", CHOICES, short, tag="tagged")
    write_task(tmp_path, "long", CHOICES, words, tag="tagged")
    return [*tasks, tmp_path]


def test_a_group_counts_its_tasks_by_their_items(grouped: list[Path]) -> None:
    (loaded,) = load(["tagged"], grouped, holdout=0).tasks
    values = {"short": [1.0] * 8, "long": [0.0] * 40}

    result = loaded.judge([dict(enumerate(values[leaf.name])) for leaf in loaded.leaves])

    assert result.score == pytest.approx(8 / 48)
    assert result.stderr == pytest.approx(np.std([1.0] * 8 + [0.0] * 40, ddof=1) / np.sqrt(48))
    assert result.paired


def test_a_group_that_says_so_counts_its_tasks_equally(grouped: list[Path]) -> None:
    from lm_eval.api.metrics import mean_stderr, unweighted_mean_stderr

    from kinray.core.scores import task_difference

    metrics = [{"metric": "acc", "aggregation": "mean", "weight_by_size": False}]
    group = {"group": "equal", "task": ["short", "long"], "aggregate_metric_list": metrics}
    (grouped[-1] / "equal.yaml").write_text(yaml.safe_dump(group))
    (loaded,) = load(["equal"], grouped, holdout=0).tasks
    drawn = np.random.default_rng(5)
    values, others = (
        {name: (drawn.random(count) < rate).astype(float) for name, count, rate in (("short", 8, 0.8), ("long", 40, 0.3))}
        for _ in range(2)
    )

    result, other = (loaded.judge([dict(enumerate(own[leaf.name])) for leaf in loaded.leaves]) for own in (values, others))

    assert result.score == pytest.approx(np.mean([np.mean(own) for own in values.values()]))
    assert result.stderr == pytest.approx(unweighted_mean_stderr([mean_stderr(own) for own in values.values()]))
    assert np.mean(result.values) == pytest.approx(result.score)
    gap = task_difference(result, other)
    parts = [np.subtract(values[name], others[name]) for name in values]
    assert gap.mean == pytest.approx(np.mean([part.mean() for part in parts]))
    assert gap.stderr == pytest.approx(np.hypot(*(part.std(ddof=1) / np.sqrt(len(part)) for part in parts)) / 2, rel=0.1)
    assert not loaded.bounded


def test_items_of_a_group_are_labelled_with_their_task(grouped: list[Path]) -> None:
    result = judged(grouped, "both", RIGHT, RIGHT)

    assert result.items[:2] == ("demo_numbers:0", "demo_numbers:1")
    assert result.items[-1] == "demo_words:39"
    assert len(set(result.items)) == len(result.values) == 80


def test_a_limit_holds_for_each_task_of_a_group(grouped: list[Path]) -> None:
    assert load([{"name": "both", "limit": 5}], grouped).count("search") == 10


def test_nan_stays_nan_under_a_scale(tasks: list[Path]) -> None:
    result = judged(tasks, {"name": "demo_numbers", "scale": [0, 1]}, [math.nan, *RIGHT[1:]])

    assert math.isnan(result.score)


def test_answers_to_one_question_are_a_cluster_as_in_lm_eval(tasks: list[Path]) -> None:
    from lm_eval.api.metrics import acc_all, acc_all_stderr

    drawn = np.random.default_rng(3)
    answers = [
        (bool(drawn.random() < 0.8), {"idx": {"paragraph": question // 3, "question": question}, "label": 1})
        for question in range(12)
        for _ in range(3)
    ]
    (loaded,) = load(["demo_numbers"], tasks, holdout=0).tasks
    leaf = dataclasses.replace(loaded.leaves[0], aggregate=acc_all, is_mean=False)
    clustered = LoadedTask(loaded.spec, [leaf])

    result = clustered.judge([dict(enumerate(answers))])

    assert result.score == pytest.approx(acc_all(answers))
    assert result.stderr == pytest.approx(acc_all_stderr(answers))
    assert len(result.items) == len(set(result.items)) == 12 and result.paired and not clustered.bounded
