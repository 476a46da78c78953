"""What a recipe file may hold: strict, with a message for each mistake."""

from pathlib import Path
from textwrap import dedent

import pytest

from kinray.errors import ConfigError
from kinray.merge.document import Document, Reference, read_recipe


def read(folder: Path, text: str) -> list[Document]:
    file = folder / "recipe.yaml"
    file.write_text(dedent(text))
    return read_recipe(file)[0]


LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"
SLICES = "merge_method: slerp\nslices:\n- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LINEAR + "merge_metod: x", "unknown key 'merge_metod'. Did you mean 'merge_method'"),
        ("merge_method: linear\nmodels: [{model: a, weight: 1}]", "unknown key 'models.0.weight'.* Known: model, parameters"),
        (SLICES.replace("layer_range: [0, 2]}]", "layer_rnage: [0, 2]}]"), "'slices.0.sources.1.layer_range' is missing"),
        (SLICES.replace("layer_range: [0, 2]}]", "layer_range: [0, 2], scale: 1}]"), "unknown key 'slices.0.sources.1.scale'"),
        (SLICES + "  parametres: {}", "unknown key 'slices.0.parametres'. Did you mean 'parameters'"),
        (LINEAR + "tokenizer: {sorce: base}", "unknown key 'tokenizer.sorce'. Did you mean 'source'"),
        (LINEAR + "kinray: {sede: x}", "unknown key 'kinray.sede'. Did you mean 'seed'"),
        (LINEAR + "modules: {text: {}}", "'modules' is not supported. Parts of a model cannot be merged in different ways"),
        (SLICES + "  residual_weight: 0.5", "'slices.0.residual_weight' is not supported. mergekit does not use it"),
        (LINEAR + "chat_template: chatml", "'chat_template' is not supported. The child has the chat template"),
        (LINEAR + "tokenizer: {tokens: {x: {source: y}}}", "'tokenizer.tokens' is not supported. Embeddings of single tokens"),
        ("models: [{model: a}]", "'merge_method' is missing"),
        ("merge_method: linear", "a merge has either 'models' or 'slices'"),
        (LINEAR + SLICES.partition("\n")[2], "either 'models' or 'slices', not both"),
        ("merge_method: linear\nmodels: []", "a merge has either 'models' or 'slices'"),
        ("merge_method: linear\nmodels: {model: a}", "'models' is {'model': 'a'}: Input should be a valid list"),
        ("merge_method: linear\nmodels: [a, b]", "'models.0' is 'a'"),
        (LINEAR + "tokenizer_source: base\ntokenizer: {source: base}", "either 'tokenizer_source' or 'tokenizer', not both"),
        (LINEAR + "tokenizer: {pad_to_multiple_of: 0}", "'tokenizer.pad_to_multiple_of' is 0"),
        (LINEAR + "dtype: bf16", "'dtype' is 'bf16': expected one of bfloat16, float16, float32"),
        (LINEAR + "out_dtype: float64", "'out_dtype' is 'float64': expected one of"),
        (LINEAR + "parameters: [1]", r"'parameters' is \[1\]"),
        ("merge_method: slerp\nslices: [{sources: []}]", "'slices.0.sources' is "),
    ],
)
def test_key_or_value_that_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe.yaml: .*{message}"):
        read(tmp_path, text)


@pytest.mark.parametrize("layers", ["[2, 2]", "[3, 1]", "[-1, 2]", "[0, 1, 2]", "[0]", "[0, two]", "[0, 1.5]", "4"])
def test_layer_range_that_is_none_is_refused(tmp_path: Path, layers: str) -> None:
    with pytest.raises(ConfigError, match=r"'slices.0.sources.1.layer_range"):
        read(tmp_path, SLICES.replace("[0, 2]}]", f"{layers}}}]"))


def test_sources_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the sources of a slice have 2 and 3 layers; they must have equally many"):
        read(tmp_path, SLICES.replace("[0, 2]}]", "[4, 7]}]"))


def test_all_mistakes_of_a_merge_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'a'.* unknown key 'b'"):
        read(tmp_path, LINEAR + "a: 1\nb: 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: !!python/name:os.system x", r"tags \(!!python/name:os.system\) are not supported"),
        ("a: &x 1\nb: *x", r"line 2, column 4: aliases \(\*name\) are not supported"),
        ("merge_method: linear\nmerge_method: ties", "line 2, column 1: key 'merge_method' is there twice"),
        ("models: [{model: a, model: b}]", "key 'model' is there twice"),
        ("1: x", "key 1 is not a word"),
        ("merge_method: [", "line 1"),
        ("- merge_method: linear", "must hold a mapping such as 'merge_method: linear', not list"),
        ("linear", "must hold a mapping such as 'merge_method: linear', not str"),
        ("", "holds 0 merges. A recipe has 1 to 1024"),
        ("# nothing\n---\n---\n", "holds 0 merges"),
        (LINEAR + "---\n" + LINEAR + "extra: 1\n", "recipe.yaml, merge 2: unknown key 'extra'"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"#" * ((1 << 20) + 1)], ids=["no text", "too large"])
def test_file_that_is_no_text_or_too_large_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)

    with pytest.raises(ConfigError, match=r"is not text in UTF-8|a recipe has at most"):
        read_recipe(file)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="Cannot read the recipe"):
            read_recipe(path)


def test_blank_parameters_are_none(tmp_path: Path) -> None:
    (document,) = read(
        tmp_path,
        """
        merge_method: linear
        slices:
          - sources:
              - model: a
                layer_range: [0, 2]
                parameters:
            parameters:
        base_model:
        tokenizer:
        parameters:
        """,
    )

    assert document.parameters == document.slices[0].parameters == document.slices[0].sources[0].parameters == {}
    assert document.base_model is None and document.vocabulary is None


def test_several_documents_keep_their_order_and_blank_ones_are_passed_over(tmp_path: Path) -> None:
    documents = read(tmp_path, f"---\nname: first\n{LINEAR}---\n---\nname: second\n{LINEAR}")

    assert [document.name for document in documents] == ["first", "second"]


def test_dtype_may_be_written_as_torch_does(tmp_path: Path) -> None:
    (document,) = read(tmp_path, LINEAR + "dtype: torch.bfloat16\nout_dtype: float16")

    assert (document.dtype, document.out_dtype) == ("bfloat16", "float16")


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("owner/model", ("owner/model", None, None, None)),
        ("owner/model@v1", ("owner/model", "v1", None, None)),
        ("owner/model+me/lora", ("owner/model", None, "me/lora", None)),
        ("owner/model@v1+me/lora@main", ("owner/model", "v1", "me/lora", "main")),
        ("/models/base", ("/models/base", None, None, None)),
    ],
)
def test_reference_names_model_revision_and_adapter(word: str, parts: tuple[str | None, ...]) -> None:
    reference = Reference.model_validate(word)

    assert (reference.model, reference.revision, reference.adapter, reference.adapter_revision) == parts
    assert str(reference) == word


def test_folder_may_have_any_sign_in_its_name(tmp_path: Path) -> None:
    whole, part = tmp_path / "a+b@c", tmp_path / "d@e"
    whole.mkdir()
    part.mkdir()

    alone, adapted = (Reference.model_validate(word) for word in (str(whole), f"{part}+{part}"))

    assert (alone.model, alone.revision, alone.adapter) == (str(whole), None, None)
    assert (adapted.model, adapted.adapter) == (str(part), str(part))


@pytest.mark.parametrize("word", ["a+b+c", "+b", "a+", 3, None, "", " ", ["a"], {"path": "a"}])
def test_reference_that_names_no_model_is_refused(word: object) -> None:
    with pytest.raises(ValueError, match=r"a model is written as a word|a model with an adapter is written MODEL"):
        Reference.model_validate(word)


def test_too_many_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 65 items"):
        read(tmp_path, "merge_method: linear\nmodels:\n" + "".join(f"- model: m{number}\n" for number in range(66)))
