"""LoRA adapters as founders, against PEFT's own merge_and_unload on a tiny Llama."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kinray.checkpoints.adapters import open_model
from kinray.errors import CheckpointError

LLAMA = LlamaConfig(
    vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    LlamaForCausalLM(LLAMA).save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Write an adapter with random factors, and return the weights that PEFT merges it into."""
    torch.manual_seed(1)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    merged = model.merge_and_unload().state_dict()
    return {name: tensor.clone() for name, tensor in merged.items()}


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 3, "lora_alpha": 7},
        {"target_modules": "all-linear", "r": 4, "lora_alpha": 8, "use_rslora": True},
        {
            "target_modules": ["q_proj", "down_proj"],
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 3},
            "alpha_pattern": {r"layers\.0\.mlp\.down_proj": 16, "q_proj": 5},
        },
        {"target_modules": ["k_proj"], "r": 2, "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["embed_tokens", "o_proj"], "r": 3, "lora_alpha": 4},
    ],
    ids=["plain", "rslora", "patterns", "modules to save", "embedding"],
)
def test_adapted_model_is_what_peft_merges(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    expected = train(base, tmp_path, **settings)

    model = open_model(base, tmp_path, "chat")

    original = load_file(base / "model.safetensors")
    changed = [name for name in expected if not torch.equal(expected[name], original[name])]
    assert len(changed) >= 2
    for name, tensor in expected.items():
        assert model.tensors[name].shape == tuple(tensor.shape)
        torch.testing.assert_close(model.load(name), tensor, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(model.load(name), original[name]) for name in set(original) - set(changed))


def peft_merges(model: Any, folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Write a model with an adapter of random factors, and return the weights that PEFT merges it into."""
    torch.manual_seed(0)
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(type(model).from_pretrained(folder / "base"), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.3)
    adapted.save_pretrained(folder / "adapter")
    return {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]], ids=["wide", "square too"])
def test_adapter_of_transposed_layers_is_what_peft_merges(tmp_path: Path, targets: list[str]) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=2, n_head=2))
    expected = peft_merges(gpt2, tmp_path, target_modules=targets, r=3, lora_alpha=5, fan_in_fan_out=True)

    model = open_model(tmp_path / "base", tmp_path / "adapter", "chat")

    original = load_file(tmp_path / "base" / "model.safetensors")
    changed = [name for name in original if not torch.equal(expected[name], original[name])]
    assert len(changed) == 2 * len(targets) + 2 * ("c_proj" in targets)  # attention and feed-forward block have a c_proj each
    for name in original:
        torch.testing.assert_close(model.load(name), expected[name], rtol=1e-5, atol=1e-6)


TIED = LlamaConfig(**LLAMA.to_dict() | {"tie_word_embeddings": True})
TYING = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}


@pytest.mark.parametrize(
    "settings", [TYING, {"save_embedding_layers": True}, {"target_modules": ["q_proj", "embed_tokens"]}], ids=str
)
def test_adapter_that_keeps_a_model_tied_is_what_peft_merges(tmp_path: Path, settings: dict[str, Any]) -> None:
    more = {key: value for key, value in settings.items() if key != "save_embedding_layers"}
    expected = peft_merges(LlamaForCausalLM(TIED), tmp_path, **{"target_modules": ["q_proj"], "r": 2} | more)
    if "save_embedding_layers" in settings:  # as PEFT does of itself after the vocabulary grew
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        ends = {f"base_model.model.{n}": expected[n].clone() for n in ("model.embed_tokens.weight", "lm_head.weight")}
        save_file(load_file(file) | ends, file)

    model = open_model(tmp_path / "base", tmp_path / "adapter", "chat")

    assert torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    assert "lm_head.weight" not in model.tensors
    for name in model.tensors:
        torch.testing.assert_close(model.load(name), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["embed_tokens", "lm_head"], ["lm_head"]])
def test_adapter_that_would_untie_a_tied_model_is_refused(tmp_path: Path, saved: list[str]) -> None:
    expected = peft_merges(LlamaForCausalLM(TIED), tmp_path, target_modules=["q_proj"], r=2, modules_to_save=saved)
    assert not torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])

    with pytest.raises(CheckpointError, match=r"trains '.*embed_tokens.weight' apart from|changes 'lm_head.weight', which"):
        open_model(tmp_path / "base", tmp_path / "adapter", "chat")


def test_adapter_on_a_rounded_model_is_added_in_float32(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", target_modules=["q_proj"], r=2, lora_alpha=2)
    LlamaForCausalLM.from_pretrained(base).bfloat16().save_pretrained(tmp_path / "half")
    model = open_model(tmp_path / "half", tmp_path / "adapter", "chat")
    name = "model.layers.0.self_attn.q_proj.weight"

    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a, b = (factors[f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.weight"] for letter in "AB")

    rounded = load_file(tmp_path / "half" / "model.safetensors")[name]
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(model.load(name).double(), rounded.double() + b.double() @ a.double())


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    train(base, tmp_path, target_modules=["q_proj"], r=2, lora_alpha=2)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "uses DoRA. Merge it into its model with PEFT first"),
        ({"lora_bias": True}, "uses LoRA with biases"),
        ({"layer_replication": [[0, 2]]}, "uses layer replication"),
        ({"alora_invocation_tokens": [1]}, "uses activated LoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "was begun by pissa_niter_4, which changes the model's own weights"),
        ({"init_lora_weights": "OLoRA"}, "was begun by olora, "),
        ({"bias": "all"}, "trains biases"),
        ({"peft_type": "IA3"}, "is an adapter of type 'IA3', not LORA"),
    ],
)
def test_adapter_that_cannot_be_merged_is_refused(base: Path, adapter: Path, change: dict[str, Any], message: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))

    with pytest.raises(CheckpointError, match=f"Model 'chat': .*{message}"):
        open_model(base, adapter, "chat")


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def _other_module(factors: dict[str, Tensor]) -> None:
    factors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = factors.pop(f"{PREFIX}.lora_A.weight")


def _no_partner(factors: dict[str, Tensor]) -> None:
    del factors[f"{PREFIX}.lora_B.weight"]


def _other_width(factors: dict[str, Tensor]) -> None:
    factors[f"{PREFIX}.lora_A.weight"] = torch.ones(2, 9)


def _other_rank(factors: dict[str, Tensor]) -> None:
    factors[f"{PREFIX}.lora_B.weight"] = torch.ones(8, 3)


def _magnitude(factors: dict[str, Tensor]) -> None:
    factors[f"{PREFIX}.lora_magnitude_vector.weight"] = torch.ones(8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_module, "changes 'model.layers.7.self_attn.q_proj.weight', which 'chat' does not have"),
        (_no_partner, "adapter has .*lora_A.weight' but not .*lora_B.weight'"),
        (_other_width, r"factors \(8, 2\) and \(2, 9\) do not give .* of shape \(8, 8\)"),
        (_other_rank, r"factors \(8, 3\) and \(2, 8\) do not give"),
        (_magnitude, "lora_magnitude_vector.weight', which 'chat' does not have"),
    ],
)
def test_adapter_that_does_not_fit_is_refused(
    base: Path, adapter: Path, damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    factors = load_file(adapter / "adapter_model.safetensors")
    damage(factors)
    save_file(factors, adapter / "adapter_model.safetensors")

    with pytest.raises(CheckpointError, match=message):
        open_model(base, adapter, "chat")


def test_adapter_in_a_pickle_is_refused(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")

    with pytest.raises(CheckpointError, match=r"has no adapter_model.safetensors \(pickles are not read\)"):
        open_model(base, adapter, "chat")


def test_folder_without_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*adapter_config.json: No such file"):
        open_model(base, tmp_path, "chat")
