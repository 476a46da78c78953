"""Layers of several models stacked, repeated and merged, with mergekit's numbering and gradients."""

import re
from time import process_time

import numpy as np
import pytest
import torch
from torch import Tensor

from kinray.merge.document import read_recipe
from kinray.merge.open import Shelf
from kinray.merge.plan import plan_merges
from tests.helpers import random_tensors
from tests.merge.kitchen import EMBEDDING, LAYER, NORM, OUTPUT, Array, Kitchen, assert_close, depth_of, read, shapes
from tests.merge.test_merge import slerp


def layer(model: dict[str, Array], number: int) -> dict[str, Array]:
    return {kind: model[f"model.layers.{number}.{kind}"] for kind in LAYER}


def stacked(front: dict[str, Array], layers: list[dict[str, Array]], back: dict[str, Array]) -> dict[str, Array]:
    """Put layers between one model's embedding and another's norm and output layer."""
    own = {f"model.layers.{number}.{kind}": tensor for number, kinds in enumerate(layers) for kind, tensor in kinds.items()}
    return {EMBEDDING: front[EMBEDDING], **own, NORM: back[NORM], OUTPUT: back[OUTPUT]}


def test_layers_are_stacked_and_repeated_between_first_and_last_model(kitchen: Kitchen) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    merged = kitchen.merge("""
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: b, layer_range: [1, 3]}]
          - sources: [{model: a, layer_range: [1, 2]}]
          - sources: [{model: b, layer_range: [2, 3]}]
        """)

    layers = [layer(a, 0), layer(a, 1), layer(b, 1), layer(b, 2), layer(a, 1), layer(b, 2)]
    assert_close(merged, stacked(a, layers, b))
    assert kitchen.config()["num_hidden_layers"] == 6


def test_settings_of_one_value_a_layer_follow_the_layers(kitchen: Kitchen) -> None:
    kinds = ["full", "sliding", "sliding"]
    kitchen.model("a", layer_types=kinds, text_config={"num_hidden_layers": 3, "layer_types": kinds}, eos_token_id=[1, 2, 3])

    kitchen.merge("""
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [1, 3]}]
          - sources: [{model: a, layer_range: [0, 2]}]
        """)

    config = kitchen.config()
    assert config["layer_types"] == config["text_config"]["layer_types"] == ["sliding", "sliding", "full", "sliding"]
    assert config["num_hidden_layers"] == config["text_config"]["num_hidden_layers"] == 4
    assert config["eos_token_id"] == [1, 2, 3]


def test_settings_follow_layers_that_change_places_but_not_their_number(kitchen: Kitchen) -> None:
    kitchen.model("a", layer_types=["full", "sliding", "sliding"])

    kitchen.merge("""
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [1, 3]}]
          - sources: [{model: a, layer_range: [0, 1]}]
        """)

    assert kitchen.config()["layer_types"] == ["sliding", "sliding", "full"]


@pytest.mark.parametrize("sources", [["a", "b"], ["b", "a"]])
def test_slerp_over_all_layers_as_most_recipes_write_it(kitchen: Kitchen, sources: list[str]) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    merged = kitchen.merge(f"""
        slices:
          - sources:
              - model: {sources[0]}
                layer_range: [0, 3]
              - model: {sources[1]}
                layer_range: [0, 3]
        merge_method: slerp
        base_model: a
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5
        dtype: float32
        """)

    def t(name: str) -> float:
        if "self_attn" in name:
            return {0.0: 0.0, 0.5: 0.3, 1.0: 1.0}[depth_of(name)]
        return {0.0: 1.0, 0.5: 0.7, 1.0: 0.0}[depth_of(name)] if "mlp" in name else 0.5

    assert_close(merged, {name: slerp(t(name), a[name], b[name]) for name in a})


def test_gradient_runs_over_the_layers_of_its_slice(kitchen: Kitchen) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    merged = kitchen.merge("""
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 3], parameters: {weight: [0, 1]}}
              - {model: b, layer_range: [0, 3], parameters: {weight: [1, 0]}}
          - sources:
              - {model: a, layer_range: [1, 2], parameters: {weight: [0.2, 0.8]}}
              - {model: b, layer_range: [2, 3], parameters: {weight: [0.6, 0.2]}}
        """)

    def mix(share: float, one: dict[str, Array], other: dict[str, Array]) -> dict[str, Array]:
        return {name: share * one[name] + (1 - share) * other[name] for name in one}

    # Outside of layers gradients have their first value, in a slice of one layer their last.
    layers = [mix(share, layer(a, n), layer(b, n)) for n, share in enumerate((0.0, 0.5, 1.0))]
    assert_close(merged, stacked(b, [*layers, mix(0.8, layer(a, 1), layer(b, 2))], mix(0.25, a, b)))


def test_parameters_of_source_slice_and_merge_are_looked_up_in_this_order(kitchen: Kitchen) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    merged = kitchen.merge("""
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 0.9}]}}
              - {model: b, layer_range: [0, 2]}
            parameters: {weight: [{filter: q_proj, value: 0.3}]}
          - sources: [{model: a, layer_range: [2, 3]}]
        parameters: {weight: 0.5, normalize: false}
        """)

    weights = {"mlp": (0.9, 0.5), "q_proj": (0.3, 0.3)}
    for name, tensor in merged.items():
        if not re.match(r"model\.layers\.[01]", name) and name != EMBEDDING:
            continue
        of_a, of_b = next((pair for word, pair in weights.items() if word in name), (0.5, 0.5))
        np.testing.assert_allclose(tensor.numpy(), of_a * a[name] + of_b * b[name], rtol=1e-5, atol=1e-6)


def test_task_arithmetic_over_slices_takes_changes_from_the_same_layers(kitchen: Kitchen) -> None:
    base, a = kitchen.family("base", "a")

    merged = kitchen.merge("""
        merge_method: task_arithmetic
        base_model: base
        slices:
          - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [1, 3]}, {model: base, layer_range: [1, 3]}]
        parameters: {weight: 0.5}
        """)

    assert_close(merged, {name: (base[name] + a[name]) / 2 for name in base})


def test_base_that_is_no_source_gives_config_and_tokenizer(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b")
    kitchen.model("base", mark="base")
    for name in ("base", "a"):
        (kitchen.folder / name / "tokenizer.json").write_text(f'"{name}"')

    kitchen.merge("""
        merge_method: passthrough
        base_model: base
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: b, layer_range: [2, 3]}]
        """)

    assert kitchen.config()["mark"] == "base"
    assert (kitchen.out / "tokenizer.json").read_text() == '"base"'


def test_integer_buffers_of_all_slices_are_kept(kitchen: Kitchen) -> None:
    buffers = {f"model.layers.{n}.attn.ids": torch.arange(n, n + 4) for n in range(3)} | {"model.ids": torch.arange(3)}
    kitchen.model("a", random_tensors(0, shapes()) | buffers)

    merged = kitchen.merge("""
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [2, 3]}]
        """)

    assert torch.equal(merged["model.layers.1.attn.ids"], torch.arange(2, 6))
    assert torch.equal(merged["model.ids"], torch.arange(3))


def tower(seed: int) -> dict[str, Tensor]:
    """Make a vision-language model whose vision tower has as many layers as its language model, and stands first."""
    vision = {f"vision_tower.layers.{n}.fc1.weight": (4, 4) for n in range(3)}
    ends = {"vision_tower.embeddings.weight": (4, 3), "vision_tower.post_norm.weight": (4,), "projector.weight": (6, 4)}
    words = {f"language_model.{name}": shape for name, shape in shapes().items()}
    return random_tensors(seed, ends | vision | words)


def test_other_towers_stay_whole_and_come_with_the_first_slice(kitchen: Kitchen) -> None:
    a, b = tower(1), tower(2)
    for name, tensors in (("a", a), ("b", b)):
        kitchen.model(name, tensors, text_config={"num_hidden_layers": 3})

    merged = kitchen.merge("""
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: b, layer_range: [1, 3]}]
        """)

    for name, tensor in a.items():
        if not name.startswith("language_model.") or name.endswith(EMBEDDING):
            assert torch.equal(merged[name], tensor), name
    assert torch.equal(merged["language_model.model.layers.3.mlp.up_proj.weight"], b[f"language_model.model.layers.2.{UP}"])
    assert torch.equal(merged["language_model.lm_head.weight"], b["language_model.lm_head.weight"])


UP = "mlp.up_proj.weight"


def test_output_of_slices_is_read_as_any_model(kitchen: Kitchen) -> None:
    kitchen.model("a", seed=1)
    kitchen.merge("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [1, 3]}]}]")

    before = read(kitchen.out)
    kitchen.out.rename(kitchen.folder / "two")
    again = kitchen.merge("merge_method: passthrough\nmodels: [{model: two}]")

    assert all(torch.equal(before[name], tensor) for name, tensor in again.items())


def test_thousands_of_experts_are_planned_in_time(kitchen: Kitchen) -> None:
    experts = {f"model.layers.{n}.mlp.experts.{e}.up_proj.weight": (1, 1) for n in range(3) for e in range(1500)}
    for number, name in enumerate("ab"):
        kitchen.model(name, random_tensors(number, shapes() | experts))
    documents, _ = read_recipe(
        kitchen.write("""
        merge_method: slerp
        base_model: a
        slices:
          - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
          - sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]
        """)
    )
    before = process_time()

    tensors = plan_merges(documents, Shelf()).tensors()

    assert len(tensors) == 3 + 4 * (3 + 1500)
    assert process_time() - before < 10  # it takes a second; looking through all tensors for each would take minutes
