"""recipe.yaml can be read by anyone who reads mergekit's."""

from typing import Any

import pytest
import yaml

from kinray.core.layers import depths
from kinray.core.methods import METHODS
from kinray.core.parameters import Varied
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
            "kinray": {"family": list(PLACES.values())},
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


def as_mergekit_reads(setting: Any, name: str, depth: float) -> Any:
    """Evaluate a setting as mergekit 0.1.4 does: the first filter that is part of the name; a list of numbers is a gradient."""
    if not isinstance(setting, list):
        return setting
    if all(isinstance(entry, int | float) for entry in setting):
        place = depth * (len(setting) - 1)
        left = min(int(place), len(setting) - 2)
        return (1 - (place - left)) * setting[left] + (place - left) * setting[left + 1]
    conditions = [entry for entry in setting if entry.get("filter") is None or entry["filter"] in name]
    return as_mergekit_reads(conditions[0]["value"], name, depth)


NAMES = ["embed.weight", *(f"layers.{layer}.{part}.weight" for layer in range(3) for part in ("self_attn.q", "mlp.up", "norm"))]


def test_filters_and_layers_are_read_as_they_were_meant() -> None:
    t = Varied((("attn.", (0.1, 0.9)), ("mlp.", (0.2, 0.4, 0.8)), ("experts.", (0.2, 0.4, 0.8)), ("", (0.5,))))
    weight = Varied((("mlp.", (0.25,)),))
    slerp, ties = merge("slerp", ANN, BOB, t=t), merge("ties", ANN, BOB, base=BASE, weight=(weight, 0.75), normalize=False)

    (one,), (other,) = documents(slerp), documents(ties)

    assert one["parameters"]["t"][0] == {"filter": "attn.", "value": [0.1, 0.9]}
    assert other["models"][0]["parameters"]["weight"] == [{"filter": "mlp.", "value": 0.25}, {"value": 1.0}]
    for name, depth in depths(NAMES).items():
        assert as_mergekit_reads(one["parameters"]["t"], name, depth) == pytest.approx(t.at(name, depth))
        ours = METHODS["ties"].per_tensor(ties.params, 2, {name: depth})[0]["weight"]
        assert tuple(as_mergekit_reads(m["parameters"]["weight"], name, depth) for m in other["models"]) == ours


def test_a_gradient_for_all_tensors_is_a_bare_list() -> None:
    (document,) = documents(merge("slerp", ANN, BOB, t=Varied((("", (0.1, 0.9)),))))

    assert document["parameters"] == {"t": [0.1, 0.9]}


def test_steps_come_before_what_they_are_needed_for_and_only_the_last_is_rounded() -> None:
    first = merge("slerp", ANN, BOB, t=0.5)
    second = merge("linear", first, CID)
    last = merge("ties", second, first, base=BASE)

    steps = documents(last, {first.digest: "g1-1", last.digest: "g3-x"}, "float16")

    assert [step["name"] for step in steps] == ["g1-1", f"m-{second.digest[:12]}", "g3-x"]
    assert [model["model"] for model in steps[2]["models"]] == [steps[1]["name"], "g1-1"]
    assert [step.get("out_dtype") for step in steps] == [None, None, "float16"]
    assert {step["dtype"] for step in steps} == {"float32"}


def test_seed_of_random_masks_is_the_digest() -> None:
    child = merge("dare_ties", ANN, BOB, base=BASE, density=0.5)

    first, last = documents(merge("linear", child, CID))

    assert first["kinray"] == {"seed": child.digest}
    assert "seed" not in last["kinray"]


def test_a_founder_is_passed_through() -> None:
    (document,) = documents(BOB)

    assert document["merge_method"] == "passthrough"
    assert [model["model"] for model in document["models"]] == ["org/bob"]


def test_founders_of_a_recipe_are_those_that_were_merged() -> None:
    child = merge("ties", merge("slerp", ANN, BOB), BOB, base=BASE)

    assert founders_of(child) == [ANN, BOB]
    assert founders_of(CID) == [CID]
