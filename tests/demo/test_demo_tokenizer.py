"""Tests of the demo's tokenizer, with the two encodings that lm-eval relies on."""

from pathlib import Path

from transformers import AutoTokenizer

from kinray.demo.skills import SKILLS, training_items
from kinray.demo.tokenizer import build_tokenizer

SENTENCES = [
    f"{item.prompt} {item.choices[item.answer]}" for skill in SKILLS.values() for item in training_items(skill, 100, "0")
]


def test_text_survives_the_round_trip() -> None:
    tokenizer = build_tokenizer(64)

    assert [tokenizer.decode(ids) for ids in tokenizer(SENTENCES)["input_ids"]] == SENTENCES


def test_every_word_is_known_and_is_one_token() -> None:
    tokenizer = build_tokenizer(64)

    for skill in SKILLS.values():
        for word in skill.words:
            ids = tokenizer.encode(f" {word}")
            assert len(ids) == 1
            assert ids[0] not in tokenizer.all_special_ids


def test_context_and_continuation_encode_as_their_concatenation() -> None:
    tokenizer = build_tokenizer(64)
    context, continuation = "The largest of 4 7 71 12 is", " 71"

    assert tokenizer.encode(context + continuation) == tokenizer.encode(context) + tokenizer.encode(continuation)


def test_auto_tokenizer_loads_what_was_saved(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(64)
    tokenizer.save_pretrained(tmp_path)

    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert loaded(SENTENCES)["input_ids"] == tokenizer(SENTENCES)["input_ids"]
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<s>", "</s>")
    assert loaded.decode(loaded.encode(SENTENCES[0])) == SENTENCES[0]
