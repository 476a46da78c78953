"""The resident model holds exactly what transformers would have loaded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from kinray.checkpoints.models import open_models
from kinray.config import EvaluationConfig, TaskSpec
from kinray.demo import DemoFiles
from kinray.demo.tokenizer import build_tokenizer
from kinray.errors import CheckpointError, RunError
from kinray.evaluation.resident import DTYPES, ResidentModel, check_buildable
from tests.evaluation.tiny import model_specs
from tests.helpers import spec

SIZES = {"vocab_size": 250, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = torch.arange(12).reshape(2, 6)


def llama(*, tied: bool) -> Any:
    """Make a tiny Llama."""
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def qwen2() -> Any:
    """Make a tiny Qwen2, which has biases and rotary embeddings."""
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True))


def gpt2() -> Any:
    """Make a tiny GPT-2, which has learnt positions and always ties its embeddings."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=250, n_embd=16, n_layer=2, n_head=2))


def saved(folder: Path, model: Any) -> Path:
    """Save a model as its users do, with a tokenizer."""
    model.save_pretrained(folder)
    build_tokenizer(64).save_pretrained(folder)
    return folder


def resident(folder: Path, dtype: str = "float32") -> ResidentModel:
    """Make a resident model for one folder, its weights not loaded yet."""
    return ResidentModel(folder, open_models([spec(folder)]), dtype, ["cpu"], EvaluationConfig())


def tensors(folder: Path, dtype: str = "float32") -> Iterator[tuple[str, torch.Tensor]]:
    """Read a folder's tensors with safetensors' own reader, each in the dtype."""
    yield from ((name, tensor.to(DTYPES[dtype])) for name, tensor in load_file(folder / "model.safetensors").items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [lambda: llama(tied=True), lambda: llama(tied=False), qwen2, gpt2])
def test_a_loaded_model_is_transformers_own_to_the_last_bit(make: Any, dtype: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", make())
    model = resident(folder, dtype)

    model.load(tensors(folder, dtype))

    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    assert equal(model.model.state_dict(), stock.state_dict())
    assert equal(dict(model.model.named_buffers()), dict(stock.named_buffers()))
    with torch.no_grad():
        assert torch.equal(model.model(IDS).logits, stock.eval()(IDS).logits)


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Compare names, dtypes and bits."""
    assert ours.keys() == theirs.keys()
    return all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_founder_replaces_the_one_before(demo: DemoFiles) -> None:
    specs = model_specs(demo)
    model = ResidentModel(demo.base, open_models(specs), "float32", ["cpu"], EvaluationConfig())

    for founder in (*demo.founders.values(), demo.base):
        model.load(tensors(founder))
        assert equal(model.model.state_dict(), AutoModelForCausalLM.from_pretrained(founder).state_dict())


def test_it_is_ready_to_answer_and_not_to_learn(demo: DemoFiles) -> None:
    model = resident(demo.base).model

    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_tensor_written_twice_is_our_bug(demo: DemoFiles) -> None:
    (name, tensor), *rest = tensors(demo.base)

    with pytest.raises(AssertionError, match=f"{name} was written twice"):
        resident(demo.base).load([(name, tensor), *rest, (name, tensor)])


def test_a_tensor_not_written_is_our_bug(demo: DemoFiles) -> None:
    (name, _), *rest = tensors(demo.base)

    with pytest.raises(AssertionError, match=rf"tensors not written: \['{name}'\]"):
        resident(demo.base).load(rest)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value: float, demo: DemoFiles) -> None:
    broken = dict(tensors(demo.base))
    broken["model.norm.weight"][3] = value

    with pytest.raises(RunError, match=r"tensor 'model\.norm\.weight' of the child holds NaN or infinity in float32"):
        resident(demo.base).load(broken.items())


def test_weights_too_large_for_half_precision_are_refused_by_name(demo: DemoFiles) -> None:
    large = {name: tensor.float() for name, tensor in tensors(demo.base)}
    large["model.norm.weight"][0] = 70_000.0

    with pytest.raises(RunError, match=r"'model\.norm\.weight' of the child holds NaN or infinity in float16"):
        resident(demo.base, "float16").load((name, tensor.half()) for name, tensor in large.items())


def test_a_tensor_that_the_class_does_not_have_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", llama(tied=False))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.extra.weight": torch.zeros(3)}, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"'model\.extra\.weight' of 'model' .*LlamaForCausalLM has no such tensor"):
        resident(folder)


def test_a_tensor_that_the_class_needs_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", llama(tied=False))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"'model' has no tensor 'lm_head\.weight', which LlamaForCausalLM needs"):
        resident(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", llama(tied=False))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.norm.weight": torch.zeros(5)}, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' of 'model' has shape \(5,\), .* has \(16,\)"):
        resident(folder)


def test_old_checkpoints_without_the_prefix_of_the_body_are_read(tmp_path: Path) -> None:
    """GPT-2 as the hub has it: no ``transformer.`` before the names, and causal masks among the tensors."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=240, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    reference = GPT2LMHeadModel(config).eval()
    reference.save_pretrained(tmp_path)
    build_tokenizer(16).save_pretrained(tmp_path)
    stored = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    mask = {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    save_file(stored | mask, tmp_path / "model.safetensors", metadata={"format": "pt"})
    models = open_models([spec(tmp_path, "base")])

    resident = ResidentModel(tmp_path, models, "float32", ["cpu"], EvaluationConfig())
    resident.load((name, models.base.load(name)) for name in models.names)

    assert "h.0.attn.bias" not in models.names
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resident.model.state_dict().items())


def test_a_model_that_cannot_share_prompts_is_noticed_before_it_is_loaded(tmp_path: Path) -> None:
    bloom = saved(tmp_path / "bloom", BloomForCausalLM(BloomConfig(vocab_size=250, hidden_size=16, n_layer=2, n_head=2)))
    shares = saved(tmp_path / "qwen2", qwen2())

    (notice,) = check_buildable(open_models([spec(bloom)]), EvaluationConfig())

    assert (
        notice == "BloomForCausalLM takes no position_ids, so the answers to a question are scored one by one, as in lm-eval."
    )
    assert check_buildable(open_models([spec(shares)]), EvaluationConfig()) == []
    assert check_buildable(open_models([spec(bloom)]), EvaluationConfig(share_prompts=False)) == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (True, "no chat template, which apply_chat_template of task 'some' needs"),
        ("tools", "no chat template, which apply_chat_template of task 'some' needs"),
    ],
)
def test_a_task_that_wants_a_chat_template_needs_a_tokenizer_with_one(wanted: bool | str, said: str, tmp_path: Path) -> None:
    models = open_models([spec(saved(tmp_path / "qwen2", qwen2()))])

    with pytest.raises(CheckpointError, match=said):
        check_buildable(models, EvaluationConfig(), [TaskSpec(name="some", apply_chat_template=wanted)])


def test_a_chat_template_is_found_by_its_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "qwen2", qwen2())
    tokenizer = build_tokenizer(64)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ messages }}"}
    tokenizer.save_pretrained(folder)
    models = open_models([spec(folder)])

    check_buildable(models, EvaluationConfig(apply_chat_template="tool_use"))
    with pytest.raises(CheckpointError, match=r"no chat template 'tool', which .* names\. Did you mean 'tool_use'"):
        check_buildable(models, EvaluationConfig(apply_chat_template="tool"))
