"""What a configuration may say, and the sentence that each mistake gets."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.config import Config, EvaluationConfig, Filters, LayeredRange, Layers, PerModel, Range, parse_config
from kinray.errors import ConfigError

LEAST: dict[str, Any] = {"base": "models/base", "founders": ["models/math", "models/chat"], "tasks": ["arc_easy"]}


def parse(**more: Any) -> Config:
    return parse_config({**LEAST, **more})


def test_least_configuration_has_the_papers_defaults() -> None:
    config = parse()

    assert [founder.name for founder in config.founders] == ["math", "chat"]
    assert [(task.name, task.weight) for task in config.tasks] == [("arc_easy", 1.0)]
    assert (config.search.policy, config.search.k, config.search.kinship) == ("kinship", 3, "pcc")
    assert config.search.mate_pool == "population"
    assert config.merge.methods == {"slerp": {"t": 0.5}}


FULL: dict[str, Any] = {
    **LEAST,
    "base_revision": "main",
    "founders": ["hub/math", {"adapter": "adapters/chat/", "name": "chat"}, {"model": "x/code", "revision": "abc"}],
    "tasks": [
        "arc_easy",
        {"name": "ppl", "scale": [20, 3], "weight": 2, "num_fewshot": 0, "limit": 50, "metric": "m,f"},
    ],
    "task_paths": ["tasks"],
    "search": {"policy": "random", "k": 5, "kinship": "cs", "stop_kinship": 0.9, "max_children": 7, "max_hours": 0.5},
    "merge": {
        "methods": {
            "slerp": {"t": {"low": 0.1, "high": 0.9}},
            "ties": {
                "weight": {"models": [1, {"low": 0.1, "high": 2, "log": True}]},
                "density": [0.2, 0.5, 1],
                "normalize": [True, False],
            },
            "linear": None,
            "sce": {"select_topk": {"low": 0.1, "high": 1, "layers": 4}},
            "karcher": {"tol": {"layers": [1e-6, {"low": 1e-6, "high": 1e-5}, [1e-5, 1e-4]]}},
            "della": {
                "density": {
                    "models": [0.5, {"mlp": [0.4, 0.5], "attention": {"low": 0.4, "high": 0.6, "layers": 3}, "rest": 1}]
                }
            },
        },
        "dtype": "float32",
    },
    "evaluation": {"batch_size": 4, "holdout": 0, "max_length": 512},
    "cluster": {"evaluators": 3, "shards": "auto", "retries": 0, "parent_cache_gb": 1.5},
    "seed": 7,
}


@pytest.mark.parametrize(
    "data", [LEAST, FULL, LEAST | {"merge": {"methods": ["slerp", "linear"]}}], ids=["least", "full", "list"]
)
def test_what_is_saved_reads_back_as_it_was(data: dict[str, Any]) -> None:
    config = parse_config(data)

    assert parse_config(config.model_dump(mode="json")) == config


def test_forms_of_a_hyperparameter() -> None:
    ties = parse_config(FULL).merge.methods["ties"]

    assert ties["weight"] == PerModel(models=[1.0, Range(low=0.1, high=2, log=True)])
    assert ties["density"] == [0.2, 0.5, 1.0]
    assert ties["normalize"] == [True, False]
    assert parse_config(FULL).merge.methods["sce"]["select_topk"] == LayeredRange(low=0.1, high=1, layers=4)
    assert parse_config(FULL).merge.methods["karcher"]["tol"] == Layers(layers=[1e-6, Range(low=1e-6, high=1e-5), [1e-5, 1e-4]])
    assert parse_config(FULL).merge.methods["della"]["density"] == PerModel(
        models=[0.5, Filters(attention=LayeredRange(low=0.4, high=0.6, layers=3), mlp=[0.4, 0.5], rest=1.0)]
    )
    assert parse_config(FULL).merge.methods["linear"] == {}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ({"serch": {}}, "'serch'. Did you mean 'search'"),
        ({"search": {"max_childs": 3}}, "'search.max_childs'. Did you mean 'max_children'"),
        ({"merge": {"method": {}}}, "'merge.method'. Did you mean 'methods'"),
        ({"merge": {"methods": {"slerp": {"t": {"lowe": 0, "high": 1}}}}}, "'merge.methods.slerp.t.lowe'. Did you mean 'low'"),
        ({"founders": [{"model": "a", "revison": "x"}, "b"]}, "'founders.0.revison'. Did you mean 'revision'"),
        ({"tasks": [{"name": "a", "wieght": 2}]}, "'tasks.0.wieght'. Did you mean 'weight'"),
        (
            {"cluster": {"xyz": 2}},
            "'cluster.xyz'. Known: address, evaluators, gpus_per_evaluator, max_failures, parent_cache_gb, retries, shards",
        ),
    ],
)
def test_unknown_key_gets_a_suggestion(key: dict[str, Any], meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key {meant}"):
        parse(**key)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base": ""}, "base is missing: name the folder or hub id"),
        ({"founders": ["a"]}, "a search needs at least 2 founders, not 1"),
        ({"tasks": []}, "tasks is missing: name at least one lm-eval task"),
        ({"tasks": [{"weight": 1}]}, "'tasks.0.name' is missing"),
        ({"founders": ["a/x", "b/x"]}, "founders: 'x' is there 2 times. Give one of them another 'name'"),
        ({"tasks": ["a", "a"]}, "tasks: 'a' is there 2 times. Name each task once"),
        ({"founders": ["a", {}]}, "founders.1: a founder needs a model or an adapter"),
        ({"founders": ["a", "x/g1-2"]}, "'g1-2' cannot be a founder's name"),
        ({"founders": ["a", "x/base"]}, "'base' cannot be a founder's name"),
        ({"founders": ["a", "x/average"]}, "'average' cannot be a founder's name"),
        (
            {"founders": ["a", {"model": "b", "name": "../b"}]},
            "'../b' cannot be a founder's name. Give it a 'name' of letters",
        ),
        ({"founders": ["a", {"model": "b", "name": "n" * 65}]}, "cannot be a founder's name"),
        ({"tasks": [{"name": "a", "scale": [1, 1]}]}, r"scale of task 'a' is \[1, 1\]: worst and best are equal"),
        ({"tasks": [{"name": "a", "weight": 0}]}, "'tasks.0.weight' is 0: input should be greater than 0"),
        ({"tasks": [{"name": "a", "floor": 2}]}, "'tasks.0.floor' is 2: input should be less than or equal to 0"),
        ({"search": {"objective": "pareto"}}, "objective pareto sets tasks against each other, but there is one: use mean"),
        ({"tasks": [{"name": "a", "limit": 1}]}, "'tasks.0.limit' is 1: input should be greater than or equal to 2"),
        ({"search": {"k": 1}}, "'search.k' is 1: input should be greater than or equal to 2"),
        ({"search": {"k": 2.5}}, "'search.k' is 2.5: input should be a valid integer"),
        ({"search": {"policy": "best"}}, "'search.policy' is 'best': input should be 'kinship', 'greedy' or 'random'"),
        ({"search": {"kinship": "ed", "stop_kinship": 0.9}}, "stop_kinship needs kinship pcc or cs: ed is a distance"),
        ({"search": {"stop_kinship": 1}}, "'search.stop_kinship' is 1: input should be less than 1"),
        ({"search": {"max_generations": 257}}, "less than or equal to 256"),
        ({"search": {"max_hours": float("inf")}}, "'search.max_hours' is inf: input should be a finite number"),
        ({"search": None}, "'search' is None: input should be a valid dictionary"),
        ({"merge": {"dtype": "int8"}}, "'merge.dtype' is 'int8'"),
        ({"merge": {"methods": {}}}, "merge.methods: Dictionary should have at least 1 item"),
        ({"merge": {"methods": [["slerp"]]}}, "'merge.methods' is .*valid dictionary"),
        ({"evaluation": {"holdout": 1}}, "'evaluation.holdout' is 1: input should be less than 1"),
        ({"evaluation": {"backend_args": {"a": 1}}}, "evaluation: backend_args are for a model class of lm-eval: name it"),
        ({"evaluation": {"backend": "hf", "backend_args": {"pretrained": "x"}}}, "evaluation: backend_args cannot name 'pretr"),
        ({"cluster": {"shards": 0}}, "'cluster.shards' is 0: expected auto or a whole number from 1 to 4096"),
        ({"cluster": {"shards": True}}, "'cluster.shards' is True: expected auto"),
        ({"cluster": {"parent_cache_gb": -1}}, "'cluster.parent_cache_gb' is -1: expected auto or a number of GB from 0"),
        ({"cluster": {"parent_cache_gb": True}}, "'cluster.parent_cache_gb' is True: expected auto"),
        ({"cluster": {"parent_cache_gb": float("nan")}}, "'cluster.parent_cache_gb' is nan: expected auto"),
        ({"merge": {"methods": {"slerp": {"slices": [{"sources": []}]}}}}, "merge: 'slices' in 'slerp': a search merges whole"),
        (
            {"merge": {"methods": {"ties": {"layer_range": [0, 8]}}}},
            "'layer_range' in 'ties': .*Remove it; what differs",
        ),
        ({"merge": {"slices": [], "methods": ["slerp"]}}, "merge: 'slices': a search merges whole models"),
        ({"cluster": {"evaluators": "many"}}, "'cluster.evaluators' is 'many': expected auto"),
        ({"seed": -1}, "'seed' is -1"),
        ({"seed": 1 << 32}, "'seed' is 4294967296: input should be less than 4294967296"),
    ],
)
def test_mistake_gets_a_sentence(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**more)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"low": 2, "high": 1}, "range from 2 to 1: low must be below high"),
        ({"low": 1, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "a logarithmic range must start above 0, not at 0"),
        ({"low": 0}, "'merge.methods.slerp.t.high' is missing"),
        ({"low": 0, "high": float("inf")}, "t.high' is inf: input should be a finite number"),
        (float("nan"), "'merge.methods.slerp.t' is nan: a number must be finite"),
        (10**400, "'merge.methods.slerp.t' is 1000.*: a number must be finite"),
        ("half", "'merge.methods.slerp.t' is 'half': expected a number, true or false, a range"),
        ([], r"'merge.methods.slerp.t' is \[\]: expected a number"),
        ([0.5, "x"], "a list of choices"),
        ([0.5, [0.5]], "a list of choices"),
        ([0.5, float("inf")], "a number must be finite"),
        (None, "is None: expected a number"),
        ({"models": []}, "list should have at least 1 item"),
        ({"models": [0.5], "log": True}, "slerp.t: 'log' does not stand beside 'models', but within it"),
        ({"models": [{"models": [1]}]}, r"slerp.t.models.0: models stand outermost, then filters \(attention, mlp, rest\)"),
        ({"low": 0, "high": 1, "layers": 1}, "'merge.methods.slerp.t.layers' is 1: input should be greater than or equal to 2"),
        ({"low": 0, "high": 1, "layers": 257}, "t.layers' is 257: input should be less than or equal to 256"),
        ({"low": 1, "high": 0, "layers": 4}, "range from 1 to 0: low must be below high"),
        ({"layers": 4}, "'merge.methods.slerp.t.low' is missing"),
        ({"layers": [0.5]}, "'merge.methods.slerp.t.layers' is .*: list should have at least 2 items"),
        ({"layers": [0.5, {"low": 0, "high": 1, "layers": 2}]}, "slerp.t.layers.1: models stand outermost"),
        ({"layers": [0.5, "x"]}, "'merge.methods.slerp.t.layers.1' is 'x': expected a number"),
        ({"attenton": 0.5}, "slerp.t: there is no 'attenton'. Did you mean 'attention'"),
        ({"attention": 0.5, "mpl": 0.5}, "unknown key 'merge.methods.slerp.t.mpl'. Did you mean 'mlp'"),
        ({"attention": {"low": 1, "high": 0}}, "slerp.t.attention: range from 1 to 0"),
        ({"attention": {"mlp": 0.5}}, "slerp.t.attention: models stand outermost"),
        ({"attention": {"models": [0.5, 0.5]}}, "slerp.t.attention: models stand outermost"),
        ({"attention": None}, "t.attention' is None: expected a number"),
        ({"attention": 0.5, "layers": 4}, "slerp.t: 'layers' does not stand beside 'attention', but within it"),
    ],
)
def test_mistake_in_a_hyperparameter_gets_a_sentence(spec: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(merge={"methods": {"slerp": {"t": spec}}})


def test_every_problem_has_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"'search.k' is 0: .*\. 'seed' is -1: .*\. unknown key 'x'"):
        parse(search={"k": 0}, seed=-1, x=1)


def test_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse().seed = 3  # type: ignore[misc]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
PATHS = ["base", "founders", "tasks", "search.k", "search", "merge.methods", "merge.methods.slerp", "merge.methods.slerp.t",
         "merge.methods.ties.weight.models", "tasks.0", "founders.0", "cluster.shards", "seed"]  # fmt: skip


@given(st.sampled_from(PATHS), json_values)
def test_arbitrary_value_anywhere_is_read_or_a_config_error(path: str, value: Any) -> None:
    data: Any = {
        **LEAST,
        "founders": ["a", "b"],
        "tasks": ["c"],
        "merge": {"methods": {"slerp": {}, "ties": {"weight": {}}}},
    }
    place, (*parts, last) = data, path.split(".")
    for part in parts:
        place = place[int(part)] if part.isdecimal() else place.setdefault(part, {})
    place[int(last) if last.isdecimal() else last] = value

    try:
        config = parse_config(data)
    except ConfigError:
        return
    assert parse_config(config.model_dump(mode="json")) == config


def test_filters_that_are_not_given_are_not_saved() -> None:
    config = parse(merge={"methods": {"slerp": {"t": {"mlp": 0.5}}}})

    assert config.model_dump(mode="json")["merge"]["methods"] == {"slerp": {"t": {"mlp": 0.5}}}


def test_what_is_held_out_is_a_share_or_named_tasks() -> None:
    def held(value: Any) -> EvaluationConfig:
        return parse(evaluation={"holdout": value}).evaluation

    assert (held(0.25).held_share, held(0.25).held_tasks) == (0.25, [])
    assert held("piqa") == held(["piqa"]) == held([{"name": "piqa"}])
    assert (held("piqa").held_share, [task.name for task in held("piqa").held_tasks]) == (0.0, ["piqa"])


@pytest.mark.parametrize(
    ("holdout", "said"),
    [
        (1.5, r"'evaluation\.holdout' is 1\.5: input should be less than 1"),
        ([{"name": "piqa", "limt": 3}], r"unknown key 'evaluation\.holdout\.0\.limt'\. Did you mean 'limit'"),
        ([{"name": "piqa", "floor": -1}], r"no child is scored on 'piqa' while the search goes on"),
        (["TASK"], r"'TASK' is there 2 times"),
    ],
)
def test_what_cannot_be_held_out_is_told(holdout: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse(tasks=["TASK"], evaluation={"holdout": holdout})
