"""Parameters that are checked together, against DELLA's rule applied at every depth."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinray.config import MergeConfig, Range
from kinray.core.methods import METHODS, Params
from kinray.errors import ConfigError, RecipeError
from kinray.search.dimensions import Number, Setting
from kinray.search.space import search_space
from kinray.search.together import check_together

DELLA = METHODS["della"]

# Sixteenths at depths of quarters, so that nothing is rounded.


def numbers(top: int) -> st.SearchStrategy[Number]:
    given = st.integers(0, top).map(lambda number: number / 16)
    ranges = st.lists(st.integers(0, top), min_size=2, max_size=2, unique=True).map(
        lambda ends: Range(low=min(ends) / 16, high=max(ends) / 16)
    )
    return st.one_of(given, ranges)


def knots(top: int) -> st.SearchStrategy[tuple[Number, ...]]:
    return st.sampled_from([1, 2, 3, 5]).flatmap(lambda count: st.tuples(*[numbers(top)] * count))


def ends_at(row: Sequence[Number], depth: float) -> tuple[float, float]:
    """Interpolate the ends of the ranges at a depth."""
    lows, highs = zip(*((one.low, one.high) if isinstance(one, Range) else (one, one) for one in row), strict=True)
    place = depth * (len(row) - 1)
    return float(np.interp(place, range(len(row)), lows)), float(np.interp(place, range(len(row)), highs))  # type: ignore[arg-type]


def breaks_the_rule(densities: Sequence[Number], epsilons: Sequence[Number]) -> bool:
    """Look for a density between 0 and 1 that an epsilon reaches out of, at many depths, some of them just beside the knots."""
    depths = np.linspace(0, 1, 257)
    for depth in np.clip(np.concatenate([depths, depths - 2.0**-30, depths + 2.0**-30]), 0, 1):
        low, high = ends_at(densities, depth)
        _, epsilon = ends_at(epsilons, depth)
        least, most = max(low, 2.0**-40), min(high, 1 - 2.0**-40)
        if least <= most and low < 1 and high > 0 and (least - epsilon <= 0 or most + epsilon >= 1):
            return True
    return False


@settings(max_examples=300)
@given(knots(16), knots(8))
def test_a_space_is_refused_exactly_when_some_child_would_break_the_rule(
    densities: tuple[Number, ...], epsilons: tuple[Number, ...]
) -> None:
    own = [Setting("density", 1, {"": densities}), Setting("epsilon", 1, {"": epsilons})]
    try:
        check_together(DELLA, own, parents=2)
        refused = False
    except RecipeError:
        refused = True

    assert refused == breaks_the_rule(densities, epsilons)


def test_many_knots_take_few_checks() -> None:
    checks = 0

    def count(params: Params) -> None:
        nonlocal checks
        checks += 1
        assert params["density"], params["epsilon"]

    four = (Range(low=0.4, high=0.6),) * 4
    own = [Setting(name, parent, {"": four}) for name in ("density", "epsilon", "weight") for parent in range(2)]

    check_together(replace(DELLA, check=count), own, parents=2)

    assert 0 < checks < 10_000  # all corners of density and epsilon: 2 ** 16, with weight 2 ** 24


def space(**params: Any) -> None:
    search_space(MergeConfig(methods={"della": params}).methods)


def test_the_longest_gradients_are_checked_in_no_time() -> None:
    start = perf_counter()

    space(density={"low": 0.3, "high": 0.6, "layers": 101}, epsilon={"low": 0.1, "high": 0.2, "layers": 99})

    assert perf_counter() - start < 5


@pytest.mark.parametrize(
    "params",
    [
        {"density": {"low": 0.2, "high": 0.8, "layers": 4}, "epsilon": 0.15},
        {"density": {"layers": [0.1, 0.5]}, "epsilon": {"layers": [0.05, 0.4]}},
        {"density": {"mlp": 0.1, "rest": 0.5}, "epsilon": {"mlp": 0.05, "rest": 0.3}},
        {"density": {"models": [0.1, 0.5]}, "epsilon": {"models": [0.05, 0.3]}},
        {"density": [0, 0.5, 1]},
        {"density": {"attention": 0.5}},
    ],
)
def test_what_goes_together_where_it_meets_is_taken(params: dict[str, Any]) -> None:
    space(**params)


@pytest.mark.parametrize(
    ("params", "reached"),
    [
        ({"density": {"low": 0, "high": 1}}, "-0.15"),
        ({"density": {"layers": [0, 0.5]}}, "-0.15"),
        ({"density": {"layers": [[0, 0.5], [0, 0.5]]}}, "-0.15"),
        ({"density": {"layers": [0.5, 0.1, 0.5]}}, "-0.05"),
        ({"density": {"layers": [0.1, 0.5]}, "epsilon": {"layers": [0.05, 0.4, 0.05]}}, "-0.1"),
        ({"density": {"mlp": 0.1, "rest": 0.5}}, "-0.05"),
        ({"density": {"mlp": 0.1, "rest": 0.5}, "epsilon": {"attention": 0.05}}, "-0.05"),
        ({"density": {"models": [0.5, 0.1]}}, "-0.05"),
        ({"density": 0.3, "epsilon": {"attention": {"low": 0.1, "high": 0.4, "layers": 3}, "rest": 0.1}}, "-0.1"),
    ],
)
def test_what_breaks_the_rule_somewhere_is_refused(params: dict[str, Any], reached: str) -> None:
    with pytest.raises(ConfigError, match=f"merge.methods: .*density − epsilon = {reached}"):
        space(**params)
