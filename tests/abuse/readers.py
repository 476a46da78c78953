"""All that reads what users or models bring, as functions of bytes: for Hypothesis here and for atheris in scripts/fuzz.py."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from kinray.checkpoints.adapters import open_model
from kinray.checkpoints.folder import open_checkpoint
from kinray.checkpoints.header import read_header
from kinray.checkpoints.models import fit, weight_names
from kinray.checkpoints.tokens import read_tokens
from kinray.config import load_config
from kinray.core.recipe import Merge, from_nodes, from_text, to_text
from kinray.errors import KinrayError
from kinray.evaluation.task_files import check_task_files
from kinray.kinship.planning import parse_merge
from kinray.merge.document import read_recipe
from kinray.merge.open import Shelf
from kinray.merge.plan import plan_merges
from tests.helpers import make_model, random_tensors
from tests.merge.kitchen import LAYER, shapes

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Reader:
    """Something that reads bytes, or JSON.

    Args:
        read: reads; it may raise KinrayError and nothing else.
        seed: bytes that it accepts.
    """

    read: Callable[[bytes], object]
    seed: bytes

    def __call__(self, data: bytes) -> None:
        """Read what may be refused, with one printable line."""
        message = ""
        try:
            self.read(data)
        except KinrayError as error:
            message = str(error)
        assert message.isprintable() and len(message) < 2100, message


def readers(folder: Path) -> dict[str, Reader]:
    """Make all readers, with the files that they need, in a folder that becomes the working one."""
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    config = {"architectures": ["Tiny"], "vocab_size": 10, "hidden_size": 6, "num_hidden_layers": 3, "rope_parameters": {}}
    for seed, name in enumerate(("base", "a", "b", "config", "index", "tokenizer")):
        make_model(folder / name, random_tensors(seed, shapes()), config)
    (folder / "lora").mkdir()
    (folder / "tasks").mkdir()
    (folder / "tasks" / "utils.py").touch()
    factors = {
        f"{MODULE}.lora_A.weight": torch.ones(2, LAYER["self_attn.q_proj.weight"][1]),
        f"{MODULE}.lora_B.weight": torch.ones(6, 2),
    }
    save_file(factors, folder / "lora" / "adapter_model.safetensors")
    names = [*shapes()]

    def reading(place: str, read: Callable[[Path], object], seed: Any) -> Reader:
        def read_bytes(data: bytes) -> object:
            (folder / place).write_bytes(data)
            return read(folder / place)

        text = seed if isinstance(seed, bytes) else seed.encode() if isinstance(seed, str) else json.dumps(seed).encode()
        return Reader(read_bytes, text)

    def fitted(name: str) -> object:
        base = open_checkpoint(folder / "base", "base")
        return fit(open_checkpoint(folder / name, name), base, weight_names(base), [], fill=True)

    return {
        "header": reading("file.safetensors", read_header, (folder / "a" / "model.safetensors").read_bytes()),
        "index": reading(
            "index/model.safetensors.index.json",
            lambda _: open_checkpoint(folder / "index", "m"),
            {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")},
        ),
        "config": reading("config/config.json", lambda _: fitted("config"), config),
        "adapter": reading(
            "lora/adapter_config.json",
            lambda _: open_model(folder / "base", folder / "lora", "m").load("model.layers.0.self_attn.q_proj.weight"),
            {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "alpha_pattern": {"q_proj": 3}, "bias": "none"},
        ),
        "tokenizer": reading(
            "tokenizer/tokenizer.json",
            lambda _: read_tokens(open_checkpoint(folder / "tokenizer", "m")),
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}, "added_tokens": [{"content": "c", "id": 2}]},
        ),
        "configuration": reading("search.yaml", load_config, SEARCH),
        "recipe": reading("recipe.yaml", lambda path: plan_merges(read_recipe(path)[0], Shelf()), RECIPE),
        "task": reading("tasks/task.yaml", lambda path: check_task_files([path.parent]), TASK),
        "nodes": Reader(_nodes, json.dumps(NODES).encode()),
        "planned merge": Reader(lambda data: parse_merge(data.decode("utf-8", "surrogateescape")), b"slerp:0,1:t=0.3"),
    }


def _nodes(data: bytes) -> object:
    try:
        nodes = json.loads(data)
    except (ValueError, RecursionError):
        return None
    recipe = from_nodes(nodes)
    assert from_text(to_text(recipe)) == recipe
    assert not isinstance(recipe, Merge) or recipe.depth <= 256
    return recipe


NODES = [
    {"founder": "0" * 64, "name": "f"},
    {"founder": "1" * 64, "name": "g"},
    {"method": "linear", "parents": [0, 1], "params": {"weight": [1.0, 0.5]}},
    {"method": "ties", "parents": [0, 2], "base": 0, "seed": "s", "params": {"density": {"cases": [
        {"filter": "mlp", "value": [0.1, 1]}, {"value": [1]}]}}},
]  # fmt: skip

SEARCH = """\
base: base
founders: [a, {name: b, model: b, revision: null}, {adapter: lora}]
tasks: [x, {name: y, metric: acc, limit: 20, scale: [1, 0.5], gen_kwargs: {a: 1}}]
search: {policy: greedy, k: 4, max_hours: 1.5e+1}
merge:
  methods:
    slerp: {t: {low: 0.2, high: 0.8, layers: 4}}
    ties: {weight: {models: [1, {attention: 0.5, rest: [1, 2]}]}, density: {layers: [0.2, 0.5]}}
cluster: {evaluators: auto}
seed: 7
"""

RECIPE = """\
name: x
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: [0.1, 0.9], density: 0.5}}
  - {model: b+lora, parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1}]}}
parameters: {normalize: true, int8_mask: true}
dtype: bfloat16
---
merge_method: passthrough
slices:
  - sources: [{model: x, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3]}]
"""

TASK = """\
task: x
include: utils.py
doc_to_text: !function utils.text
metric_list: [{metric: acc, aggregation: mean}]
"""
