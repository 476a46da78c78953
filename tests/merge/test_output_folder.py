"""The written folder, as transformers, the hub and a person read it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from kinray.merge.cli import main
from tests.merge.kitchen import Kitchen, assert_close, read, total

LLAMA = LlamaConfig(
    vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
    tie_word_embeddings=False,
)  # fmt: skip
MEAN = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"


def llamas(kitchen: Kitchen, **settings: object) -> list[LlamaForCausalLM]:
    models = []
    for number, name in enumerate("ab"):
        torch.manual_seed(number)
        models.append(LlamaForCausalLM(LlamaConfig(**LLAMA.to_dict() | settings)).eval())
        models[-1].save_pretrained(kitchen.folder / name, max_shard_size="1KB" if number else "1GB")
    return models


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(12).view(2, 6)).logits
    return result


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_the_shards_and_computes_what_the_merged_weights_mean(kitchen: Kitchen, tied: bool) -> None:
    a, b = llamas(kitchen, tie_word_embeddings=tied)
    kitchen.run(MEAN, "--shard-size", "1KB")
    with torch.no_grad():
        for one, other in zip(a.parameters(), b.parameters(), strict=True):
            one.copy_((one + other) / 2)

    loaded, told = AutoModelForCausalLM.from_pretrained(kitchen.out, output_loading_info=True)

    assert len(list(kitchen.out.glob("*.safetensors"))) > 3
    assert not told["missing_keys"] and not told["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), logits(a))


def test_stacked_layers_load_as_a_deeper_model(kitchen: Kitchen) -> None:
    a, b = llamas(kitchen)
    kitchen.run("""
        merge_method: passthrough
        slices:
          - sources: [{model: a, layer_range: [0, 3]}]
          - sources: [{model: b, layer_range: [1, 3]}]
        """)

    loaded = AutoModelForCausalLM.from_pretrained(kitchen.out)

    a.model.layers.extend(b.model.layers[1:])
    a.model.norm, a.lm_head, a.config.num_hidden_layers = b.model.norm, b.lm_head, 5
    for number, layer in enumerate(a.model.layers):
        layer.self_attn.layer_idx = number
    assert loaded.config.num_hidden_layers == 5
    torch.testing.assert_close(logits(loaded), logits(a))


def test_index_and_headers_say_where_every_tensor_is(kitchen: Kitchen) -> None:
    kitchen.family("a", "b")
    kitchen.run(MEAN, "--shard-size", "400B")

    index = json.loads((kitchen.out / "model.safetensors.index.json").read_text())

    found = {}
    for file in kitchen.out.glob("*.safetensors"):
        with safe_open(file, framework="pt") as stream:
            assert stream.metadata() == {"format": "pt"}
            found |= dict.fromkeys(stream.keys(), file.name)
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read(kitchen.out).values())


def test_tokenizer_template_generation_config_and_code_come_with_the_weights(kitchen: Kitchen) -> None:
    kitchen.family("a", "b")
    kitchen.model("a", auto_map={"AutoModel": "modeling.Tiny"}, torch_dtype="float32", _name_or_path="/secret")
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "modeling.py")
    for name in files:
        (kitchen.folder / "a" / name).write_text(name)
    (kitchen.folder / "a" / "optimizer.bin").write_text("not this")

    kitchen.run(MEAN)

    own = {"config.json", "model.safetensors", "recipe.yaml", "README.md"}
    assert {file.name for file in kitchen.out.iterdir()} == {*files, *own}
    assert all((kitchen.out / name).read_text() == name for name in files)
    assert "_name_or_path" not in kitchen.config()


def front_matter(card: str) -> dict[str, object]:
    assert card.startswith("---\n")
    found: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_card_tells_models_methods_notes_and_the_recipe(kitchen: Kitchen) -> None:
    kitchen.family("a", "b")
    recipe = f"# by hand ``` {{}}\nname: first\n{MEAN}---\nmerge_method: slerp\nbase_model: a\nslices:\n" + (
        "- sources: [{model: a, layer_range: [0, 3]}, {model: first, layer_range: [0, 3]}]\n"
    )

    kitchen.run(recipe)

    card = (kitchen.out / "README.md").read_text()
    assert front_matter(card) == {"library_name": "transformers", "tags": ["merge", "kinray"]}
    assert card.startswith("---\n") and "\n# out\n" in card
    assert "A merge of language models by linear, slerp, made with kinray." in card
    assert "- `a`\n- `b`\n" in card and "`first`" not in card
    assert f"````yaml\n{recipe.strip()}\n````" in card
    assert (kitchen.out / "recipe.yaml").read_text() == recipe


def test_card_names_models_of_the_hub_as_base_models(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    models = dict(zip(("me/a", "you/b"), kitchen.family("a", "b"), strict=True))
    monkeypatch.setattr("kinray.checkpoints.locate._fetch", lambda model, *_: kitchen.folder / model.split("/")[1])

    merged = kitchen.merge("merge_method: linear\nmodels: [{model: me/a@v1}, {model: you/b}]")

    assert_close(merged, total([0.5, 0.5], list(models.values())))
    assert front_matter((kitchen.out / "README.md").read_text())["base_model"] == ["me/a", "you/b"]


def test_written_recipe_makes_the_same_bits_again(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b")
    kitchen.run("merge_method: della\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {density: 0.5}\n")

    assert main([str(kitchen.out / "recipe.yaml"), "again"]) == 0

    files = ("model.safetensors", "config.json", "recipe.yaml")
    assert all((kitchen.out / name).read_bytes() == (kitchen.folder / "again" / name).read_bytes() for name in files)


def test_last_line_says_where_what_and_how_large(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.family("a", "b")

    kitchen.run(MEAN, "--verify")

    assert f"Wrote {kitchen.out}: 0.00 GB of float32, read back and compared, in " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["new/deep/out", "link"])
def test_folder_may_be_deep_or_behind_a_link(kitchen: Kitchen, name: str) -> None:
    kitchen.family("a", "b")
    (kitchen.folder / "elsewhere").mkdir()
    (kitchen.folder / "link").symlink_to(kitchen.folder / "elsewhere")
    recipe = str(kitchen.write(MEAN))

    assert main([recipe, name]) == 0
    assert main([recipe, name, "--overwrite"]) == 0

    assert (Path(name) / "model.safetensors").is_file()
    assert (kitchen.folder / "link").is_symlink()
    assert kitchen.left() == []


def test_working_folder_may_be_the_output_if_it_is_empty(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.family("a", "b")
    kitchen.out.mkdir()
    recipe = kitchen.write(MEAN.replace("model: ", f"model: {kitchen.folder}/"))
    monkeypatch.chdir(kitchen.out)

    assert main([str(recipe), "."]) == 0

    assert "# out" in (kitchen.out / "README.md").read_text()
