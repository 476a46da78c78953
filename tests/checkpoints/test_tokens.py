"""Reading vocabularies from tokenizer files, and refusing damaged ones at once."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kinray.checkpoints.tokens import MAX_ID, read_tokens
from kinray.errors import CheckpointError
from tests.checkpoints.worded import byte_bpe, edit, model_with, special, unigram, word_level


@pytest.mark.parametrize(
    "tokenizer",
    [
        special(word_level({"a": 0, "b": 1, "c": 7}), "<pad>"),
        special(byte_bpe("low low lower"), "<|im_start|>", "<|im_end|>"),
        special(unigram({"<unk>": 0.0, "a": -1.0, "ab": -2.0}), "<s>"),
    ],
    ids=["WordLevel", "BPE", "Unigram"],
)
def test_ids_are_those_of_the_tokenizers_library(tmp_path: Path, tokenizer: Any) -> None:
    model = model_with(tmp_path / "chat", tokenizer)

    assert read_tokens(model).ids == tokenizer.get_vocab(with_added_tokens=True)


def test_slow_tokenizer_is_read_from_its_two_files(tmp_path: Path) -> None:
    model = model_with(tmp_path / "chat", {"a": 0, "b": 1}, rows=3)
    (model.folder / "tokenizer.json").unlink()
    (model.folder / "vocab.json").write_text('{"a": 0, "b": 1}')
    (model.folder / "added_tokens.json").write_text('{"<pad>": 2}')

    assert read_tokens(model).ids == {"a": 0, "b": 1, "<pad>": 2}


def test_sentencepiece_alone_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = model_with(tmp_path / "chat", {"a": 0})
    (model.folder / "tokenizer.json").rename(model.folder / "tokenizer.model")

    with pytest.raises(CheckpointError, match=r"no tokenizer\.json, only tokenizer\.model\. Write one with AutoTokenizer"):
        read_tokens(model)


HOSTILE = {
    "not JSON": ("{", "is not valid JSON"),
    "deep": ("[" * 200_000, "is not valid JSON"),
    "a list": ("[]", "must hold a mapping, not list"),
    "no model": ("{}", "has no vocabulary under model.vocab"),
    "vocabulary is a number": ('{"model": {"vocab": 3}}', "has no vocabulary under model.vocab"),
    "pieces without scores": ('{"model": {"vocab": ["a", "b"]}}', "has no vocabulary under model.vocab"),
    "piece is a number": ('{"model": {"vocab": [[1, 0.5]]}}', "has a int where a token should be"),
    "no tokens": ('{"model": {"vocab": {}}}', "holds no tokens"),
    "text id": ('{"model": {"vocab": {"a": "0"}}}', "gives 'a' the id '0', which is no whole number"),
    "fraction": ('{"model": {"vocab": {"a": 0.5}}}', "gives 'a' the id 0.5, which is no whole number"),
    "truth": ('{"model": {"vocab": {"a": true}}}', "gives 'a' the id True, which is no whole number"),
    "nested id": ('{"model": {"vocab": {"a": [0]}}}', "gives 'a' the id list, which is no whole number"),
    "negative": ('{"model": {"vocab": {"a": -1}}}', "gives 'a' the id -1, which is no whole number"),
    "huge": ('{"model": {"vocab": {"a": 1000000000000}}}', f"id 1000000000000, which is no whole number from 0 to {MAX_ID}"),
    "endless digits": ('{"model": {"vocab": {"a": ' + "9" * 10_000 + "}}}", "is not valid JSON"),
    "one id twice": ('{"model": {"vocab": {"a": 1, "b": 1}}}', "gives the id 1 to 'a' and to 'b'"),
    "two ids": (
        '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": "a", "id": 2}]}',
        "gives 'a' two ids, 1 and 2",
    ),
    "line breaks": ('{"model": {"vocab": {"a\\n\\u001b[31m": -1}}}', r"gives 'a\n\x1b[31m' the id -1"),
    "added tokens are text": ('{"model": {"vocab": {"a": 1}}, "added_tokens": "b"}', "has added_tokens that lack"),
    "added token without id": (
        '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": "b"}]}',
        "has added_tokens that lack",
    ),
    "added token is a list": (
        '{"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": ["b"], "id": 2}]}',
        "has a list where a token should be",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tokenizer_fails_at_once_with_one_line(tmp_path: Path, case: str) -> None:
    text, expected = HOSTILE[case]
    model = model_with(tmp_path / "chat", {"a": 0})
    (model.folder / "tokenizer.json").write_text(text)
    start = time.perf_counter()

    with pytest.raises(CheckpointError) as caught:
        read_tokens(model)

    message = str(caught.value)
    assert expected in message
    assert "Model 'chat'" in message and str(model.folder) in message
    assert "\n" not in message and len(message) < 600 and time.perf_counter() - start < 5


def test_token_that_is_listed_twice_with_one_id_is_fine(tmp_path: Path) -> None:
    model = model_with(tmp_path / "chat", {"a": 0, "b": 1})
    edit(model.folder / "tokenizer.json", added_tokens=[{"content": "b", "id": 1}])

    assert read_tokens(model).ids == {"a": 0, "b": 1}
    assert json.loads((model.folder / "tokenizer.json").read_text())["model"]["vocab"] == {"a": 0, "b": 1}
