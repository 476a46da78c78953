"""Names that try to be a path, a command, markup, another name, or too much."""

import os
import re
from pathlib import Path

import pytest

from kinray.__main__ import main
from tests.abuse.refusing import LINEAR, Refusing
from tests.merge.kitchen import Kitchen

CLEAR_SCREEN = "\x1b[2J\x1b]0;title\x07"
NAMES = {
    "upwards": ("../a", r"'../a' cannot be a founder's name"),
    "a path": ("a/b", "'a/b' cannot be a founder's name"),
    "a backslash": ("a\\b", "cannot be a founder's name"),
    "hidden": (".a", "'.a' cannot be a founder's name"),
    "control characters": (CLEAR_SCREEN, r"'\\x1b\[2J\\x1b\]0;title\\x07' cannot be a founder's name"),
    "lines": ("a\nError: none", r"'a\\nError: none' cannot be a founder's name"),
    "right to left": ("a\u202ecod.exe", r"'a\\u202ecod.exe' cannot be a founder's name"),
    "HTML": ("<script>alert(1)</script>", "'<script>alert.1.</script>' cannot be a founder's name"),
    "a command": ("$(touch pwned)", "cannot be a founder's name"),
    "an option": ("--help", "cannot be a founder's name"),
    "a look-alike": ("mаth", "'mаth' cannot be a founder's name. Give it a 'name' of letters a to z"),
    "10 000 characters": ("n" * 10_000, "'n{80}' cannot be a founder's name"),
    "a child's": ("g1-1", "'g1-1' cannot be a founder's name"),
    "the base's": ("base", "'base' cannot be a founder's name"),
}


@pytest.mark.parametrize("case", NAMES)
def test_name_of_a_founder(refusing: Refusing, case: str) -> None:
    name, message = NAMES[case]

    line = refusing.evolve(founders=["a", {"name": name, "model": "b"}])

    assert re.search(message, line), line


PLACES = {
    "control characters": (CLEAR_SCREEN, r"there is no folder \\x1b\[2J\\x1b\]0;title\\x07"),
    "lines": ("x\ny", r"there is no folder x\\ny"),
    "a NUL": ("x\0y", r"(there is no folder x\\x00y|is 'x\\x00y', which no path can be)"),
    "10 000 characters": ("n" * 10_000, "there is no folder nnn.*characters left out"),
    "a hub id of look-alikes": ("mеta-llama/Llama", "there is no folder mеta-llama/Llama. Check the path, or name a hub id"),
    "a hub id that leads upwards": ("x/../../etc", r"there is no folder x/../../etc"),
    "a home of no one": ("~nobody-of-that-name/x", "there is no folder ~nobody-of-that-name/x"),
    "an address": ("https://example.com/model", "there is no folder https://example.com/model"),
}


@pytest.mark.parametrize("case", PLACES)
def test_place_of_a_model(refusing: Refusing, case: str) -> None:
    place, message = PLACES[case]
    quoted = place.encode("unicode_escape").decode() if case in ("control characters", "lines", "a NUL") else place

    lines = [
        refusing.merge(f'merge_method: linear\nmodels: [{{model: a}}, {{model: "{quoted}"}}]'),
        refusing.kinship("a", place),
        refusing.evolve(founders=["a", {"name": "b", "model": place}]),
    ]

    for line in lines:
        assert re.search(message, line), line


@pytest.mark.parametrize("revision", ["../../x", "/etc/hostname", "a/../../x", "\x1b[2J", "--help", "mаin", ""])
def test_revision_of_a_hub_id(refusing: Refusing, revision: str) -> None:
    line = refusing.evolve(founders=["a", {"name": "b", "model": "owner/model", "revision": revision}])

    assert re.search("' is no revision. Name a commit, tag or branch of owner/model", line), line


TENSORS = {
    "upwards": ("../../etc/passwd", "'../../etc/passwd'"),
    "control characters": (CLEAR_SCREEN, r"\\x1b\[2J"),
    "no text": ("\ud800", r"'\\ud800'"),
    "10 000 characters": ("n" * 10_000, "characters left out"),
    "nothing": ("", "''"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_name_of_a_tensor(refusing: Refusing, case: str) -> None:
    name, message = TENSORS[case]
    file = refusing.spoilt / "model.safetensors"
    data = file.read_bytes()
    header = data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip()
    escaped = "".join(f"\\u{ord(sign):04x}" for sign in name).encode()
    header = header.replace(b'"model.norm.weight"', b'"' + escaped + b'"')
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :])

    for line in (refusing.kinship(), refusing.evolve()):  # a merge takes what only one model has as it is
        assert re.search(f"Model 'b' has tensor .*{message}.*which the base 'base' does not have", line), line


@pytest.mark.parametrize("key", ["merge_method", "parameters"])
def test_look_alike_of_a_known_word_is_told_from_it(refusing: Refusing, key: str) -> None:
    recipe = LINEAR.replace("linear", "lineаr") if key == "merge_method" else LINEAR + "parameters: {wеight: 1}\n"

    line = refusing.merge(recipe)

    assert re.search(r"Did you mean '(linear|weight)'\? '[аеАЕ]' \(CYRILLIC SMALL LETTER (A|IE)\) is none of the letters", line)


@pytest.mark.parametrize("output", ["n" * 10_000, "recipe.yaml/run", "/proc/run"])
def test_output_folder_that_cannot_be(refusing: Refusing, output: str) -> None:
    refusing.kitchen.write(LINEAR)

    for line in (refusing.command("merge", "recipe.yaml", output), refusing.evolve(output=output)):
        assert re.search("[Nn]ot? .*(directory|folder)|too long|room under /proc", line), line


@pytest.mark.parametrize("output", ["run\0", "run\ud800"])
def test_output_folder_that_is_no_text(refusing: Refusing, output: str) -> None:
    escaped = output.encode("unicode_escape").decode()

    line = refusing.evolve(f'{{base: base, founders: [a, b], tasks: [x], output: "{escaped}"}}')

    assert f"output is '{escaped}', which no path can be" in line


def test_names_in_tables_and_pages_are_text_and_nothing_else(kitchen: Kitchen, capfd: pytest.CaptureFixture[str]) -> None:
    hostile = f"<script>alert(1)</script>{CLEAR_SCREEN}".replace("/", "∕")
    kitchen.family("base", "a", hostile)

    for page in ("page.html", "picture.svg", "picture.png"):
        assert main(["kinship", "--base", "base", "a", hostile, "--plot", page, "--json", "table.json"]) == 0
    recipe = f'merge_method: linear\nmodels: [{{model: a}}, {{model: "{hostile.encode("unicode_escape").decode()}"}}]'
    kitchen.write(recipe)
    assert main(["merge", "recipe.yaml", "out", "--explain"]) == 0

    out, err = capfd.readouterr()
    assert [sign for sign in out + err if not sign.isprintable() and sign != "\n"] == []
    for file in ("page.html", "picture.svg", "out/README.md"):
        text = re.sub("`[^`]+`", "", Path(file).read_text())  # what Markdown shows as it is
        assert "<script>" not in text, file
        assert "\x1b" not in text and "\x07" not in text, file
    assert "&lt;script&gt;alert(1)" in Path("page.html").read_text()


def test_names_are_never_a_command(kitchen: Kitchen) -> None:
    hostile = "$(touch pwned);touch pwned|`touch pwned`"
    kitchen.family("base", "a", hostile)

    assert main(["kinship", "--base", "base", "a", hostile]) == 0
    assert kitchen.run(f"merge_method: linear\nmodels: [{{model: a}}, {{model: '{hostile}'}}]") == 0

    assert not os.path.exists("pwned")
