"""Layers of a model seen as layers of another, found from the names alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kinray.checkpoints.folder import Checkpoint, open_checkpoint
from kinray.checkpoints.renamed import config_with_layers, layer_count, layers_of, main_stack
from kinray.errors import CheckpointError
from tests.helpers import ARCHITECTURE, make_model, random_tensors

GPT2 = {"wte.weight": (9, 4), "wpe.weight": (5, 4), "h.0.mlp.weight": (4, 4), "h.1.mlp.weight": (4, 4), "ln_f.weight": (4,)}
LLAMA = {
    "model.embed_tokens.weight": (9, 4),
    "model.layers.0.mlp.experts.0.w1.weight": (4, 4),
    "model.layers.0.mlp.experts.1.w1.weight": (4, 4),
    "model.layers.1.mlp.experts.0.w1.weight": (4, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (9, 4),
}
NEOX = {
    "gpt_neox.embed_in.weight": (9, 4),
    "gpt_neox.layers.0.w": (4, 4),
    "gpt_neox.layers.1.w": (4, 4),
    "embed_out.weight": (9, 4),
}


def open_(folder: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Checkpoint:
    return open_checkpoint(make_model(folder, random_tensors(0, shapes), {"architectures": [ARCHITECTURE], **config}), "a")


@pytest.mark.parametrize(("shapes", "stack"), [(GPT2, "h"), (LLAMA, "model.layers"), (NEOX, "gpt_neox.layers")])
def test_stack_is_found_whatever_it_is_called(tmp_path: Path, shapes: dict[str, tuple[int, ...]], stack: str) -> None:
    assert main_stack(open_(tmp_path, shapes)) == (stack, 2)


def towers(words: int, pictures: int, width: int = 4) -> dict[str, tuple[int, ...]]:
    return {f"visual.blocks.{n}.w": (3, 3) for n in range(pictures)} | {f"model.layers.{n}.w": (4, width) for n in range(words)}


@pytest.mark.parametrize(
    ("shapes", "config", "stack"),
    [
        (towers(2, 4), {"num_hidden_layers": 2}, ("model.layers", 2)),
        (towers(2, 4), {"text_config": {"num_hidden_layers": 2}, "vision_config": {"depth": 4}}, ("model.layers", 2)),
        (towers(3, 3), {"num_hidden_layers": 3}, ("model.layers", 3)),
        (towers(3, 2), {}, ("model.layers", 3)),
        (towers(4, 2), {"num_hidden_layers": 3}, ("model.layers", 4)),  # with a layer more, for predicting ahead
    ],
)
def test_of_several_stacks_the_main_one_is_what_the_config_counts_or_has_most_weights(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], config: dict[str, Any], stack: tuple[str, int]
) -> None:
    assert main_stack(open_(tmp_path, shapes, **config)) == stack


def test_model_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'a' has no layers to choose from"):
        main_stack(open_(tmp_path, {"embed.weight": (2, 2)}))


def test_layers_get_new_numbers_and_keep_their_bits(tmp_path: Path) -> None:
    model = open_(tmp_path, LLAMA)

    seen = layers_of(model, 1, 2, 7, front=False, back=False)

    (name,) = seen.tensors
    assert name == seen.tensors[name].name == "model.layers.7.mlp.experts.0.w1.weight"
    assert torch.equal(seen.load(name), model.load("model.layers.1.mlp.experts.0.w1.weight"))
    assert (seen.name, seen.config) == (model.name, model.config)


@pytest.mark.parametrize(
    ("shapes", "front", "back"),
    [
        (GPT2, {"wte.weight", "wpe.weight"}, {"ln_f.weight"}),
        (LLAMA, {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}),
        (NEOX, {"gpt_neox.embed_in.weight"}, {"embed_out.weight"}),
        (
            towers(3, 2) | {"visual.merger.weight": (2, 2), "visual.patch_embed.weight": (2, 2), "model.norm.weight": (4,)},
            {"visual.blocks.0.w", "visual.blocks.1.w", "visual.merger.weight", "visual.patch_embed.weight"},
            {"model.norm.weight"},
        ),
        (
            towers(3, 2) | {"multi_modal_projector.linear.weight": (2, 2), "vision_tower.post_layernorm.weight": (4,)},
            {
                "visual.blocks.0.w",
                "visual.blocks.1.w",
                "multi_modal_projector.linear.weight",
                "vision_tower.post_layernorm.weight",
            },
            set(),
        ),
    ],
)
def test_what_works_before_the_layers_and_behind_them_is_told_from_its_name(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], front: set[str], back: set[str]
) -> None:
    model = open_(tmp_path, shapes, num_hidden_layers=len([n for n in shapes if n.startswith("model.layers")]) or 2)
    inner = set(layers_of(model, 0, 1, 0, front=False, back=False).tensors)

    assert set(layers_of(model, 0, 1, 0, front=True, back=False).tensors) - inner == front
    assert set(layers_of(model, 0, 1, 0, front=False, back=True).tensors) - inner == back


def test_layers_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'a' has 2 layers, numbered from 0. The range \[1, 3\] needs 3"):
        layers_of(open_(tmp_path, LLAMA), 1, 3, 0, front=True, back=True)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "n_layers", "num_layers"])
def test_number_of_layers_is_found_and_changed_by_any_of_its_names(key: str) -> None:
    for config in ({key: 3, "width": 3}, {"text_config": {key: 3, "width": 3}}):
        assert layer_count(config) == 3
        changed = config_with_layers(config, [0, 1, 2, 1])
        inner = changed.get("text_config", changed)
        assert inner == {key: 4, "width": 3}


def test_config_without_a_number_of_layers_stays() -> None:
    assert layer_count({"a": 1, "text_config": None}) is None
    assert config_with_layers({"a": [1, 2]}, [0]) == {"a": [1, 2]}


def test_lists_of_one_value_a_layer_are_picked_and_others_stay() -> None:
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "eos_token_id": [1, 2, 3],
        "architectures": ["X", "Y", "Z"],
        "two": [1, 2],
    }

    assert config_with_layers(config, [2, 0, 0]) == config | {"layer_types": ["c", "a", "a"]}
    assert config_with_layers(config, [2]) == config | {"layer_types": ["c"], "num_hidden_layers": 1}
