"""Recipes that cannot be merged: exit code 2, one message, no traceback, nothing written."""

import json
import re

import pytest
import torch

from kinray.merge.cli import main
from tests.helpers import make_model, random_tensors
from tests.merge.kitchen import Kitchen, shapes

CASES = {
    "no such method": (
        "merge_method: slrep\nmodels: [{model: a}, {model: b}]",
        "no merge method 'slrep'. Did you mean 'slerp'",
    ),
    "no such model": ("merge_method: linear\nmodels: [{model: a}, {model: zzz}]", "Model 'zzz': there is no folder zzz"),
    "no such parameter": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {tt: 1}",
        "'slerp' has no parameter 'tt'. Did you mean 't'",
    ),
    "value out of range": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 1.2]}",
        "'t' of 'slerp' is 1.2. It must be from 0 to 1",
    ),
    "base missing": ("merge_method: ties\nmodels: [{model: a}]", "'ties' merges changes of a base. Add base_model"),
    "base missing in slerp": (
        "merge_method: slerp\nmodels: [{model: a}, {model: b}]",
        "'slerp' starts from one of its models. Name it as base_model",
    ),
    "base without a part": (
        "merge_method: linear\nbase_model: base\nmodels: [{model: a}, {model: b}]",
        "base_model 'base' is not among the models, and 'linear' has no other part for it",
    ),
    "three in slerp": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}, {model: base}]",
        "'slerp' takes 2 models, not 3",
    ),
    "two in passthrough": ("merge_method: passthrough\nmodels: [{model: a}, {model: b}]", "'passthrough' takes 1 model, not 2"),
    "one in model_stock": ("merge_method: model_stock\nbase_model: base\nmodels: [{model: a}]", "takes 2 to 64 models, not 1"),
    "only the base": ("merge_method: ties\nbase_model: a\nmodels: [{model: a}]", "parents|takes 1 to 64"),
    "a model twice": ("merge_method: linear\nmodels: [{model: a}, {model: a}]", "'a' is among the models twice"),
    "weights of zero": (
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0}",
        "weights of 'linear' add up to 0. Change them or set normalize to false",
    ),
    "probabilities": (
        "merge_method: della\nbase_model: base\nmodels: [{model: a}]\nparameters: {density: 0.1, epsilon: 0.2}",
        "lower epsilon",
    ),
    "tokenizer of a stranger": (
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\ntokenizer_source: aa",
        "tokenizer_source 'aa' is none of the merge's models. Did you mean 'a'",
    ),
    "revision of a folder": ("merge_method: linear\nmodels: [{model: a@v1}]", "a is a folder; a revision belongs to a hub id"),
    "gguf": ("merge_method: linear\nmodels: [{model: a.gguf}]", "a.gguf cannot be merged. GGUF is a format to run models from"),
    "adapter as a model": ("merge_method: linear\nmodels: [{model: lora}]", "It is an adapter: name it .*MODEL\\+ADAPTER"),
    "quantised": ("merge_method: linear\nmodels: [{model: int4}]", "is quantised.* use the model before quantisation"),
    "other architecture": (
        "merge_method: linear\nmodels: [{model: a}, {model: neox}]",
        "'neox' is a GPTNeoX, but the base 'a'",
    ),
    "other shape": (
        "merge_method: linear\nmodels: [{model: a}, {model: wide}]",
        r"'model.layers.0.mlp.up_proj.weight' has shape \(9, 6\) in 'wide' but \(8, 6\) in 'a'",
    ),
    "other depth": (
        "merge_method: linear\nmodels: [{model: a}, {model: deep}]",
        "'deep' has 4 layers, 'a' has 3. Use slices with as many layers of each",
    ),
    "other heads": (
        "merge_method: linear\nmodels: [{model: a}, {model: heads}]",
        "'heads' has num_attention_heads 2 but the base 'a' has 3",
    ),
    "damaged": ("merge_method: linear\nmodels: [{model: a}, {model: cut}]", "truncated"),
}


@pytest.fixture
def models(kitchen: Kitchen) -> Kitchen:
    kitchen.family("base", "a", "b")
    for name, settings in {"neox": {"architectures": ["GPTNeoX"]}, "int4": {"quantization_config": {"bits": 4}}}.items():
        kitchen.model(name, **settings)
    kitchen.model("wide", random_tensors(0, shapes() | {"model.layers.0.mlp.up_proj.weight": (9, 6)}))
    kitchen.model("deep", random_tensors(0, shapes(4)))
    kitchen.model("heads", num_attention_heads=2)
    config = kitchen.folder / "a" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 3}))
    kitchen.model("cut")
    file = kitchen.folder / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    (kitchen.folder / "lora").mkdir()
    (kitchen.folder / "lora" / "adapter_config.json").write_text("{}")
    return kitchen


@pytest.mark.parametrize("case", CASES)
def test_recipe_that_cannot_be_merged_is_refused_before_anything_is_written(
    models: Kitchen, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, message = CASES[case]

    code = models.run(recipe)

    errors = capsys.readouterr().err
    assert code == 2
    assert re.search(message, errors), errors
    assert errors.count("\n") == errors.count("Note:") + 1
    assert models.left() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml", "out"], "Cannot read the recipe none.yaml"),
        (["recipe.yaml"], "Name the folder to write .* or add --explain"),
        (["recipe.yaml", "recipe.yaml"], "recipe.yaml is a file. Name a folder"),
        (["recipe.yaml", "/"], "/ cannot be written as a model folder"),
        (["recipe.yaml", "/proc"], "/proc is a mount point, which no new folder can take the place of. Name a folder in it"),
        (["recipe.yaml", "."], "exists and is not empty. Name another folder, or add --overwrite"),
        (["recipe.yaml", ".", "--overwrite"], r"holds no model \(no config.json\). --overwrite replaces a model's folder"),
        (["recipe.yaml", "out", "--device", "cuda"], "torch finds no CUDA GPU here. Use --device cpu"),
    ],
)
def test_command_line_that_cannot_be_is_refused(
    kitchen: Kitchen,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kitchen.family("a", "b")
    kitchen.write("merge_method: linear\nmodels: [{model: a}, {model: b}]")

    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert kitchen.left() == []


@pytest.mark.parametrize("option", ["--shard-size=0", "--shard-size=5XB", "--threads=0", "--threads=x", "--dtype=int8"])
def test_option_of_no_meaning_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["recipe.yaml", "out", option])
    assert option.partition("=")[2] in capsys.readouterr().err


def test_model_that_is_only_a_pickle_is_refused_with_what_to_do(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.family("a", "b")
    (kitchen.folder / "b" / "model.safetensors").rename(kitchen.folder / "b" / "pytorch_model.bin")

    assert kitchen.run("merge_method: linear\nmodels: [{model: a}, {model: b}]") == 2
    assert "a pickle" in capsys.readouterr().err


def test_folder_of_a_gguf_alone_is_refused_with_what_to_do(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.family("a")
    (kitchen.folder / "q").mkdir()
    (kitchen.folder / "q" / "model-Q4_K_M.gguf").write_bytes(b"GGUF")

    assert kitchen.run("merge_method: linear\nmodels: [{model: a}, {model: q}]") == 2
    assert "Merge the model that it was made from" in capsys.readouterr().err


def test_model_of_eight_bit_floats_is_refused(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.family("a")
    tensors = {name: torch.zeros(shape).to(torch.float8_e4m3fn) for name, shape in shapes().items()}
    make_model(kitchen.folder / "b", tensors)

    assert kitchen.run("merge_method: linear\nmodels: [{model: a}, {model: b}]") == 2
    assert "Quantised weights cannot be merged" in capsys.readouterr().err
