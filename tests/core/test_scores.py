"""Scores, their standard errors, and paired comparisons, against numpy and closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.core.scores import (
    Difference,
    Scored,
    TaskScore,
    difference,
    standard_error,
    task_difference,
    weighted_error,
    weighted_mean,
)

VALUES = (1.0, 0.0, 1.0, 1.0)
OTHERS = (0.0, 0.0, 1.0, 0.0)


def task(values: tuple[float, ...], weight: float = 1.0, paired: bool = True, first: int = 0) -> TaskScore:
    items = tuple(str(first + number) for number in range(len(values)))
    return TaskScore(float(np.mean(values)), standard_error(values), items, values, weight, paired)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_standard_error_is_that_of_a_mean(values: list[float]) -> None:
    expected = math.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / (len(values) - 1) / len(values))

    assert standard_error(values) == pytest.approx(expected, abs=1e-9)


def test_one_item_has_no_standard_error() -> None:
    assert math.isnan(standard_error([1.0]))


def test_weights_need_not_add_up_to_one() -> None:
    assert weighted_mean([1.0, 0.0], [3.0, 1.0]) == 0.75
    assert weighted_error([0.3, 0.4], [2.0, 2.0]) == pytest.approx(0.25)


def test_score_of_a_model_is_the_weighted_mean_over_tasks() -> None:
    result = Scored({"a": task(VALUES, weight=3), "b": task(OTHERS)})

    assert result.score == pytest.approx((3 * 0.75 + 0.25) / 4)
    assert result.stderr == pytest.approx(math.hypot(3 * 0.25, 0.25) / 4)


def test_difference_is_paired_on_the_same_items() -> None:
    got = difference(Scored({"a": task(VALUES)}), Scored({"a": task(OTHERS)}))

    gaps = np.array(VALUES) - np.array(OTHERS)
    assert got.mean == 0.5
    assert got.stderr == pytest.approx(gaps.std(ddof=1) / 2)
    assert got.sigmas == pytest.approx(0.5 / got.stderr)


@pytest.mark.parametrize("other", [task(OTHERS, first=7), task(OTHERS, paired=False)])
def test_difference_without_common_items_adds_the_errors(other: TaskScore) -> None:
    ours = task(VALUES, paired=other.paired)

    got = difference(Scored({"a": ours}), Scored({"a": other}))

    assert got.mean == 0.5
    assert got.stderr == pytest.approx(math.hypot(ours.stderr, other.stderr))


def test_pairing_tells_apart_what_separate_errors_cannot() -> None:
    hard = tuple(float(number % 2) for number in range(100))
    better = tuple(value + 0.01 for value in hard)

    got = difference(Scored({"a": task(better)}), Scored({"a": task(hard)}))

    assert got.sigmas > 100
    assert got.mean / math.hypot(task(better).stderr, task(hard).stderr) < 1


@pytest.mark.parametrize(("gap", "sigmas"), [(0.5, math.inf), (-0.5, -math.inf), (0.0, 0.0)])
def test_constant_gap_is_certain(gap: float, sigmas: float) -> None:
    ours = tuple(value + gap for value in OTHERS)

    assert difference(Scored({"a": task(ours)}), Scored({"a": task(OTHERS)})).sigmas == sigmas


def test_an_error_that_is_unknown_makes_nothing_clear() -> None:
    unknown = Difference(0.5, math.nan)

    assert unknown.sigmas == 0.0 and not unknown.clear
    assert Difference(0.5, 0.25).clear and not Difference(0.5, 0.26).clear


def test_a_child_is_compared_with_the_mean_of_its_parents_item_by_item() -> None:
    child, mother, father = (Scored({"a": task(values)}) for values in (VALUES, OTHERS, (1.0, 1.0, 0.0, 1.0)))

    got = difference(child, mother, father)

    gaps = np.array(VALUES) - (np.array(OTHERS) + np.array([1.0, 1.0, 0.0, 1.0])) / 2
    assert got.mean == pytest.approx(gaps.mean())
    assert got.stderr == pytest.approx(np.std(gaps, ddof=1) / 2)


def test_parents_that_cannot_be_paired_have_the_error_of_their_mean() -> None:
    child, parents = task(VALUES, paired=False), [task(OTHERS, paired=False), task(VALUES, paired=False)]

    got = task_difference(child, *parents)

    assert got.mean == pytest.approx(child.score - (parents[0].score + parents[1].score) / 2)
    assert got.stderr == pytest.approx(math.sqrt(child.stderr**2 + (parents[0].stderr ** 2 + parents[1].stderr ** 2) / 4))
