"""Any tensors by any names: missing, surplus, tied, integer, of mixed dtypes, of experts and of other towers."""

import pytest
import torch
from torch import Tensor

from tests.checkpoints.worded import model_with
from tests.helpers import random_tensors
from tests.merge.kitchen import EMBEDDING, OUTPUT, Kitchen, assert_close, double, near, read, shapes, total

MEAN = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"
IN_FLOAT32 = MEAN + "dtype: float32\n"


def without(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_tensor_that_one_model_lacks_is_the_others(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    a = random_tensors(1, shapes())
    lacking = "model.layers.1.mlp.up_proj.weight"
    kitchen.model("a", a)
    b = kitchen.model("b", without(near(a, 2), lacking))

    merged = kitchen.merge(MEAN)

    assert_close(merged, total([0.5, 0.5], [double(a), b | {lacking: double(a)[lacking]}]))
    assert f"Note: 'b' lacks '{lacking}': taken from 'a'." in capsys.readouterr().err


def test_tensors_that_only_others_have_are_taken_as_they_are(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    a = random_tensors(1, shapes())
    surplus = {"model.layers.0.mlp.up_proj.bias": torch.randn(8), "model.layers.1.mlp.up_proj.bias": torch.randn(8)}
    kitchen.model("a", a)
    b = near(a, 2)
    kitchen.model("b", b | surplus)

    merged = kitchen.merge(MEAN)

    assert_close(merged, total([0.5, 0.5], [double(a), double(b)]) | double(surplus))
    assert "'a' has no 'model.layers.0.mlp.up_proj.bias' and 1 more: taken from 'b' as they are." in capsys.readouterr().err


def test_what_only_some_models_have_is_kept_in_slices_too(kitchen: Kitchen) -> None:
    a = random_tensors(1, shapes())
    bias = {"model.layers.2.mlp.up_proj.bias": torch.randn(8)}
    kitchen.model("a", a)
    kitchen.model("b", near(a, 2) | bias)

    merged = kitchen.merge("""
        merge_method: linear
        slices:
          - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
          - sources: [{model: a, layer_range: [2, 3]}, {model: b, layer_range: [2, 3]}]
        """)

    assert torch.equal(merged["model.layers.1.mlp.up_proj.bias"], bias["model.layers.2.mlp.up_proj.bias"])


def test_integer_buffers_are_the_base_s(kitchen: Kitchen) -> None:
    a = random_tensors(1, shapes())
    kitchen.model("a", a | {"model.ids": torch.arange(4), "model.mask": torch.tensor([True, False])})
    kitchen.model("b", near(a, 2) | {"model.ids": torch.arange(4) + 7})

    merged = kitchen.merge(MEAN + "dtype: float16")

    assert torch.equal(merged["model.ids"], torch.arange(4))
    assert merged["model.mask"].dtype == torch.bool


def test_caches_of_old_checkpoints_are_left_out(kitchen: Kitchen) -> None:
    a = random_tensors(1, shapes())
    kitchen.model("a", a | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    kitchen.model("b", near(a, 2))

    assert set(kitchen.merge(MEAN)) == set(a)


def test_tied_output_layer_is_left_out_even_if_it_is_stored(kitchen: Kitchen) -> None:
    a = random_tensors(1, shapes())
    kitchen.model("a", a | {OUTPUT: a[EMBEDDING]}, tie_word_embeddings=True)
    kitchen.model("b", without(near(a, 2), OUTPUT), tie_word_embeddings=True)

    assert set(kitchen.merge(MEAN)) == set(a) - {OUTPUT}


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {}, {"text_config": {"tie_word_embeddings": True}}])
def test_output_layer_of_an_untied_model_is_left_out_where_the_base_has_none(
    kitchen: Kitchen, settings: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    a = without(random_tensors(1, shapes()), OUTPUT)
    kitchen.model("a", a, **settings)
    b = near(a, 2)
    kitchen.model("b", b | {OUTPUT: torch.randn(10, 6)}, tie_word_embeddings=False)

    merged = kitchen.merge(MEAN)

    assert_close(merged, total([0.5, 0.5], [double(a), double(b)]))
    assert "'b' has an output layer, 'a' has none but its embedding: left out" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {}])
def test_embedding_of_a_tied_model_enters_the_output_layer_of_an_untied_one(
    kitchen: Kitchen, settings: dict[str, object]
) -> None:
    a = random_tensors(1, shapes())
    kitchen.model("a", a, tie_word_embeddings=False)
    b = without(near(a, 2), OUTPUT)
    kitchen.model("b", b, **settings)

    merged = kitchen.merge(MEAN)

    assert_close(merged, total([0.5, 0.5], [double(a), double(b) | {OUTPUT: double(b)[EMBEDDING]}]))


def test_dtypes_may_be_mixed_between_models_and_within_one(kitchen: Kitchen) -> None:
    a = random_tensors(1, shapes(), torch.float16)
    b = {name: tensor.to(torch.bfloat16) for name, tensor in near(a, 2).items()}
    b["model.norm.weight"] = b["model.norm.weight"].double()
    kitchen.model("a", a)
    kitchen.model("b", b)

    exact = kitchen.merge(IN_FLOAT32)
    rounded = kitchen.merge(MEAN + "dtype: bfloat16", "--overwrite")

    assert_close(exact, total([0.5, 0.5], [double(a), double(b)]))
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)


@pytest.mark.parametrize(
    ("keys", "option", "expected"),
    [
        ("", [], torch.float16),
        ("dtype: float32", [], torch.float32),
        ("dtype: float32\nout_dtype: bfloat16", [], torch.bfloat16),
        ("out_dtype: bfloat16", [], torch.bfloat16),
        ("dtype: float16\nout_dtype: bfloat16", ["--dtype", "float32"], torch.float32),
    ],
)
def test_dtype_is_the_command_line_s_else_out_dtype_else_dtype_else_the_base_s(
    kitchen: Kitchen, keys: str, option: list[str], expected: torch.dtype
) -> None:
    a = random_tensors(1, shapes(), torch.float16)
    a["model.norm.weight"] = a["model.norm.weight"].float()
    kitchen.model("a", a, torch_dtype="float16")
    kitchen.model("b", near(random_tensors(1, shapes()), 2))

    merged = kitchen.merge(MEAN + keys, *option)

    assert {tensor.dtype for tensor in merged.values()} == {expected}
    assert kitchen.config()["dtype"] == str(expected).removeprefix("torch.")
    assert "torch_dtype" not in kitchen.config()


def test_experts_belong_to_their_layer(kitchen: Kitchen) -> None:
    moe = {
        "model.embed_tokens.weight": (10, 6),
        "model.norm.weight": (6,),
        **{f"model.layers.{n}.block_sparse_moe.experts.{e}.w1.weight": (4, 6) for n in range(3) for e in range(4)},
        **{f"model.layers.{n}.block_sparse_moe.gate.weight": (4, 6) for n in range(3)},
    }
    a, b = random_tensors(1, moe), random_tensors(2, moe)
    kitchen.model("a", a)
    kitchen.model("b", b)

    merged = kitchen.merge("""
        merge_method: linear
        models: [{model: a, parameters: {weight: [1, 0]}}, {model: b, parameters: {weight: [0, 1]}}]
        """)

    for name, tensor in merged.items():
        share = int(name.split(".")[2]) / 2 if "layers" in name else 0.0
        torch.testing.assert_close(tensor, (1 - share) * a[name] + share * b[name])


def test_each_tower_has_depths_of_its_own(kitchen: Kitchen) -> None:
    towers = {f"vision.blocks.{n}.w": (4, 4) for n in range(5)} | {f"text.layers.{n}.w": (4, 4) for n in range(3)}
    a, b = random_tensors(1, towers), random_tensors(2, towers)
    kitchen.model("a", a, text_config={"num_hidden_layers": 3})
    kitchen.model("b", b, text_config={"num_hidden_layers": 3})

    merged = kitchen.merge("""
        merge_method: linear
        models: [{model: a, parameters: {weight: [1, 0]}}, {model: b, parameters: {weight: [0, 1]}}]
        """)

    for name, tensor in merged.items():
        share = int(name.split(".")[2]) / (4 if name.startswith("vision") else 2)
        torch.testing.assert_close(tensor, (1 - share) * a[name] + share * b[name])


def test_points_and_empty_tensors_survive(kitchen: Kitchen) -> None:
    a = random_tensors(1, shapes()) | {"model.scale": torch.tensor(2.0), "model.none": torch.empty(0, 3)}
    b = near(random_tensors(1, shapes()), 2) | {"model.scale": torch.tensor(4.0), "model.none": torch.empty(0, 3)}
    kitchen.model("a", a)
    kitchen.model("b", b)

    merged = kitchen.merge(MEAN)

    assert merged["model.scale"] == 3.0
    assert merged["model.none"].shape == (0, 3)


CATS, COWS = {"?": 0, "cat": 1, "dog": 2}, {"?": 0, "dog": 1, "cow": 2, "pig": 3}


@pytest.mark.parametrize("source", ["base", "union", "y"])
def test_rows_of_tokens_are_merged_where_the_vocabularies_differ(kitchen: Kitchen, source: str) -> None:
    x, y = (model_with(kitchen.folder / n, ids, seed=s) for n, ids, s in (("x", CATS, 1), ("y", COWS, 2)))

    merged = kitchen.merge(f"merge_method: linear\nmodels: [{{model: x}}, {{model: y}}]\ntokenizer_source: {source}\n")

    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(kitchen.out / "tokenizer.json")).get_vocab()
    assert set(ids) == {"base": set(CATS), "union": set(CATS) | set(COWS), "y": set(COWS)}[source]
    assert merged[EMBEDDING].shape[0] == kitchen.config()["vocab_size"] == len(ids)
    for token, place in ids.items():
        rows = [m.load(EMBEDDING)[own[token]] for m, own in ((x, CATS), (y, COWS)) if token in own]
        torch.testing.assert_close(merged[EMBEDDING][place], torch.stack(rows).mean(0))


def test_vocabularies_that_differ_in_their_last_rows_need_no_tokenizer_source(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = random_tensors(1, shapes()), random_tensors(2, shapes(vocabulary=12))
    kitchen.model("a", a)
    kitchen.model("b", b, vocab_size=12)

    merged = kitchen.merge(MEAN)

    torch.testing.assert_close(merged[EMBEDDING], (a[EMBEDDING] + b[EMBEDDING][:10]) / 2)
    assert "'b' has 12 vocabulary rows, the base has 10: the last 2 are left out" in capsys.readouterr().err


def test_written_model_is_a_parent_again(kitchen: Kitchen) -> None:
    kitchen.family("a", "b")
    kitchen.merge(MEAN)
    kitchen.out.rename(kitchen.folder / "child")

    merged = kitchen.merge("merge_method: linear\nmodels: [{model: child}, {model: a}]")

    assert_close(merged, total([0.5, 0.5], [double(read(kitchen.folder / "child")), double(read(kitchen.folder / "a"))]))
