"""A merge of one machine starts quickly: it needs neither Ray nor transformers nor what else the search uses."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.merge.kitchen import Kitchen

HEAVY = {"ray", "transformers", "lm_eval", "optuna", "pyarrow", "matplotlib", "datasets", "accelerate", "peft"}
PROGRAM = """
import runpy, sys
sys.argv = ["kinray merge", *sys.argv[1:]]
try:
    runpy.run_module("kinray.merge", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
print("LOADED", *sys.modules)
"""


def loaded_by(*arguments: str) -> set[str]:
    """Run ``python -m kinray.merge`` in a process of its own and return the modules that it loaded."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.rsplit("LOADED", 1)[1].split())


def test_help_needs_not_even_torch() -> None:
    assert not (HEAVY | {"torch", "numpy"}) & loaded_by("--help")


@pytest.mark.parametrize("options", [["out"], ["out", "--verify", "--explain"]])
def test_merge_loads_torch_and_nothing_heavier(kitchen: Kitchen, options: list[str]) -> None:
    kitchen.family("a", "b")
    recipe = kitchen.write("merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\ntokenizer_source:\n")

    loaded = loaded_by(str(recipe), *options)

    assert "torch" in loaded
    assert not HEAVY & loaded
    assert Path("out/model.safetensors").is_file()
