"""Tiny models, and ``kinray merge`` run on them as a person would."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from kinray.merge.cli import main
from tests.helpers import make_model, random_tensors

Array = NDArray[np.float64]

EMBEDDING, NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LAYER = {"self_attn.q_proj.weight": (6, 6), "mlp.up_proj.weight": (8, 6), "input_layernorm.weight": (6,)}


def shapes(layers: int = 3, vocabulary: int = 10) -> dict[str, tuple[int, ...]]:
    """Name the tensors of a small decoder."""
    own = {f"model.layers.{number}.{kind}": shape for number in range(layers) for kind, shape in LAYER.items()}
    return {EMBEDDING: (vocabulary, 6), **own, NORM: (6,), OUTPUT: (vocabulary, 6)}


def near(tensors: Mapping[str, Tensor], seed: int, step: float = 0.1) -> dict[str, Tensor]:
    """Change all weights a little, as a fine-tune does."""
    noise = random_tensors(seed, {name: tensor.shape for name, tensor in tensors.items()})
    return {name: (tensor.float() + step * noise[name]).to(tensor.dtype) for name, tensor in tensors.items()}


def double(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def read(folder: Path) -> dict[str, Tensor]:
    """Read a model folder with safetensors' own loader."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_close(got: Mapping[str, Tensor], expected: Mapping[str, Array]) -> None:
    """Compare float32 weights with exact ones."""
    assert set(got) == set(expected)
    for name, tensor in got.items():
        np.testing.assert_allclose(tensor.double().numpy(), expected[name], rtol=2e-6, atol=2e-6, err_msg=name)


class Kitchen:
    """A folder, the working one, that holds models; recipes name them by their bare names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"

    def model(self, name: str, tensors: Mapping[str, Tensor] | None = None, seed: int = 0, **settings: Any) -> dict[str, Array]:
        """Write a model, by default with three layers, and return its weights."""
        held = random_tensors(seed, shapes()) if tensors is None else dict(tensors)
        layers = len({name.split(".")[2] for name in held if name.startswith("model.layers.")})
        config = {"architectures": ["TinyForCausalLM"], "vocab_size": 10, "hidden_size": 6, "num_hidden_layers": layers}
        make_model(self.folder / name, held, config | settings)
        return double(held)

    def family(self, *names: str, step: float = 0.1) -> list[dict[str, Array]]:
        """Write a base and fine-tunes of it."""
        base = random_tensors(0, shapes())
        return [self.model(name, near(base, number, step) if number else base) for number, name in enumerate(names)]

    def write(self, recipe: str) -> Path:
        file = self.folder / "recipe.yaml"
        file.write_text(dedent(recipe))
        return file

    def run(self, recipe: str, *arguments: str) -> int:
        """Merge into ``out`` and return the exit code."""
        return main([str(self.write(recipe)), str(self.out), *arguments])

    def merge(self, recipe: str, *arguments: str) -> dict[str, Tensor]:
        """Merge and return the weights."""
        assert self.run(recipe, *arguments) == 0
        return read(self.out)

    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "config.json").read_text())
        return found

    def left(self) -> list[str]:
        """List what lies in the folder beside models and recipe."""
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith((".", "out")))


def total(weights: Sequence[float], models: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Add models, weighted."""
    return {name: sum(w * model[name] for w, model in zip(weights, models, strict=True)) for name in models[0]}  # type: ignore[misc]


def depth_of(name: str, layers: int = 3) -> float:
    """Say how deep a tensor lies, by the layer's number in its name."""
    parts = name.split(".")
    return int(parts[2]) / (layers - 1) if parts[1] == "layers" else 0.0


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
