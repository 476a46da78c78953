"""Tests of the demo's questions: right answers, no leak from training to test, no give-away in the position."""

from collections import Counter

import pytest

from kinray.demo.skills import CHOICES, KINDS, SKILLS, Item, held_out_items, is_held_out, training_items

ALL_SKILLS = pytest.mark.parametrize("name", SKILLS)


@ALL_SKILLS
def test_held_out_questions_never_reorder_a_trained_one(name: str) -> None:
    trained = {frozenset(item.choices) for item in training_items(SKILLS[name], 5000, "0")}
    held_out = {frozenset(item.choices) for item in held_out_items(SKILLS[name], 800, "0")}

    assert not trained & held_out


@ALL_SKILLS
def test_choices_are_distinct_and_stand_in_the_prompt(name: str) -> None:
    for item in held_out_items(SKILLS[name], 200, "0"):
        assert len(set(item.choices)) == CHOICES
        assert " ".join(item.choices) in item.prompt


@ALL_SKILLS
def test_prompts_are_distinct_and_every_position_is_right_equally_often(name: str) -> None:
    items = held_out_items(SKILLS[name], 800, "0")

    assert len({item.prompt for item in items}) == 800
    assert set(Counter(item.answer for item in items).values()) == {800 // CHOICES}


@ALL_SKILLS
def test_one_seed_gives_one_list_of_questions(name: str) -> None:
    skill = SKILLS[name]

    assert held_out_items(skill, 50, "0") == held_out_items(skill, 50, "0") != held_out_items(skill, 50, "1")
    assert training_items(skill, 50, "0") == training_items(skill, 50, "0") != training_items(skill, 50, "1")


@ALL_SKILLS
def test_all_sentences_have_nine_words_so_that_batches_need_no_padding(name: str) -> None:
    items = training_items(SKILLS[name], 200, "0")

    assert {len(f"{item.prompt} {item.choices[item.answer]}".split()) for item in items} == {9}
    assert not any(is_held_out(item) for item in items)


def test_the_largest_number_is_right() -> None:
    for item in held_out_items(SKILLS["numbers"], 200, "0"):
        assert int(_right(item)) == max(int(choice) for choice in item.choices)


def test_the_earliest_letter_is_right() -> None:
    for item in held_out_items(SKILLS["letters"], 200, "0"):
        assert ord(_right(item)) == min(ord(choice) for choice in item.choices)


def test_only_the_right_word_is_of_the_asked_kind() -> None:
    for item in held_out_items(SKILLS["words"], 200, "0"):
        kind = item.prompt.split()[1]
        assert [choice for choice in item.choices if choice in KINDS[kind]] == [_right(item)]


def test_no_word_belongs_to_two_kinds_or_names_one() -> None:
    words = SKILLS["words"].words

    assert len(set(words)) == len(words)


def _right(item: Item) -> str:
    return item.choices[item.answer]
