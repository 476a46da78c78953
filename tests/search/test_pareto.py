"""Fronts and crowding against the definitions of the NSGA-II paper, written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kinray.core.statistics import Float64
from kinray.search.pareto import crowded_order, crowding, fronts

coarse = st.integers(0, 4).map(float)
tables = st.tuples(st.integers(1, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=coarse)
)


def dominates(one: Float64, other: Float64) -> bool:
    """Say whether a model is as good on every task and better on one."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and any(a > b for a, b in zip(one, other, strict=True))


@given(tables)
def test_a_front_is_what_nothing_left_dominates(scores: Float64) -> None:
    left, expected, rank = set(range(len(scores))), dict.fromkeys(range(len(scores)), -1), 0
    while left:
        front = {i for i in left if not any(dominates(scores[j], scores[i]) for j in left)}
        expected |= dict.fromkeys(front, rank)
        left, rank = left - front, rank + 1

    assert fronts(scores).tolist() == list(expected.values())


@given(st.integers(2, 10), st.integers(1, 4), st.integers(0, 1000))
def test_crowding_distance_is_that_of_the_papers_pseudocode(models: int, tasks: int, seed: int) -> None:
    scores = np.random.default_rng(seed).random((models, tasks))
    distance = [0.0] * models
    for task in range(tasks):
        order = sorted(range(models), key=lambda model: scores[model, task])
        distance[order[0]] = distance[order[-1]] = math.inf
        for i in range(1, models - 1):
            gap = scores[order[i + 1], task] - scores[order[i - 1], task]
            distance[order[i]] += gap / (scores[:, task].max() - scores[:, task].min())

    assert crowding(scores) == pytest.approx(distance)


def test_crowding_of_a_front_by_hand() -> None:
    scores = np.array([[0.0, 1.0], [0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])

    assert crowding(scores).tolist() == [math.inf, 0.5 + 0.5, 0.75 + 0.75, math.inf]


def test_copies_of_a_model_are_crowded_whole() -> None:
    scores = np.array([[0.0, 1.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])

    assert crowding(scores).tolist() == [math.inf, 0.0, 2.0, math.inf, 0.0]
    assert crowding(np.ones((2, 3))).tolist() == [math.inf, 0.0]


def test_a_task_that_all_have_the_same_score_on_sets_nobody_apart() -> None:
    scores = np.array([[0.5, 0.0], [0.5, 0.25], [0.5, 1.0]])

    assert crowding(scores).tolist() == [math.inf, 1.0, math.inf]


def test_fronts_come_before_crowding_and_the_given_order_last() -> None:
    scores = np.array([[0.9, 0.0], [0.5, 0.5], [0.6, 0.4], [0.0, 0.9], [0.4, 0.4], [0.5, 0.5]])

    # Model 2 lies nearer to the end that is further off; 5 copies 1; 4 is dominated.
    assert crowded_order(scores) == [0, 3, 1, 2, 5, 4]


@given(tables, st.randoms(use_true_random=False))
def test_the_order_is_of_all_models_once_and_by_front(scores: Float64, shuffle: object) -> None:
    order = crowded_order(scores)

    assert sorted(order) == list(range(len(scores)))
    assert sorted(fronts(scores).tolist()) == fronts(scores)[order].tolist()


@given(st.integers(1, 10), st.integers(2, 4), st.randoms(use_true_random=False))
def test_how_models_are_numbered_does_not_change_their_order(models: int, tasks: int, shuffle: object) -> None:
    scores = np.random.default_rng(models).random((models, tasks))
    numbers = np.random.default_rng(tasks).permutation(models)
    distances = crowding(scores)

    assert crowding(scores[numbers]) == pytest.approx(distances[numbers])
    assert (fronts(scores[numbers]) == fronts(scores)[numbers]).all()
