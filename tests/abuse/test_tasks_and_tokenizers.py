"""Task files, tokenizers and models' own code: what kinray refuses before libraries read it, and what they choke on."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.abuse.refusing import Refusing

Search = dict[str, object]
TASK = {
    "task": "hostile",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "tasks/demo_numbers.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "prompt",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
EVIL = "import os\nopen('pwned', 'w').close()\ndef run(doc):\n    return doc['prompt']\n"


def task(folder: Path, function: str = "", **changed: Any) -> None:
    """Write a task file; JSON is YAML, but for its tag."""
    text = json.dumps(TASK | changed, indent=1)
    (folder / "tasks" / "hostile.yaml").write_text(text.replace('"FUNCTION"', f"!function {function}"))


FUNCTIONS = {
    "of the system": ("os.system", "'!function os.system', which is in no Python file beside it"),
    "upwards": ("../evil.run", "'!function ../evil.run', which is in no Python file beside it"),
    "absolute": ("ABSOLUTE.run", "evil.run', which is in no Python file beside it"),
    "by a tag written out": ("> os.system", "os.system"),
    "of a file that leads out": ("linked.run", "'!function linked.run', which lies outside of task_paths"),
    "of a module that leads out": ("sub.evil.run", "'!function sub.evil.run', which lies outside of task_paths"),
    "of no name": ("run", "'!function run', which is in no Python file beside it"),
    "with a control character": ('"\\e[2J.run"', r"'!function \\x1b\[2J.run', which is in no Python file"),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_function_from_outside_of_the_task_paths(refusing: Refusing, search: Search, case: str) -> None:
    function, message = FUNCTIONS[case]
    (refusing.folder / "evil.py").write_text(EVIL)
    (refusing.folder / "tasks" / "linked.py").symlink_to("../evil.py")
    (refusing.folder / "tasks" / "sub").symlink_to("..")
    task(refusing.folder, function.replace("ABSOLUTE", str(refusing.folder / "evil")), doc_to_text="FUNCTION")
    if function.startswith(">"):
        file = refusing.folder / "tasks" / "hostile.yaml"
        file.write_text(file.read_text().replace("!function > ", "!<!function> "))

    line = refusing.evolve(**search | {"tasks": ["hostile"]})

    assert re.search(f"task_paths: .*hostile.yaml has .*{message}", line), line
    assert not os.path.exists("pwned")


@pytest.mark.parametrize("include", ["../outside.yaml", "ABSOLUTE", ["../outside.yaml"], "/etc/hostname", "inner"])
def test_file_included_from_outside_of_the_task_paths(refusing: Refusing, search: Search, include: Any) -> None:
    (refusing.folder / "outside.yaml").write_text("doc_to_text: !function evil.run\n")
    (refusing.folder / "evil.py").write_text(EVIL)
    (refusing.folder / "tasks" / "inner").write_text("include: ../outside.yaml\n")
    task(refusing.folder, include=str(refusing.folder / "outside.yaml") if include == "ABSOLUTE" else include)

    line = refusing.evolve(**search | {"tasks": ["hostile"]})

    assert re.search("task_paths: .* has 'include: .*', which lies outside of task_paths", line), line
    assert not os.path.exists("pwned")


TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "no output type": ({"output_type": "\x1b[2J"}, r"\\x1b|hostile"),
    "data that is not there": ({"dataset_kwargs": {"data_files": {"test": "/no/such"}}}, "Task 'hostile' cannot be loaded"),
    "a template that is none": ({"doc_to_text": "{{"}, "Task 'hostile' cannot be loaded"),
    "a metric that is none": ({"metric_list": [{"metric": "no_such"}]}, "hostile|no_such"),
}


@pytest.mark.parametrize("case", TASKS)
def test_task_that_cannot_be_loaded(refusing: Refusing, search: Search, case: str) -> None:
    changed, message = TASKS[case]
    task(refusing.folder, **changed)

    line = refusing.evolve(**search | {"tasks": ["hostile"]})

    assert re.search(message, line), line


@pytest.mark.parametrize("name", ["../outside", "tasks/demo_numbers.yaml", "\x1b[2J", "", "n" * 10_000])
def test_name_of_a_task_is_no_path(refusing: Refusing, name: str) -> None:
    line = refusing.evolve(tasks=[name])

    assert re.search("tasks.0.name' is '.*(not by a path|at least 1|at most 200)", line), line


TOKENIZERS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "transformers cannot build it"),
    "not JSON": ("{", "transformers cannot build it"),
    "not text": (b"\xff\xfe", "transformers cannot build it"),
    "a list": ("[]", "transformers cannot build it"),
    "nested without end": ("[" * 100_000, "transformers cannot build it"),
    "no vocabulary": ('{"version": "1.0", "model": {"type": "BPE"}}', "transformers cannot build it"),
    "model of no name": ('{"version": "1.0", "model": {"type": "\\u001b[2J", "vocab": {}}}', "transformers cannot build it"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizer(refusing: Refusing, search: Search, case: str) -> None:
    content, message = TOKENIZERS[case]
    (refusing.folder / "base" / "tokenizer.json").write_bytes(content if isinstance(content, bytes) else content.encode())

    line = refusing.evolve(**search)

    assert re.search(f"Model 'base': {message}", line), line


VOCABULARIES: dict[str, tuple[Any, str]] = {
    "ids that are words": ({"a": "0"}, "gives 'a' the id '0', which is no whole number"),
    "ids below 0": ({"a": -1}, "gives 'a' the id -1"),
    "ids without end": ({"a": 10**12}, "gives 'a' the id 1000000000000"),
    "ids of NaN": ({"a": float("nan")}, "gives 'a' the id nan"),
    "one id for two": ({"a": 0, "\x1b[2J": 0}, r"gives the id 0 to 'a' and to '\\x1b\[2J'"),
    "a list of numbers": ([1, 2], "has no vocabulary under model.vocab"),
    "nothing": ({}, "holds no tokens"),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_vocabulary_that_is_to_be_united(refusing: Refusing, case: str) -> None:
    vocabulary, message = VOCABULARIES[case]
    good = {"model": {"type": "BPE", "vocab": {f"t{n}": n for n in range(10)}, "merges": []}, "added_tokens": []}
    for model in ("a", "b"):
        (refusing.folder / model / "tokenizer.json").write_text(json.dumps(good))
    good["model"]["vocab"] = vocabulary  # type: ignore[call-overload, index]
    (refusing.spoilt / "tokenizer.json").write_text(json.dumps(good))

    line = refusing.merge("merge_method: linear\nmodels: [{model: a}, {model: b}]\ntokenizer_source: union")

    assert re.search(f"Model 'b': .*{message}", line), line


BUILT: dict[str, tuple[dict[str, Any], str]] = {
    "code of its own": (
        {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}},
        r"asks to run Python of its own \(auto_map\).*evaluation.trust_remote_code: true",
    ),
    "code of another's": (
        {"model_type": "own", "auto_map": {"AutoConfig": "owner/model--code.C"}},
        r"asks to run Python of its own \(auto_map\)",
    ),
    "a type of no one": ({"model_type": "\x1b[2J"}, "transformers cannot build it"),
    "layers without end": ({"num_hidden_layers": 10**9}, "names 1000000000 layers, but its weights have 2"),
    "a width without end": ({"hidden_size": 10**15}, "transformers cannot build it|has shape"),
    "a width below 0": ({"hidden_size": -64}, "transformers cannot build it|has shape"),
    "a vocabulary without end": ({"vocab_size": 10**15}, "transformers cannot build it|has shape"),
    "heads of 0": ({"num_attention_heads": 0}, "transformers cannot build it|has shape"),
    "an activation of no name": ({"hidden_act": "os.system"}, "transformers cannot build it"),
    "rotary settings of words": ({"rope_parameters": {"rope_type": "\x1b[2J"}}, "transformers cannot build it"),
}


@pytest.mark.parametrize("case", BUILT)
def test_config_of_the_base(refusing: Refusing, search: Search, case: str) -> None:
    changed, message = BUILT[case]
    for folder in ("base", "numbers", "letters", "words"):
        file = refusing.folder / folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        (refusing.folder / folder / "code.py").write_text(EVIL)

    line = refusing.evolve(**search)

    assert re.search(f"'base'.*({message})", line), line
    assert not os.path.exists("pwned")
