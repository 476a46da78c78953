"""Hyperparameters that vary over a model, against numpy's interpolation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.core.parameters import Varied
from kinray.core.recipe import Merge, from_nodes, from_text, to_text
from kinray.errors import RecipeError
from tests.helpers.recipes import founder, merge, nodes_of

A, B = founder("a"), founder("b")
finite = st.floats(-4, 4)
words = st.text(st.characters(codec="ascii"), max_size=6)
knots = st.lists(finite, min_size=1, max_size=6).map(tuple) | st.booleans().map(lambda value: (value,))
varied = st.lists(st.tuples(words, knots), min_size=1, max_size=5).map(lambda cases: Varied(tuple(cases)))


@given(st.lists(finite, min_size=1, max_size=8), st.floats(0, 1))
def test_knots_are_interpolated_linearly(values: list[float], depth: float) -> None:
    expected = np.interp(depth * (len(values) - 1), np.arange(len(values)), values)

    assert Varied((("", tuple(values)),)).at("any", depth) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(st.lists(finite, min_size=1, max_size=8), st.integers(0, 300), st.integers(1, 300))
def test_values_stay_between_the_knots(values: list[float], layer: int, last: int) -> None:
    value = Varied((("", tuple(values)),)).at("any", min(layer, last) / last)

    assert value is not None
    assert min(values) <= value <= max(values)


def test_first_case_whose_word_is_in_the_name_counts() -> None:
    value = Varied((("attn", (0.1,)), ("q_proj", (0.2,)), ("mlp", (0.3, 0.5))))

    assert value.at("layers.0.attn.q_proj", 0.5) == 0.1
    assert value.at("layers.0.mlp.up", 0.5) == pytest.approx(0.4)
    assert value.at("norm", 0.5) is None


@given(varied)
def test_varied_values_round_trip_through_recipes(value: Varied) -> None:
    recipe = Merge("ties", (A, B), {"density": (value, 0.5), "lambda": value})

    back = from_text(to_text(recipe))

    assert back == recipe
    assert isinstance(back, Merge)
    assert back.params["lambda"] == value
    assert hash(back.params["lambda"]) == hash(value)


def test_form_in_a_recipe_is_pinned() -> None:
    recipe = merge("slerp", A, B, t=Varied((("attn", (0, 0.5)), ("", (1,)))))

    assert nodes_of(recipe)[-1]["params"] == {
        "t": {"cases": [{"filter": "attn", "value": [0.0, 0.5]}, {"value": [1.0]}]}
    }  # fmt: skip
    assert recipe.digest != merge("slerp", A, B, t=Varied((("attn", (0, 0.5)), ("", (0.9,))))).digest


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"low": 0}, "it holds {'low': 0}. A value that varies is written"),
        ({"cases": [], "more": 1}, "A value that varies is written"),
        ({"cases": {}}, "A value that varies is written"),
        ({"cases": []}, "it has 0 cases. Give it between 1 and 64"),
        ({"cases": [{"value": [1]}] * 65}, "it has 65 cases"),
        ({"cases": [{"value": []}]}, "a case has 0 knots. Give it between 1 and 256"),
        ({"cases": [{"value": [0.5] * 257}]}, "a case has 257 knots"),
        ({"cases": [7]}, "a case is 7. It must be written"),
        ({"cases": [{"value": 1}]}, "a case is {'value': 1}"),
        ({"cases": [{"filter": 1, "value": [1]}]}, "a case is {'filter': 1"),
        ({"cases": [{"filters": "x", "value": [1]}]}, "a case is {'filters'"),
        ({"cases": [{"value": [1, True]}]}, "a knot is True. Knots must be finite numbers, or one truth value"),
        ({"cases": [{"value": [float("nan")]}]}, "a knot is nan"),
        ({"cases": [{"value": [10**400]}]}, "a knot is 1000"),
        ({"cases": [{"value": ["x"]}]}, "a knot is 'x'"),
        ({"cases": [{"value": [[1]]}]}, r"a knot is \[1\]"),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["global", "per model"])
def test_malformed_varied_values_are_refused(value: Any, message: str, nested: bool) -> None:
    nodes = [*nodes_of(merge("slerp", A, B))[:2], {"method": "slerp", "parents": [0, 1]}]
    nodes[2] = nodes[2] | {"params": {"t": [value, 0.5] if nested else value}}

    with pytest.raises(RecipeError, match=f"Parameter 't' of 'slerp' is not readable: .*{message}"):
        from_nodes(nodes)
