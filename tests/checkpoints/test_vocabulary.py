"""One vocabulary for models with different tokenizers, against a plain reading of the rule, token by token."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from kinray.checkpoints.adapters import open_model
from kinray.checkpoints.folder import Checkpoint, open_checkpoint
from kinray.checkpoints.rows import vocabulary_tensors
from kinray.checkpoints.vocabulary import config_with_vocabulary, plan_vocabulary, with_vocabulary, write_tokenizer
from kinray.errors import CheckpointError
from tests.checkpoints.worded import WIDTH, model_with, special, tensors_of, word_level
from tests.helpers import ARCHITECTURE, make_model

EMBEDDING = "model.embed_tokens.weight"
VOCABULARY = {EMBEDDING, "lm_head.weight", "lm_head.bias"}
BASE = {"?": 0, "cat": 1, "dog": 2}


def expected_row(
    place: int,
    model: int,
    tokens: dict[int, str],
    read: list[dict[str, int]],
    tensors: list[Tensor],
    base: int | None,
    owner: int,
) -> Tensor:
    """Say what stands in one row of one model, by the rule as it is documented."""

    def own(number: int) -> Tensor | None:
        rows = tensors[number]
        if place in tokens:
            at = read[number].get(tokens[place], len(rows))
        else:
            at = len(rows) if place in read[number].values() else place
        return rows[at] if at < len(rows) else None

    if (row := own(model)) is not None:
        return row
    if base is not None and (row := own(base)) is not None:
        return row
    having = [row for number in range(len(tensors)) if (row := own(number)) is not None]
    return torch.stack(having).mean(0) if having else tensors[owner].mean(0)


def expected_tokens(source: str | int, base: int | None, read: list[dict[str, int]], rows: list[int]) -> dict[int, str]:
    """Say which token stands at which id."""
    owner = source if isinstance(source, int) else base or 0
    tokens = {place: token for token, place in read[owner].items()}
    if source == "union":
        for own, count in zip(read, rows, strict=True):
            for token, place in sorted(own.items(), key=lambda item: item[1]):
                if token not in tokens.values() and place < count:
                    tokens[max(tokens) + 1] = token
    return tokens


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[dict[str, int]], list[int], int | None, Any, int | None]:
    """Draw vocabularies with gaps, numbers of rows (more or fewer than ids), a base, a source and padding."""
    words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)
    read = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(words)
        places = draw(st.lists(st.integers(0, 9), min_size=len(tokens), max_size=len(tokens), unique=True))
        read.append(dict(zip(tokens, places, strict=True)))
    rows = [draw(st.integers(1, 12)) for _ in read]
    base = draw(st.none() | st.integers(0, len(read) - 1))
    source = draw(st.sampled_from(["base", "union"]) | st.integers(0, len(read) - 1))
    return read, rows, base, source, draw(st.sampled_from([None, 1, 8]))


@given(situations(), st.booleans())
def test_every_row_follows_the_rule(situation: Any, tied: bool) -> None:
    read, rows, base, source, multiple = situation
    with TemporaryDirectory() as folder:
        models = [
            model_with(Path(folder) / f"m{number}", ids, count, seed=number, tied=tied)
            for number, (ids, count) in enumerate(zip(read, rows, strict=True))
        ]
        original = [tensors_of(model) for model in models]

        vocabulary = plan_vocabulary(models, base, source, multiple)

        owner = source if isinstance(source, int) else base or 0
        tokens = expected_tokens(source, base, read, rows)
        held = {
            place for place, token in tokens.items() if any(ids.get(token, 99) < n for ids, n in zip(read, rows, strict=True))
        }
        size = max(rows[owner], *(place + 1 for place in held), 1)
        assert vocabulary.size == -(-size // (multiple or 1)) * (multiple or 1)
        for number, shown in enumerate(with_vocabulary(models, vocabulary)):
            for name in original[number]:
                tensor = shown.load(name)
                assert tuple(tensor.shape) == shown.tensors[name].shape
                if name not in VOCABULARY:
                    assert torch.equal(tensor, original[number][name])
                    continue
                theirs = [tensors[name] for tensors in original]
                wanted = [expected_row(at, number, tokens, read, theirs, base, owner) for at in range(vocabulary.size)]
                torch.testing.assert_close(tensor, torch.stack(wanted), rtol=1e-6, atol=1e-6)


def test_equal_vocabularies_pass_through_mapped_from_their_files(tmp_path: Path) -> None:
    models = [model_with(tmp_path / name, BASE, rows=8, seed=seed) for seed, name in enumerate(("base", "chat"))]

    vocabulary = plan_vocabulary(models, 0, "union")

    assert with_vocabulary(models, vocabulary) == models
    assert all(a is b for a, b in zip(with_vocabulary(models, vocabulary), models, strict=True))
    assert vocabulary.notices == () and vocabulary.changed == {}


def test_union_puts_new_tokens_into_the_padding_of_the_base(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", BASE, rows=6, seed=1)
    chat = model_with(tmp_path / "chat", special(word_level(BASE), "<|im_start|>"), rows=8, seed=2)

    vocabulary = plan_vocabulary([base, chat], 0, "union")

    assert vocabulary.size == 6
    assert vocabulary.rows[0].tolist() == [0, 1, 2, -1, 4, 5]
    assert vocabulary.rows[1].tolist() == [0, 1, 2, 3, 4, 5]
    ours, theirs = (model.load(EMBEDDING) for model in with_vocabulary([base, chat], vocabulary))
    assert torch.equal(ours[3], theirs[3]) and torch.equal(theirs[3], chat.load(EMBEDDING)[3])
    assert torch.equal(ours[4:], base.load(EMBEDDING)[4:])


def test_row_of_a_dropped_token_does_not_reach_the_padding(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", BASE, rows=4, seed=1)
    chat = model_with(tmp_path / "chat", BASE | {"emu": 3}, rows=4, seed=2)

    vocabulary = plan_vocabulary([base, chat], 0, "base")

    assert torch.equal(with_vocabulary([base, chat], vocabulary)[1].load(EMBEDDING)[3], base.load(EMBEDDING)[3])
    assert vocabulary.notices == (
        "The child has 4 vocabulary rows: the 3 tokens of 'base'.",
        "'chat' (4 tokens, 4 rows): tokens left out: 1; rows filled in: 1.",
    )


def test_token_without_a_row_anywhere_makes_the_child_no_larger(tmp_path: Path) -> None:
    models = [model_with(tmp_path / name, BASE | {"<pad>": 3}, rows=3) for name in ("base", "chat")]

    vocabulary = plan_vocabulary(models, 0, "union")

    assert vocabulary.size == 3
    assert with_vocabulary(models, vocabulary) == models


def test_padding_that_no_model_has_is_the_mean_row_and_said(tmp_path: Path) -> None:
    models = [model_with(tmp_path / name, BASE, seed=seed) for seed, name in enumerate(("base", "chat"))]

    vocabulary = plan_vocabulary(models, 0, "base", pad_to_multiple_of=4)

    mean = models[0].load(EMBEDDING).mean(0)
    for model in with_vocabulary(models, vocabulary):
        torch.testing.assert_close(model.load(EMBEDDING)[3], mean)
    assert vocabulary.notices[-1] == "Rows that no model has: 1; each is the mean of the rows of 'base'."


def test_filled_rows_have_the_models_own_dtype_and_are_averaged_in_float32(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", BASE, dtype=torch.bfloat16)
    others = [model_with(tmp_path / f"m{seed}", BASE | {"emu": 3}, seed=seed, dtype=torch.bfloat16) for seed in range(1, 10)]

    shown = with_vocabulary([base, *others], plan_vocabulary([base, *others], 0, "union"))

    for name in VOCABULARY:
        mean = torch.stack([other.load(name)[3].float() for other in others]).mean(0)
        assert torch.equal(shown[0].load(name)[3], mean.bfloat16())


def test_files_are_never_written_into(tmp_path: Path) -> None:
    models = [model_with(tmp_path / "base", BASE), model_with(tmp_path / "chat", BASE | {"emu": 3}, seed=1)]
    before = [{name: tensor.clone() for name, tensor in tensors_of(model).items()} for model in models]

    for model in with_vocabulary(models, plan_vocabulary(models, 0, "union")):
        for name in model.tensors:
            model.load(name).add_(1) if name in VOCABULARY and model.name == "base" else model.load(name)

    for model, tensors in zip(models, before, strict=True):
        assert all(torch.equal(model.load(name), tensor) for name, tensor in tensors.items())


def with_adapter(folder: Path, base: Checkpoint, saved: dict[str, Tensor], tokens: dict[str, int] | None) -> Any:
    """Write an adapter that saved whole tensors, and its tokenizer if it has one, and open it on ``base``."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1}))
    save_file({f"base_model.model.{name}": tensor for name, tensor in saved.items()}, folder / "adapter_model.safetensors")
    if tokens is not None:
        word_level(tokens).save(str(folder / "tokenizer.json"))
    return open_model(base.folder, folder, "chat")


def test_adapter_with_resized_embeddings_brings_its_own_tokenizer(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", BASE)
    saved = {
        "model.embed_tokens.weight": torch.ones(4, WIDTH),
        "lm_head.weight": torch.ones(4, WIDTH),
        "lm_head.bias": torch.ones(4),
    }
    (base.folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    chat = with_adapter(tmp_path / "lora", base, saved, {"emu": 0, "?": 1, "cat": 2, "dog": 3})

    vocabulary = plan_vocabulary([base, chat], 0, 1)

    assert vocabulary.rows[0].tolist() == [-1, 0, 1, 2]
    ours, theirs = with_vocabulary([base, chat], vocabulary)
    assert torch.equal(ours.load(EMBEDDING)[1:], base.load(EMBEDDING)) and torch.equal(
        theirs.load(EMBEDDING), torch.ones(4, WIDTH)
    )
    (tmp_path / "out").mkdir()
    write_tokenizer(vocabulary, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "lora" / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": 2}


def test_adapter_without_a_tokenizer_has_its_models(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", BASE)
    chat = with_adapter(tmp_path / "lora", base, {EMBEDDING: torch.ones(3, WIDTH)}, None)

    assert with_vocabulary([base, chat], plan_vocabulary([base, chat], 0, "union")) == [base, chat]


def test_adapter_that_resized_only_the_embedding_is_refused(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", BASE)
    chat = with_adapter(tmp_path / "lora", base, {EMBEDDING: torch.ones(4, WIDTH)}, BASE | {"emu": 3})

    with pytest.raises(CheckpointError, match=r"'chat': 'lm_head.bias' has 3 rows but 'model.embed_tokens.weight' has 4"):
        plan_vocabulary([base, chat], 0, "union")


def test_vocabulary_tensors_are_told_by_size_whatever_their_names(tmp_path: Path) -> None:
    model = model_with(tmp_path / "a", BASE, rows=7)

    assert vocabulary_tensors(model) == VOCABULARY


@pytest.mark.parametrize("settings", [{}, {"hidden_size": None}], ids=["as the config says", "as the shapes say"])
def test_vocabulary_tensors_are_told_by_name_where_their_size_is_also_another(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = model_with(tmp_path / "a", BASE, rows=WIDTH, **settings)

    assert model.tensors["model.norm.weight"].shape == (WIDTH,)
    assert vocabulary_tensors(model) == VOCABULARY


def test_table_of_positions_as_long_as_the_vocabulary_is_not_one_of_it(tmp_path: Path) -> None:
    tensors = {"wte.weight": torch.ones(8, 4), "wpe.weight": torch.ones(8, 4), "ln_f.weight": torch.ones(4)}
    config = {"architectures": [ARCHITECTURE], "vocab_size": 8, "n_positions": 8}
    model = open_checkpoint(make_model(tmp_path / "gpt2", tensors, config), "gpt2")

    assert vocabulary_tensors(model) == {"wte.weight"}


def test_vocabulary_size_may_stand_in_the_text_config(tmp_path: Path) -> None:
    model = model_with(tmp_path / "a", BASE, rows=7, vocab_size=None, text_config={"vocab_size": 7})

    assert vocabulary_tensors(model) == VOCABULARY


def test_wrong_vocabulary_size_is_refused(tmp_path: Path) -> None:
    model = model_with(tmp_path / "chat", BASE, vocab_size=99)

    with pytest.raises(CheckpointError, match=r"'chat': no embedding has as many rows as the vocab_size in its config\.json"):
        plan_vocabulary([model], None, "base")


def test_config_takes_size_and_token_ids_of_the_tokenizers_model() -> None:
    base = {
        "vocab_size": 10,
        "hidden_size": 4,
        "bos_token_id": 1,
        "pad_token_id": 9,
        "text_config": {"vocab_size": 10, "eos_token_id": 2},
    }
    owner = {"vocab_size": 12, "hidden_size": 4, "bos_token_id": 5, "text_config": {"vocab_size": 12, "eos_token_id": [7, 8]}}

    config = config_with_vocabulary(base, owner, 16)

    text = {"vocab_size": 16, "eos_token_id": [7, 8]}
    assert config == {"vocab_size": 16, "hidden_size": 4, "bos_token_id": 5, "text_config": text}
    assert base["vocab_size"] == 10


def test_generation_config_and_tokenizer_are_those_of_the_chosen_model(tmp_path: Path) -> None:
    models = [model_with(tmp_path / "base", BASE), model_with(tmp_path / "chat", {"dog": 0, "?": 1})]
    for number, model in enumerate(models):
        (model.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": number}))
    (tmp_path / "out").mkdir()

    write_tokenizer(plan_vocabulary(models, 0, 1), tmp_path / "out")

    for file in ("generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / file).read_bytes() == (models[1].folder / file).read_bytes()
