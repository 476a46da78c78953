"""What may be configured of merge methods, and what each mistake is told."""

from typing import Any

import pytest

from kinray.config import MergeConfig
from kinray.errors import ConfigError
from kinray.search.space import MethodSpace, search_space


def space(method: str, **params: Any) -> MethodSpace:
    (only,) = search_space(MergeConfig(methods={method: params}).methods)
    return only


def keys(method: str, **params: Any) -> list[str]:
    return [dimension.key for dimension in space(method, **params).free]


RANGE = {"low": 0.1, "high": 0.9}


def test_fixed_values_leave_nothing_open() -> None:
    ties = space("ties", density=0.5, normalize=False, weight={"models": [1, 2]})

    assert ties.free == ()
    assert ties.params(lambda _: pytest.fail("nothing is open")) == {
        "density": (0.5, 0.5), "normalize": False, "weight": (1.0, 2.0),
    }  # fmt: skip


def test_range_of_a_parameter_for_each_model_is_one_dimension_a_parent() -> None:
    assert keys("ties", density=RANGE, **{"lambda": RANGE}) == ["density.0", "density.1", "lambda"]


def test_parents_may_be_configured_one_by_one() -> None:
    ties = space("ties", weight={"models": [1, RANGE]}, density={"models": [[0.25, 0.5], 1]})

    assert [dimension.key for dimension in ties.free] == ["weight.1", "density.0"]
    assert ties.params(lambda _: 0.25) == {"weight": (1.0, 0.25), "density": (0.25, 1.0)}


def test_open_values_are_read_back_from_a_childs_parameters() -> None:
    ties = space("ties", weight=RANGE, normalize=[True, False], **{"lambda": RANGE})
    values = {"weight.0": 0.2, "weight.1": 0.3, "lambda": 0.4, "normalize": False}

    params = ties.params(lambda dimension: values[dimension.key])

    assert {dimension.key: ties.value(params, dimension) for dimension in ties.free} == values


def test_defaults_are_left_to_the_method() -> None:
    assert space("slerp").params(lambda _: 0.0) == {}


@pytest.mark.parametrize(
    ("method", "params", "message"),
    [
        ("slirp", {}, "no merge method 'slirp'. Did you mean 'slerp'"),
        ("slerp", {"s": 0.5}, "'slerp' has no parameter 's'.* Known: t"),
        ("ties", {"densty": 0.5}, "Did you mean 'density'"),
        ("slerp", {"t": 1.5}, "'t' of 'slerp' is 1.5. It must be from 0 to 1"),
        ("slerp", {"t": {"low": 0.5, "high": 1.5}}, "'t' of 'slerp' is 1.5. It must be from 0 to 1"),
        ("slerp", {"t": {"low": -0.1, "high": 1}}, "'t' of 'slerp' is -0.1"),
        ("slerp", {"t": [0.5, 2]}, "'t' of 'slerp' is 2"),
        ("slerp", {"t": [0.5, True]}, "'t' of 'slerp' is True. It must be a finite number"),
        ("slerp", {"t": True}, "'t' of 'slerp' is True"),
        ("slerp", {"t": {"models": [0.5, 0.5]}}, "'t' of 'slerp' has one value for all models"),
        ("ties", {"density": {"models": [0.5]}}, "'density' of 'ties' has 1 values. A mating has 2 parents: give it 2"),
        ("ties", {"density": {"models": [0.5, 0.5, 0.5]}}, "has 3 values"),
        ("ties", {"density": {"models": [0.5, 1.5]}}, "'density' of 'ties' is 1.5"),
        (
            "ties",
            {"normalize": RANGE},
            "'normalize' of 'ties' is true or false. Give it a list of choices, not a range",
        ),
        ("ties", {"normalize": 1}, "'normalize' of 'ties' is 1.0. It must be true or false"),
        ("passthrough", {}, "'passthrough' takes 1 model, but a mating has 2 parents. Remove it"),
        ("della", {"density": RANGE}, "from density − epsilon = -0.05"),
        ("della", {"density": 0.5, "epsilon": {"low": 0.1, "high": 0.5}}, "lower epsilon"),
        ("ties", {"normalize": [True, 0]}, "'normalize' of 'ties' is 0.0. It must be true or false"),
    ],
)
def test_mistakes_are_config_errors(method: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"merge.methods: .*{message}"):
        space(method, **params)


def test_della_takes_ranges_whose_extremes_go_together() -> None:
    assert keys("della", density={"low": 0.3, "high": 0.7}, epsilon={"low": 0.05, "high": 0.2}) == [
        *("density.0", "density.1"),
        *("epsilon.0", "epsilon.1"),
    ]
