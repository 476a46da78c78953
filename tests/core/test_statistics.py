"""Sufficient statistics: they add, in any order, to what one pass would have given."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinray.core.statistics import Statistics

MODELS = ("base", "a", "b")
Rows = npt.NDArray[np.float64]

# Whole numbers, so that float64 sums are exact and equality means equality.
rows = hnp.arrays(np.float64, st.tuples(st.just(3), st.integers(0, 9)), elements=st.integers(-99, 99).map(float))
tensors = st.dictionaries(st.sampled_from("pqrst"), rows, max_size=4)


def one_pass(tensors: Mapping[str, Rows]) -> Statistics:
    """Compute the statistics of (3, n) rows per tensor with plain numpy."""
    return Statistics(
        MODELS,
        tuple(tensors),
        np.array([values.shape[1] for values in tensors.values()], np.int64),
        np.array([values.sum(1) for values in tensors.values()]).reshape(-1, 3),
        np.array([values @ values.T for values in tensors.values()]).reshape(-1, 3, 3),
    )


def assert_same(a: Statistics, b: Statistics) -> None:
    order = [b.tensors.index(name) for name in a.tensors]
    assert sorted(a.tensors) == sorted(b.tensors)
    assert a.models == b.models
    np.testing.assert_array_equal(a.count_T, b.count_T[order])
    np.testing.assert_array_equal(a.sums_TM, b.sums_TM[order])
    np.testing.assert_array_equal(a.gram_TMM, b.gram_TMM[order])


@given(tensors, tensors)
def test_sum_is_what_one_pass_over_both_gives(left: dict[str, Rows], right: dict[str, Rows]) -> None:
    nothing = np.zeros((3, 0))
    both = {name: np.hstack([left.get(name, nothing), right.get(name, nothing)]) for name in {**left, **right}}

    assert_same(one_pass(left) + one_pass(right), one_pass(both))


@given(tensors, tensors, tensors)
def test_order_and_grouping_of_sums_do_not_matter(a: dict[str, Rows], b: dict[str, Rows], c: dict[str, Rows]) -> None:
    x, y, z = one_pass(a), one_pass(b), one_pass(c)

    assert_same((x + y) + z, z + (y + x))
    assert_same((x + y) + z, x + (y + z))


@given(tensors)
def test_statistics_of_nothing_change_nothing(some: dict[str, Rows]) -> None:
    statistics = one_pass(some)

    assert_same(statistics + Statistics.zeros(MODELS, statistics.tensors), statistics)


@given(tensors)
def test_adding_leaves_the_parts_as_they_were(some: dict[str, Rows]) -> None:
    left, right = one_pass(some), one_pass(some)
    _ = left + right

    assert_same(left, one_pass(some))
    assert_same(right, one_pass(some))


def test_select_keeps_the_models_that_are_named_in_their_order() -> None:
    values = np.arange(12.0).reshape(3, 4)

    chosen = one_pass({"p": values}).select(["b", "base"])

    assert chosen.models == ("b", "base")
    np.testing.assert_array_equal(chosen.sums_TM[0], values[[2, 0]].sum(1))
    np.testing.assert_array_equal(chosen.gram_TMM[0], values[[2, 0]] @ values[[2, 0]].T)


def test_statistics_of_different_models_do_not_add() -> None:
    with pytest.raises(AssertionError, match="different models do not add"):
        _ = Statistics.zeros(("base", "a"), ()) + Statistics.zeros(("base", "b"), ())
