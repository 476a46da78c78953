"""Levels, gradients and filters of parameters, against mergekit's documented rules read one tensor at a time."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.core.layers import depths
from kinray.core.methods import method_named
from kinray.errors import RecipeError
from kinray.merge.settings import params_of

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{n}.{kind}.weight" for n in range(4) for kind in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj")),
    "model.norm.weight",
]
DEPTHS = depths(NAMES)


def evaluate(setting: Any, name: str, depth: float) -> Any:
    """Value of one setting in a tensor: a number, a gradient, or the first filter that fits; None where none does."""
    if not isinstance(setting, list):
        return setting
    if not isinstance(setting[0], dict):
        place = depth * (len(setting) - 1)
        left = min(int(place), len(setting) - 1)
        right = min(left + 1, len(setting) - 1)
        return setting[left] + (place - left) * (setting[right] - setting[left])
    for case in setting:
        if case.get("filter") in (None, "*") or case["filter"] in name:
            return evaluate(case["value"], name, depth)
    return None


def look_up(levels: list[dict[str, Any]], parameter: str, name: str, depth: float, default: float) -> Any:
    """Ask the innermost level first; one that says nothing of a tensor leaves it to the next."""
    for level in levels:
        if parameter in level and (value := evaluate(level[parameter], name, depth)) is not None:
            return value
    return default


NUMBERS = st.floats(-2, 2, allow_subnormal=False)
GRADIENTS = st.lists(NUMBERS, min_size=1, max_size=5)
CASES = st.fixed_dictionaries(
    {"value": NUMBERS | GRADIENTS},
    optional={"filter": st.sampled_from(["attn", "mlp", "q_proj", "layers.2.", "norm", "nowhere", "*", None])},
)
SETTINGS = NUMBERS | GRADIENTS | st.lists(CASES, min_size=1, max_size=4)
LEVELS = st.fixed_dictionaries({}, optional={"weight": SETTINGS})


@given(own=st.lists(LEVELS, min_size=1, max_size=3), of_slice=LEVELS, of_merge=LEVELS)
def test_per_model_values_are_looked_up_from_the_model_outwards(
    own: list[dict[str, Any]], of_slice: dict[str, Any], of_merge: dict[str, Any]
) -> None:
    method = method_named("task_arithmetic")

    params = method.per_tensor(params_of(method, [of_slice, of_merge], own), len(own), DEPTHS)

    for (name, depth), here in zip(DEPTHS.items(), params, strict=True):
        expected = [look_up([level, of_slice, of_merge], "weight", name, depth, 1.0) for level in own]
        assert here["weight"] == pytest.approx(tuple(expected), abs=1e-12)


@given(of_slice=LEVELS, of_merge=LEVELS)
def test_global_values_are_looked_up_in_the_slice_and_then_in_the_merge(
    of_slice: dict[str, Any], of_merge: dict[str, Any]
) -> None:
    method = method_named("task_arithmetic")
    shared = [{name.replace("weight", "lambda"): value for name, value in level.items()} for level in (of_slice, of_merge)]

    params = method.per_tensor(params_of(method, shared, [{}, {}]), 2, DEPTHS)

    for (name, depth), here in zip(DEPTHS.items(), params, strict=True):
        assert here["lambda"] == pytest.approx(look_up(shared, "lambda", name, depth, 1.0), abs=1e-12)


def test_nothing_given_leaves_the_defaults() -> None:
    assert params_of(method_named("ties"), [{}, {}], [{}, {}]) == {}


@pytest.mark.parametrize("value", [True, False, [{"filter": "attn", "value": True}, {"value": False}]])
def test_switches_may_be_plain_or_have_filters(value: Any) -> None:
    method = method_named("linear")

    params = method.per_tensor(params_of(method, [{"normalize": value}], [{}]), 1, DEPTHS)

    for name, here in zip(DEPTHS, params, strict=True):
        assert here["normalize"] is evaluate(value, name, 0.0)


@pytest.mark.parametrize("method", ["ties", "slerp", "model_stock", "linear"])
def test_int8_mask_changes_nothing_at_any_level(method: str) -> None:
    declared = method_named(method)

    assert params_of(declared, [{"int8_mask": True}], [{"int8_mask": True}, {}]) == {}


@pytest.mark.parametrize(
    ("shared", "own", "message"),
    [
        ([{"wieght": 1}], [{}], "'ties' has no parameter 'wieght'. Did you mean 'weight'"),
        ([], [{"dense": 1}], "'ties' has no parameter 'dense'. Did you mean 'density'"),
        ([], [{"normalize": True}], "'normalize' of 'ties' has one value for all models. Move it"),
        ([{"weight": None}], [{}], "'weight' is None. Give it a number"),
        ([{"weight": "0.5"}], [{}], "'weight' is '0.5'. Give it a number"),
        ([{"weight": []}], [{}], r"'weight' is \[\]. Give it a number"),
        ([{"weight": [0.5, "x"]}], [{}], r"'weight' is \[0.5, 'x'\]. Give it a number"),
        ([{"weight": [True, False]}], [{}], "Give it a number, true or false, a list of numbers"),
        ([{"weight": [float("nan")]}], [{}], "Give it a number"),
        ([{"weight": [{"filter": "mlp"}]}], [{}], "A case is written {filter: WORD, value: VALUE}"),
        ([{"weight": [{"filter": "mlp", "vlaue": 1}]}], [{}], "A case is written"),
        ([{"weight": [{"filter": 3, "value": 1}]}], [{}], "has the filter 3. A filter is a part of tensors' names"),
        ([{"weight": [{"filter": False, "value": 1}]}], [{}], "has the filter False"),
        ([{"weight": [{"filter": f"{n}", "value": n} for n in range(65)]}], [{}], "'weight': it has 65 cases"),
        ([{"weight": [0.0] * 257}], [{}], "'weight': a case has 257 knots"),
    ],
)
def test_values_that_say_nothing_are_refused(shared: list[Any], own: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        params_of(method_named("ties"), shared, own)


def test_value_out_of_range_is_refused_wherever_it_is() -> None:
    method = method_named("ties")
    params = params_of(method, [{"density": [{"filter": "mlp", "value": [0.5, 1.5]}, {"value": 0.5}]}], [{}])

    with pytest.raises(RecipeError, match=r"'density' of 'ties' is 1.5. It must be from 0 to 1"):
        method.resolve(params, 1)
