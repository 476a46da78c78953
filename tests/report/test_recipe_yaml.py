"""recipe.yaml can be read by anyone who reads mergekit's."""

from typing import Any

import yaml

from kinray.core.recipe import Recipe
from kinray.report.recipe_yaml import founders_of, recipe_yaml
from tests.helpers import founder, merge

BASE, ANN, BOB, CID = (founder(name) for name in ("base", "ann", "bob", "cid"))
PLACES = {BASE.digest: "org/base", ANN.digest: "/models/ann", BOB.digest: "org/bob", CID.digest: "/models/c: [id]"}


def documents(recipe: Recipe, names: dict[str, str] | None = None, dtype: str = "bfloat16") -> list[Any]:
    """Write a recipe and read it with a plain YAML reader."""
    return list(yaml.safe_load_all(recipe_yaml(recipe, PLACES, names or {}, dtype)))


def test_slerp_names_its_first_model_as_base() -> None:
    child = merge("slerp", ANN, BOB, t=0.25)

    assert documents(child, {child.digest: "g1-1"}) == [
        {
            "name": "g1-1",
            "merge_method": "slerp",
            "models": [{"model": "/models/ann"}, {"model": "org/bob"}],
            "base_model": "/models/ann",
            "parameters": {"t": 0.25},
            "dtype": "float32",
            "out_dtype": "bfloat16",
        }
    ]


def test_weights_stand_with_their_models() -> None:
    child = merge("task_arithmetic", ANN, CID, base=BASE, weight=(0.75, 0.5), lambda_=1.25)

    (document,) = documents(child)

    assert document["models"] == [
        {"model": "/models/ann", "parameters": {"weight": 0.75}},
        {"model": "/models/c: [id]", "parameters": {"weight": 0.5}},
    ]
    assert document["base_model"] == "org/base"
    assert document["parameters"] == {"lambda": 1.25, "normalize": False}


def test_defaults_are_written_out() -> None:
    (document,) = documents(merge("ties", ANN, BOB, base=BASE, density=0.5))

    assert [model["parameters"] for model in document["models"]] == [{"weight": 1.0, "density": 0.5}] * 2
    assert document["parameters"] == {"lambda": 1.0, "normalize": True}


def test_a_method_without_a_base_names_none() -> None:
    (document,) = documents(merge("linear", ANN, BOB))

    assert "base_model" not in document


def test_steps_come_before_what_they_are_needed_for_and_only_the_last_is_rounded() -> None:
    first = merge("slerp", ANN, BOB, t=0.5)
    second = merge("linear", first, CID)
    last = merge("ties", second, first, base=BASE)

    steps = documents(last, {first.digest: "g1-1", last.digest: "g3-x"}, "float16")

    assert [step["name"] for step in steps] == ["g1-1", f"m-{second.digest[:12]}", "g3-x"]
    assert [model["model"] for model in steps[2]["models"]] == [steps[1]["name"], "g1-1"]
    assert [step.get("out_dtype") for step in steps] == [None, None, "float16"]
    assert {step["dtype"] for step in steps} == {"float32"}


def test_digests_stand_in_comments() -> None:
    child = merge("dare_ties", ANN, BOB, base=BASE, density=0.5)

    assert recipe_yaml(child, PLACES, {}, "float32").startswith(f"# digest {child.digest}\n")


def test_a_founder_has_no_steps() -> None:
    assert recipe_yaml(BOB, PLACES, {}, "float32") == "# The best model is a founder: org/bob\n"


def test_founders_of_a_recipe_are_those_that_were_merged() -> None:
    child = merge("ties", merge("slerp", ANN, BOB), BOB, base=BASE)

    assert founders_of(child) == [ANN, BOB]
    assert founders_of(CID) == [CID]
