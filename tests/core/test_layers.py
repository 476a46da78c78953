"""Layers found from the names of tensors alone."""

import pytest

from kinray.core.layers import depths, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", ("model.layers", 3)),
        ("h.11.attn.c_attn.weight", ("h", 11)),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.bias", ("gpt_neox.layers", 0)),
        ("model.layers.7.block_sparse_moe.experts.5.w1.weight", ("model.layers", 7)),
        ("vision_tower.encoder.layers.2.mlp.fc1.weight", ("vision_tower.encoder.layers", 2)),
        ("model.embed_tokens.weight", None),
        ("lm_head.weight", None),
        ("conv1.weight", None),
    ],
)
def test_layer_is_the_first_number_of_the_name(name: str, layer: tuple[str, int] | None) -> None:
    assert layer_of(name) == layer


def test_layers_are_spread_from_zero_to_one() -> None:
    names = ["embed", "layers.0.up", "layers.0.down", "layers.1.up", "layers.2.up", "layers.4.up", "norm"]

    assert list(depths(names).items()) == list(zip(names, [0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 0.0], strict=True))


def test_towers_count_for_themselves() -> None:
    found = depths([*(f"text.layers.{i}.w" for i in range(3)), *(f"vision.layers.{i}.w" for i in range(5))])

    assert found["text.layers.1.w"] == 0.5
    assert found["vision.layers.1.w"] == 0.25


def test_experts_do_not_count_as_layers() -> None:
    found = depths([f"layers.{layer}.experts.{expert}.w1" for layer in range(2) for expert in range(8)])

    assert found["layers.0.experts.7.w1"] == 0.0
    assert found["layers.1.experts.0.w1"] == 1.0


def test_only_layer_counts_as_the_last() -> None:
    assert depths(["layers.0.w", "norm"]) == {"layers.0.w": 1.0, "norm": 0.0}
