"""What may be configured of merge methods, and what each mistake is told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.config import MergeConfig, Range
from kinray.core.filters import FILTERS
from kinray.core.methods import METHODS
from kinray.core.parameters import Varied
from kinray.core.recipe import Merge, from_text, to_text
from kinray.errors import ConfigError
from kinray.search.space import MethodSpace, search_space
from tests.helpers import founder


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


# -- layers and filters

FOUR = {**RANGE, "layers": 4}


def test_each_knot_of_each_filter_of_each_parent_is_a_dimension() -> None:
    assert keys("slerp", t=FOUR) == ["t.0", "t.1", "t.2", "t.3"]
    assert keys("slerp", t={"rest": RANGE, "attention": {**RANGE, "layers": 2}}) == ["t.attention.0", "t.attention.1", "t.rest"]
    assert keys("ties", weight={"models": [{"mlp": {**RANGE, "layers": 2}}, {**RANGE, "layers": 2}]}) == [
        *("weight.0.mlp.0", "weight.0.mlp.1"),
        *("weight.1.0", "weight.1.1"),
    ]
    assert keys("ties", density={"attention": [0.2, 0.4], "mlp": 0.5}) == ["density.0.attention", "density.1.attention"]


def test_knots_keep_the_range_that_was_given() -> None:
    (first, *_) = space("slerp", t={"low": 0.01, "high": 1, "log": True, "layers": 2}).free

    assert first.free == Range(low=0.01, high=1, log=True)


def test_knots_become_values_that_vary() -> None:
    values = iter([0.1, 0.2, 0.3])

    params = space("slerp", t={"mlp": {**RANGE, "layers": 2}, "rest": {"layers": [0.5, RANGE]}}).params(lambda _: next(values))

    t = params["t"]
    assert isinstance(t, Varied)
    assert [t.at("layers.3.mlp.up_proj.weight", depth) for depth in (0.0, 0.5, 1.0)] == [0.1, pytest.approx(0.15), 0.2]
    assert [t.at("layers.3.moe.gate.weight", depth) for depth in (0.0, 1.0)] == [0.1, 0.2]
    assert [t.at("layers.3.self_attn.q_proj.weight", depth) for depth in (0.0, 1.0)] == [0.5, 0.3]


def test_tensors_of_no_filter_have_the_default() -> None:
    params = space("slerp", t={"attention": 0.25}).params(lambda _: pytest.fail("nothing is open"))
    depths = {"layers.0.self_attn.q_proj.weight": 0.0, "layers.0.mlp.up_proj.weight": 0.0}

    assert [one["t"] for one in METHODS["slerp"].per_tensor(params, 2, depths)] == [0.25, 0.5]


def test_a_switch_may_differ_by_filter() -> None:
    params = space("nuslerp", nuslerp_flatten={"attention": False, "rest": [True, False]}).params(lambda _: True)

    assert params["nuslerp_flatten"] == Varied((*((word, (False,)) for word in FILTERS["attention"]), ("", (True,))))


EVERYWHERE = {
    "weight": {"models": [{"attention": {**RANGE, "layers": 3}, "rest": [0.2, 0.4]}, FOUR]},
    "density": {"mlp": RANGE, "attention": {"layers": [0.3, RANGE]}},
    "lambda": FOUR,
    "normalize": {"mlp": [True, False]},
}


@given(st.data())
@pytest.mark.parametrize("names", [None, ["layers.0.self_attn.q.weight", "layers.0.mlp.up.weight", "norm.weight"]])
def test_every_number_is_read_back_from_saved_parameters(names: list[str] | None, data: st.DataObject) -> None:
    ties = space("ties", **EVERYWHERE) if names is None else space("ties", **EVERYWHERE).fitted(names)
    assert len({dimension.key for dimension in ties.free}) == len(ties.free) == 3 + 1 + 4 + 2 * (1 + 1) + 4 + 1
    values = {
        one.key: data.draw(st.floats(one.free.low, one.free.high) if isinstance(one.free, Range) else st.sampled_from(one.free))
        for one in ties.free
    }

    params = ties.params(lambda dimension: values[dimension.key])
    recipe = Merge("ties", (founder("a"), founder("b")), params, founder("base"))
    saved = from_text(to_text(recipe))

    assert isinstance(saved, Merge)
    assert {dimension.key: ties.value(saved.params, dimension) for dimension in ties.free} == values


def test_filters_keep_the_words_that_a_models_tensors_have() -> None:
    fitted = space("slerp", t={"attention": 0.1, "mlp": 0.2, "rest": 0.3}).fitted(["a.self_attn.q.weight", "a.mlp.up.weight"])

    assert fitted.params(lambda _: 0.0) == {"t": Varied((("attn.", (0.1,)), ("mlp.", (0.2,)), ("", (0.3,))))}


def test_a_filter_that_fits_no_tensor_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"merge.methods: Parameter 'weight' of 'ties' has a value for 'attention', but no tensor of the base is such: "
        r"none has 'attn\.', 'attention\.', 'Attention\.' in its name",
    ):
        space("ties", weight={"attention": 0.5}).fitted(["layers.0.mixer.weight", "layers.0.mlp.weight"])


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
        ("slerp", {"t": {"low": 0, "high": 1.5, "layers": 3}}, "'t' of 'slerp' is 1.5. It must be from 0 to 1"),
        ("slerp", {"t": {"layers": [0.5, 1, 1.5]}}, "'t' of 'slerp' is 1.5"),
        ("slerp", {"t": {"mlp": {"layers": [0.5, {"low": -1, "high": 1}]}}}, "'t' of 'slerp' is -1"),
        ("slerp", {"t": {"mlp": True}}, "'t' of 'slerp' is True. It must be a finite number"),
        ("ties", {"normalize": {"layers": [True, False]}}, "'normalize' of 'ties' is true or false, so it cannot change over"),
        ("ties", {"normalize": FOUR}, "'normalize' of 'ties' is true or false, so it cannot change over layers. Give it one"),
        ("ties", {"normalize": {"mlp": FOUR}}, "true or false, so it cannot change over layers"),
        ("ties", {"normalize": {"mlp": 1}}, "'normalize' of 'ties' is 1.0. It must be true or false"),
        (
            "ties",
            {"weight": {**RANGE, "layers": 200}, "lambda": {**RANGE, "layers": 200}},
            "'ties' has 600 open numbers, at most 512 can be searched. Give its ranges fewer layers",
        ),
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
