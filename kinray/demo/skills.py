"""The three synthetic skills of the demo: picking a number, a letter or a word out of four.

Every item is a short sentence that ends before its answer, such as "The largest of 43 7 71 12 is". Sets of four options
are split into training and held-out sets by a checksum, so that no held-out question is a reordering of a trained one.
"""

import random
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass

CHOICES = 4
_HELD_OUT_ONE_IN = 6

_KINDS = {
    "fruit": "apple banana cherry grape lemon mango melon orange peach pear plum raspberry",
    "animal": "bear camel cat dog goat horse lion mouse rabbit sheep tiger wolf",
    "colour": "beige black blue brown green grey pink purple red turquoise white yellow",
    "tool": "axe chisel drill hammer ladder pliers rake saw screwdriver shovel spade wrench",
    "drink": "beer cider cocoa coffee juice lemonade milk tea tonic water whisky wine",
    "garment": "belt coat dress glove hat jacket scarf shirt shoe skirt sock sweater",
    "vehicle": "bicycle boat bus canoe car ferry lorry plane ship train tram truck",
    "instrument": "banjo bell cello drum flute guitar harp lute piano trumpet tuba violin",
}
KINDS = {kind: words.split() for kind, words in _KINDS.items()}
NUMBERS = [str(number) for number in range(100)]
LETTERS = list(string.ascii_uppercase)


@dataclass(frozen=True)
class Item:
    """One multiple-choice question; `answer` is the position of the right choice."""

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Skill:
    """A skill: its name, one line about it, how to draw a question and all words it may use."""

    name: str
    about: str
    draw: Callable[[random.Random], Item]
    words: tuple[str, ...]


def largest_number(rng: random.Random) -> Item:
    """Asks for the largest of four numbers."""
    options = rng.sample(NUMBERS, CHOICES)
    return _item("The largest of {} is", options, max(options, key=int))


def earliest_letter(rng: random.Random) -> Item:
    """Asks which of four letters comes first in the alphabet."""
    options = rng.sample(LETTERS, CHOICES)
    return _item("The earliest of {} is", options, min(options))


def word_of_kind(rng: random.Random) -> Item:
    """Asks which of four words, each of another kind, is of the named kind."""
    kinds = rng.sample(sorted(KINDS), CHOICES)
    words = [rng.choice(KINDS[kind]) for kind in kinds]
    wanted = rng.randrange(CHOICES)
    return _item(f"The {kinds[wanted]} among {{}} is", words, words[wanted])


SKILLS = {
    skill.name: skill
    for skill in (
        Skill("numbers", "which of four numbers is the largest", largest_number, tuple(NUMBERS)),
        Skill("letters", "which of four letters comes first in the alphabet", earliest_letter, tuple(LETTERS)),
        Skill(
            "words",
            "which of four words names a fruit, a tool, ...",
            word_of_kind,
            (*KINDS, *(word for words in KINDS.values() for word in words)),
        ),
    )
}


def is_held_out(item: Item) -> bool:
    """Tells whether an item's set of options is kept for testing; depends on the set, not on its order."""
    return zlib.crc32(" ".join(sorted(item.choices)).encode()) % _HELD_OUT_ONE_IN == 0


def training_items(skill: Skill, count: int, seed: str) -> list[Item]:
    """Draws `count` items for training; items may repeat."""
    rng = random.Random(f"{skill.name} train {seed}")
    items: list[Item] = []
    while len(items) < count:
        item = skill.draw(rng)
        if not is_held_out(item):
            items.append(item)
    return items


def held_out_items(skill: Skill, count: int, seed: str) -> list[Item]:
    """Draws `count` held-out items with different prompts, the right choice equally often at each position."""
    rng = random.Random(f"{skill.name} test {seed}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = skill.draw(rng)
        if is_held_out(item) and item.answer == len(items) % CHOICES:
            items.setdefault(item.prompt, item)
    return list(items.values())


def _item(template: str, options: list[str], right: str) -> Item:
    return Item(template.format(" ".join(options)), tuple(options), options.index(right))
