"""LoRA adapters with hostile names, shapes, ranks and settings, in every command. More: tests/checkpoints/test_adapters.py."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.abuse.refusing import Refusing

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"


@pytest.fixture
def adapter(refusing: Refusing) -> Path:
    """Write a good adapter of one layer."""
    folder = refusing.folder / "lora"
    folder.mkdir()
    settings(folder)
    factors(folder)
    return folder


def settings(folder: Path, **changed: Any) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 4, "r": 2} | changed
    (folder / "adapter_config.json").write_text(json.dumps(config))


def factors(folder: Path, **changed: Tensor | None) -> None:
    """Write the factors; ``A`` and ``B`` are replaced, other names stand beside them."""
    held = {A: torch.ones(2, 6), B: torch.ones(6, 2)}
    for name, tensor in changed.items():
        place = {"A": A, "B": B}.get(name, name)
        if tensor is None:
            del held[place]
        else:
            held[place] = tensor
    save_file(held, folder / "adapter_model.safetensors")


def everywhere(refusing: Refusing) -> list[str]:
    return [
        refusing.merge("merge_method: linear\nmodels: [{model: base}, {model: base+lora}]"),
        refusing.kinship("a", "lora"),
        refusing.evolve(founders=["a", {"name": "chat", "adapter": "lora"}]),
    ]


CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "no type": ({"peft_type": None}, "is an adapter of type None, not LORA"),
    "another type": ({"peft_type": "\x1b[2J"}, r"is an adapter of type '\\x1b\[2J', not LORA"),
    "alpha that is a word": ({"lora_alpha": "much"}, "the alpha 'much', no finite number"),
    "alpha that is null": ({"lora_alpha": None}, "the alpha None, no finite number"),
    "alpha that is NaN": ({"lora_alpha": float("nan")}, "the alpha nan, no finite number"),
    "alpha that is infinite": ({"lora_alpha": float("inf")}, "the alpha inf, no finite number"),
    "alpha too large for float32": ({"lora_alpha": 1e39}, r"the alpha 1e\+39, no finite number"),
    "alpha of 400 digits": ({"lora_alpha": 10**400}, "the alpha 10{79}, no finite number"),
    "patterns that are a list": ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is \['q_proj'\]. It must be a mapping"),
    "pattern that is no expression": ({"alpha_pattern": {"(": 1}}, r"alpha_pattern has '\('.*cannot be used: missing"),
    "pattern that takes forever": (
        {"alpha_pattern": {r"((.|\w)+)+[^a-z_.0-9]": 1}},
        "a regular expression that cannot be used: .*timed out",
    ),
    "pattern with a list for a value": ({"alpha_pattern": {"q_proj": [1]}}, r"the alpha \[1\], no finite number"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_settings(refusing: Refusing, adapter: Path, case: str) -> None:
    changed, message = CONFIG[case]
    settings(adapter, **changed)

    for line in everywhere(refusing):
        assert re.search(message, line), line


HEADS = f"{MODULE.replace('q_proj', 'x' * 10_000)}.lora_A.weight"
FACTORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "rank of 0": ({"A": torch.ones(0, 6), "B": torch.ones(6, 0)}, r"has shape \(0, 6\), which is of no rank"),
    "a number": ({"A": torch.tensor(1.0)}, r"has shape \(\), which is of no rank"),
    "one dimension": ({"A": torch.ones(6)}, r"has shape \(6,\), which is of no rank"),
    "three dimensions": ({"A": torch.ones(2, 6, 1)}, r"has shape \(2, 6, 1\), which is of no rank"),
    "partner of one dimension": ({"B": torch.ones(6)}, r"factors \(6,\) and \(2, 6\) do not give"),
    "no partner": ({"B": None}, "lora_A.weight' but not .*lora_B.weight'"),
    "whole numbers": ({"A": torch.ones(2, 6, dtype=torch.int64)}, "is I64, which holds no weights"),
    "another rank": ({"B": torch.ones(6, 3)}, r"factors \(6, 3\) and \(2, 6\) do not give"),
    "rank of a thousand in an embedding of six": ({"A": torch.ones(1000, 5)}, "do not give"),
    "a module that is not there": ({"base_model.model.x.lora_A.weight": torch.ones(2, 6)}, "changes 'x.weight', which"),
    "a module upwards": ({"../../etc/passwd.lora_A.weight": torch.ones(2, 6)}, "changes '../../etc/passwd.weight', which"),
    "a module that clears the screen": ({"\x1b[2J.lora_A.weight": torch.ones(2, 6)}, r"changes '\\x1b\[2J.weight', which"),
    "a module of 10 000 characters": ({HEADS: torch.ones(2, 6)}, "characters left out.*, which"),
    "a module twice": ({A.removeprefix("base_model.model."): torch.ones(2, 6)}, "q_proj.weight' twice, by "),
    "NaN": ({"A": torch.full((2, 6), float("nan"))}, "holds NaN or infinity in"),
}  # fmt: skip


@pytest.mark.parametrize("case", FACTORS)
def test_factors(refusing: Refusing, adapter: Path, case: str) -> None:
    changed, message = FACTORS[case]
    factors(adapter, **changed)

    for line in everywhere(refusing):
        assert re.search(message, line), line


def as_a_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def as_a_link(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter.parent / "elsewhere.safetensors")
    (adapter / "adapter_model.safetensors").symlink_to("../elsewhere.safetensors")


def without_config(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def truncated(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (as_a_pickle, r"has no adapter_model.safetensors \(pickles are not read\)"),
        (as_a_link, "adapter_model.safetensors is a link that leaves"),
        (without_config, "adapter_config.json is not valid JSON"),
        (truncated, "it is truncated"),
    ],
)
def test_files(refusing: Refusing, adapter: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(adapter)

    for line in everywhere(refusing):
        assert re.search(message, line), line
