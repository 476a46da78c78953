"""YAML that is hostile or broken, as a recipe and as a configuration. More: tests/config, tests/merge/test_document.py."""

import re
from typing import Any

import pytest
import yaml

from tests.abuse.refusing import LINEAR, Refusing

BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

BOTH: dict[str, tuple[str | bytes, str]] = {
    "tag of a Python object": ("base: !!python/object/apply:os.system ['touch pwned']", "line 1, column 7: tags .* are not"),
    "tag that YAML knows": ("base: !!float ''", r"tags \(!!float\) are not supported"),
    "tag of no one": ("base: !secret x", r"tags \(!secret\) are not supported"),
    "bomb of anchors": (BOMB, r"line 2, column 8: aliases \(\*name\) are not supported"),
    "mapping that holds itself": ("a: &a {b: *a}", r"aliases \(\*name\) are not supported"),
    "merge key": ("<<: {base: b}", "line 1, column 1"),
    "key twice": ("base: a\nbase: b", "line 2, column 1: key 'base' is there twice"),
    "key that is a list": ("? [a]\n: b", r"key \['a'\] is not a word"),
    "nested without end": ("[" * 100_000, "is not readable as YAML: maximum recursion depth"),
    "sequences without end": ("- " * 400_000, "is not readable as YAML: maximum recursion depth"),
    "a million values": ("a: [" + "1," * 400_000 + "]", "line 1, column [0-9]+: more than 50000 values"),
    "a megabyte too much": (b"#" * (2 << 20), "is too large: a (configuration|recipe) has at most 1048576 bytes"),
    "not text": (b"base: \xff\xfe", r"is not text in UTF-8 \(byte 6\)"),
    "control characters": ("base: \x1b[2J", "is not readable as YAML"),
    "cut off": ("base: [a", "line 1, column 9: expected ',' or ']'"),
    "a list": ("- a", "must hold a mapping"),
    "a word": ("a", "must hold a mapping"),
    "NaN": ("seed: .nan", "line 1, column 7: .nan is no finite number"),
    "infinity": ("seed: 1e999", "line 1, column 7: 1e999 is no finite number"),
    "number of 100 000 digits": ("seed: " + "9" * 100_000, "line 1, column 7: 9{80} is no finite number"),
    "number of half a megabyte in base 16": ("seed: 0x" + "f" * 500_000, "line 1, column 7: 0xf{78} is no finite number"),
    "directives": ("%YAML 9.9\n---\na", "found incompatible YAML document"),
}


@pytest.mark.parametrize("case", BOTH)
def test_recipe_and_configuration(refusing: Refusing, case: str) -> None:
    text, message = BOTH[case]

    for line in (refusing.merge(text), refusing.evolve(text)):
        assert re.search(message, line), line


CONFIGURATION: dict[str, tuple[dict[str, Any], str]] = {
    "base that is a number": ({"base": 5}, "'base' is 5: input should be a valid string"),
    "founders that are a mapping": ({"founders": {"a": "b"}}, "'?founders'?"),
    "founder that is a number": ({"founders": ["a", 5]}, "'founders.1' is 5"),
    "founder in a founder": ({"founders": ["a", {"model": {"model": "b"}}]}, "founders.1.model"),
    "task that is a list": ({"tasks": [["arc_easy"]]}, "'tasks.0' is "),
    "truth value for a number": ({"search": {"k": "yes"}}, "'search.k' is 'yes'"),
    "methods that are a word": ({"merge": {"methods": "slerp"}}, "'merge.methods' is 'slerp'"),
    "range of words": ({"merge": {"methods": {"slerp": {"t": {"low": "a", "high": "b"}}}}}, "t.low"),
    "more digits than a float has": ({"merge": {"methods": {"slerp": {"t": 10**350}}}}, "is no finite number|must be finite"),
    "seed below 0": ({"seed": -1}, "'seed' is -1"),
    "output that is no text": ({"output": {"a": 1}}, "output"),
    "evaluators without end": ({"cluster": {"evaluators": 10**9}}, "expected auto or a whole number from 1 to 4096"),
    "layers without end": (
        {"merge": {"methods": {"slerp": {"t": {"low": 0, "high": 1, "layers": 10**9}}}}},
        "less than or equal to 256",
    ),
    "a key that is not known, of 10 000 characters": ({"x" * 10_000: 1}, "unknown key 'xxx.*Known: base, "),
    "a key that clears the screen": ({"\x1b[2J\n": 1}, r"unknown key '\\x1b\[2J\\n'"),
}


@pytest.mark.parametrize("case", CONFIGURATION)
def test_value_of_the_wrong_type_in_a_configuration(refusing: Refusing, case: str) -> None:
    settings, message = CONFIGURATION[case]

    line = refusing.evolve(**settings)

    assert re.search(message, line), line


RECIPE: dict[str, tuple[dict[str, Any], str]] = {
    "method that is a list": ({"merge_method": ["linear"]}, "'merge_method' is "),
    "models that are a mapping": ({"models": {"a": 1}}, "'models' is "),
    "model that is a number": ({"models": [{"model": 5}]}, "'models.0.model' is 5: a model is written as a word"),
    "weight that is a word": ({"parameters": {"weight": "much"}}, "Parameter 'weight' is 'much'"),
    "weight that is a truth value in a list": ({"parameters": {"weight": [True, 1]}}, "Parameter 'weight' is "),
    "weight that is nested": ({"parameters": {"weight": [[[1]]]}}, "Parameter 'weight' is "),
    "weight of 257 knots": ({"parameters": {"weight": [1.0] * 257}}, "257 knots. Give it between 1 and 256"),
    "filters beyond the limit": (
        {"parameters": {"weight": [{"filter": f"f{n}", "value": 1} for n in range(65)]}},
        "65 cases. Give it between 1 and 64",
    ),
    "filter that is a list": ({"parameters": {"weight": [{"filter": ["a"], "value": 1}]}}, "has the filter \\['a'\\]"),
    "seed that is a number": ({"kinray": {"seed": 5}}, "'kinray.seed' is 5"),
    "vocabulary without end": (
        {"tokenizer": {"pad_to_multiple_of": 10**12}},
        "'tokenizer.pad_to_multiple_of' is 1000000000000",
    ),
}


@pytest.mark.parametrize("case", RECIPE)
def test_value_of_the_wrong_type_in_a_recipe(refusing: Refusing, case: str) -> None:
    settings, message = RECIPE[case]

    line = refusing.merge(yaml.safe_dump(yaml.safe_load(LINEAR) | settings))

    assert re.search(message, line), line


@pytest.mark.parametrize(
    "override", ["seed=!!python/name:os.system", "seed=&a [*a]", "search.k=.nan", "a\x1b[2J.b=1", "seed=[" * 9]
)
def test_override_is_read_as_strictly_as_the_file(refusing: Refusing, override: str) -> None:
    refusing.evolve(base="nowhere")

    line = refusing.command("evolve", "search.yaml", "--set", override)

    assert re.search(r"--set|unknown key 'a\\x1b\[2J'", line), line
