"""Inputs written MODEL+ADAPTER, against PEFT's merge_and_unload."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.merge.kitchen import Kitchen, read
from tests.merge.test_output_folder import LLAMA

ADAPTERS = {
    "math": {"target_modules": "all-linear", "r": 2, "lora_alpha": 6},
    "code": {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 3, "use_rslora": True},
    "chat": {"target_modules": ["v_proj"], "r": 2, "modules_to_save": ["lm_head", "embed_tokens"]},
}


@pytest.fixture
def adapted(kitchen: Kitchen) -> dict[str, dict[str, Tensor]]:
    """Write a base and adapters on it, and return the weights that PEFT merges each into."""
    torch.manual_seed(0)
    LlamaForCausalLM(LLAMA).save_pretrained(kitchen.folder / "base")
    return {name: train(kitchen.folder, name, settings) for name, settings in ADAPTERS.items()}


def train(folder: Path, name: str, settings: dict[str, object]) -> dict[str, Tensor]:
    torch.manual_seed(len(name))
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.2)
    model.save_pretrained(folder / name)
    return {key: tensor.clone() for key, tensor in model.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_passthrough_of_an_adapter_is_what_peft_merges(
    kitchen: Kitchen, adapted: dict[str, dict[str, Tensor]], name: str
) -> None:
    merged = kitchen.merge(f"merge_method: passthrough\nmodels: [{{model: base+{name}}}]")

    assert merged.keys() == adapted[name].keys()
    for key, tensor in merged.items():
        torch.testing.assert_close(tensor, adapted[name][key], rtol=1e-5, atol=1e-6)


def test_adapters_of_one_base_are_merged_with_each_other_and_with_it(
    kitchen: Kitchen, adapted: dict[str, dict[str, Tensor]]
) -> None:
    merged = kitchen.merge("""
        merge_method: task_arithmetic
        base_model: base
        models:
          - {model: base+math, parameters: {weight: 0.5}}
          - {model: base+code, parameters: {weight: 0.3}}
          - {model: base+chat, parameters: {weight: 1.0}}
        """)

    base = read(kitchen.folder / "base")
    for key, tensor in merged.items():
        parts = [weight * (adapted[name][key] - base[key]) for name, weight in (("math", 0.5), ("code", 0.3), ("chat", 1.0))]
        torch.testing.assert_close(tensor, base[key] + sum(parts), rtol=1e-4, atol=2e-6)


def test_adapted_layers_are_stacked(kitchen: Kitchen, adapted: dict[str, dict[str, Tensor]]) -> None:
    merged = kitchen.merge("""
        merge_method: passthrough
        slices:
          - sources: [{model: base+math, layer_range: [1, 3]}]
          - sources: [{model: base, layer_range: [2, 3]}]
        """)

    key = "self_attn.q_proj.weight"
    torch.testing.assert_close(merged[f"model.layers.0.{key}"], adapted["math"][f"model.layers.1.{key}"], rtol=1e-5, atol=1e-6)
    assert torch.equal(merged[f"model.layers.2.{key}"], read(kitchen.folder / "base")[f"model.layers.2.{key}"])


def test_adapter_that_cannot_be_merged_is_refused_with_what_to_do(
    kitchen: Kitchen, adapted: dict[str, dict[str, Tensor]], capsys: pytest.CaptureFixture[str]
) -> None:
    train(kitchen.folder, "dora", {"target_modules": ["q_proj"], "r": 2, "use_dora": True})

    assert kitchen.run("merge_method: passthrough\nmodels: [{model: base+dora}]") == 2

    assert "Model 'base+dora': " in (errors := capsys.readouterr().err)
    assert "uses DoRA. Merge it into its model with PEFT first" in errors
    assert kitchen.left() == []
