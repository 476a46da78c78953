"""Unions of tokenizers encode what only one of them could, and cut other text as before."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, GPT2TokenizerFast

from kinray.checkpoints.folder import Checkpoint
from kinray.checkpoints.vocabulary import plan_vocabulary, write_tokenizer
from kinray.errors import CheckpointError
from tests.checkpoints.worded import byte_bpe, edit, model_with, special, unigram, word_level


def union(folder: Path, opened: Sequence[Checkpoint]) -> Tokenizer:
    """Write the union of some models' tokenizers and load it with the library."""
    folder.mkdir()
    write_tokenizer(plan_vocabulary(opened, 0, "union"), folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_special_tokens_of_others_are_special_in_the_union(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", special(byte_bpe("low low lower"), "<|end|>"))
    chat = model_with(tmp_path / "chat", special(byte_bpe("low low lower"), "<|im_start|>", "<|end|>"))

    both = union(tmp_path / "out", [base, chat])

    plain = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    new = plain.get_vocab_size()
    assert both.get_vocab() == plain.get_vocab() | {"<|im_start|>": new}
    assert both.encode("<|im_start|>lower<|end|>").ids == [new, *plain.encode("lower<|end|>").ids]
    assert both.decode([new], skip_special_tokens=True) == ""


def test_words_of_others_come_out_of_text(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", special(word_level({"?": 0, "cat": 1, "dog": 4}), "<pad>"))
    chat = model_with(tmp_path / "chat", {"?": 0, "dog": 1, "emu": 2, "fox": 3})
    pad = Tokenizer.from_file(str(base.folder / "tokenizer.json")).token_to_id("<pad>")

    both = union(tmp_path / "out", [base, chat])

    assert both.encode("cat dog emu fox gnu <pad>").ids == [1, 4, 5, 6, 0, pad]


def test_merged_words_of_others_come_out_of_text_that_the_base_spelt(tmp_path: Path) -> None:
    text = "the cat sat on the mat"
    base = model_with(tmp_path / "base", byte_bpe(f"{text} {text}"))
    chat = model_with(tmp_path / "chat", byte_bpe("kinship of models kinship of models"))

    both = union(tmp_path / "out", [base, chat])

    plain, theirs = (Tokenizer.from_file(str(model.folder / "tokenizer.json")) for model in (base, chat))
    assert (
        both.encode(" kinship of models").tokens == theirs.encode(" kinship of models").tokens == ["Ġkinship", "Ġof", "Ġmodels"]
    )
    assert len(plain.encode(" kinship").ids) > 1
    assert both.encode(text).ids == plain.encode(text).ids


def bpe(tokens: str, merges: str, **settings: Any) -> Tokenizer:
    """Make a BPE tokenizer over whole text from 'a b ab' and 'a+b'."""
    vocabulary = {token: place for place, token in enumerate(tokens.split())}
    return Tokenizer(models.BPE(vocabulary, [tuple(merge.split("+")) for merge in merges.split()], **settings))


def test_merges_of_others_come_last_and_only_where_they_make_a_new_token(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", bpe("a b c d ab bc abc", "b+c a+b ab+c"))
    chat = model_with(tmp_path / "chat", bpe("a b c d bc cd abc", "c+d b+c a+bc"))

    both = union(tmp_path / "out", [base, chat])

    assert both.encode("cd").tokens == ["cd"]
    assert both.encode("bcd").tokens == ["bc", "d"]
    assert both.encode("abc").tokens == ["a", "bc"]


def test_merges_of_tokens_that_have_no_row_are_left_out(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", bpe("c", ""))
    chat = model_with(tmp_path / "chat", bpe("ab a b", "a+b"), rows=1)

    assert union(tmp_path / "out", [base, chat]).get_vocab() == {"c": 0, "ab": 1}


def test_merges_of_marked_continuations_are_found(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", bpe("a ##b", "", continuing_subword_prefix="##"))
    chat = model_with(tmp_path / "chat", bpe("a ##b ab", "a+##b", continuing_subword_prefix="##"))

    assert union(tmp_path / "out", [base, chat]).encode("ab").tokens == ["ab"]


def test_merges_may_be_written_as_text(tmp_path: Path) -> None:
    pair = [
        model_with(tmp_path / name, byte_bpe(text)) for name, text in {"base": "low low", "chat": "kinship kinship"}.items()
    ]
    for model in pair:
        part = json.loads((model.folder / "tokenizer.json").read_text())["model"]
        edit(model.folder / "tokenizer.json", model=part | {"merges": [" ".join(merge) for merge in part["merges"]]})

    assert union(tmp_path / "out", pair).encode("kinship low").tokens == ["kinship", "Ġlow"]


def test_pieces_of_others_keep_their_scores_and_unknown_characters_their_cost(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", special(unigram({"<unk>": 0.0, "a": -3.0, "b": -4.0}), "<s>"))
    chat = model_with(tmp_path / "chat", unigram({"<unk>": 0.0, "ab": -2.0, "ba": -9.0}))

    both = union(tmp_path / "out", [base, chat])

    assert both.get_vocab() == {"<unk>": 0, "a": 1, "b": 2, "<s>": 3, "ab": 4, "ba": 5}
    assert both.encode("<s>abab").tokens == ["<s>", "ab", "ab"]
    assert dict(json.loads(both.to_str())["model"]["vocab"]) == {"<unk>": 0, "a": -3, "b": -4, "<s>": -4, "ab": -2, "ba": -4}


def test_transformers_loads_the_union(tmp_path: Path) -> None:
    folders = {"base": ("low low lower", ["<|end|>"]), "chat": ("kinship kinship", ["<|im_start|>"])}
    pair = [model_with(tmp_path / name, special(byte_bpe(text), *more)) for name, (text, more) in folders.items()]
    for model in pair:
        tokenizer = Tokenizer.from_file(str(model.folder / "tokenizer.json"))
        GPT2TokenizerFast(tokenizer_object=tokenizer, eos_token="<s>").save_pretrained(model.folder)
    expected = union(tmp_path / "out", pair)

    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")

    assert loaded.get_vocab() == expected.get_vocab()
    text = "<|im_start|>lower kinship<|end|>"
    assert loaded(text)["input_ids"] == expected.encode(text).ids
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == "lower kinship"


def test_tokenizer_config_lists_the_new_tokens_too(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", special(word_level({"?": 0}), "<a>"))
    chat = model_with(tmp_path / "chat", special(word_level({"?": 0}), "<b>"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {"tokenizer_class": "X", "added_tokens_decoder": {"1": {"content": "<a>", **flags}}}
    (base.folder / "tokenizer_config.json").write_text(json.dumps(config))

    union(tmp_path / "out", [base, chat])

    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written == config | {"added_tokens_decoder": {"1": {"content": "<a>", **flags}, "2": {"content": "<b>", **flags}}}


def test_files_that_lack_the_new_tokens_are_not_written(tmp_path: Path) -> None:
    base, chat = model_with(tmp_path / "base", {"a": 0}), model_with(tmp_path / "chat", {"a": 0, "b": 1})
    for name in ("vocab.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja"):
        (base.folder / name).write_text("{}")

    union(tmp_path / "out", [base, chat])

    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "chat_template.jinja", "special_tokens_map.json", "tokenizer.json",
    ]  # fmt: skip


def test_union_of_equal_tokenizers_is_copied_as_it_is(tmp_path: Path) -> None:
    pair = [model_with(tmp_path / name, {"a": 0, "b": 1}) for name in ("base", "chat")]
    (pair[0].folder / "tokenizer.model").write_text("as it was")

    union(tmp_path / "out", pair)

    for file in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "out" / file).read_bytes() == (pair[0].folder / file).read_bytes()


def test_tokenizers_of_two_kinds_are_refused(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", byte_bpe("low low"))
    chat = model_with(tmp_path / "chat", unigram({"<unk>": 0.0, "▁low": -1.0}))

    with pytest.raises(
        CheckpointError, match=r"'chat' has a Unigram tokenizer but 'base' has a BPE one: .* Set tokenizer_source"
    ):
        plan_vocabulary([base, chat], 0, "union")


def test_special_tokens_are_taken_from_a_tokenizer_of_another_kind(tmp_path: Path) -> None:
    base = model_with(tmp_path / "base", byte_bpe("low low", special=["<s>"]))
    chat = model_with(tmp_path / "chat", special(unigram({"<s>": 0.0}), "<b>"))

    assert union(tmp_path / "out", [base, chat]).encode("low<b>").tokens == ["low", "<b>"]


def test_slow_tokenizer_cannot_be_part_of_a_union(tmp_path: Path) -> None:
    base, chat = model_with(tmp_path / "base", {"a": 0}), model_with(tmp_path / "chat", {"a": 0, "b": 1})
    (base.folder / "tokenizer.json").unlink()
    (base.folder / "vocab.json").write_text('{"a": 0}')

    with pytest.raises(CheckpointError, match=r"'base': .* has no tokenizer\.json, only vocab\.json\. Write one with"):
        plan_vocabulary([base, chat], 0, "union")


BROKEN: dict[str, dict[str, Any]] = {
    "merges are a number": {"type": "BPE", "vocab": {"zebra": 0}, "merges": 5},
    "merge of three": {"type": "BPE", "vocab": {"zebra": 0}, "merges": ["a b c"]},
    "merge of numbers": {"type": "BPE", "vocab": {"zebra": 0}, "merges": [[1, 2]]},
    "no merges": {"type": "BPE", "vocab": {"zebra": 0}},
    "merge of unknown tokens": {"type": "BPE", "vocab": {"zebra": 0}, "merges": [["x", "y"]]},
    "unknown kind": {"type": "Runes", "vocab": {"zebra": 0}},
    "mapping for a list": {"type": "Unigram", "vocab": {"zebra": 0}},
    "list for a mapping": {"type": "BPE", "vocab": [["zebra", 0.0]], "merges": []},
    "half a character": {"type": "WordLevel", "vocab": {"\ud800": 0}, "unk_token": "a"},
}


@pytest.mark.parametrize(
    ("broken", "case"),
    [(broken, case) for broken in ("base", "chat") for case in BROKEN if (broken, case) != ("chat", "merge of unknown tokens")],
)
def test_broken_tokenizer_never_ends_in_another_error(tmp_path: Path, broken: str, case: str) -> None:
    pair = [model_with(tmp_path / name, byte_bpe("low low")) for name in ("base", "chat")]
    edit(tmp_path / broken / "tokenizer.json", model=BROKEN[case], added_tokens=[])

    with pytest.raises(CheckpointError) as caught:
        plan_vocabulary(pair, 0, "union")

    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
