"""Tiny model folders in plain safetensors, written without kinray."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kinray.checkpoints.adapters import open_model
from kinray.checkpoints.folder import Checkpoint
from kinray.checkpoints.identity import digest
from kinray.checkpoints.models import Models, ModelSpec, open_models
from kinray.core.layers import depths
from kinray.core.masks import HashedMasks
from kinray.core.methods import method_named
from kinray.core.recipe import Founder, Recipe

ARCHITECTURE = "TinyForCausalLM"
VOCABULARY = 10
SHAPES = {"embed.weight": (VOCABULARY, 6), "norm.weight": (6,), "mlp.weight": (5, 6), "scale": (1,)}


def make_model(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, shards: int = 1) -> Path:
    """Write a model folder with safetensors' own writer; several shards get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {"architectures": [ARCHITECTURE], "vocab_size": VOCABULARY} if config is None else dict(config)
    (folder / "config.json").write_text(json.dumps(written))
    contents = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(contents, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    files = [f"model-{number + 1:05d}-of-{shards:05d}.safetensors" for number in range(shards)]
    place = {name: files[number % shards] for number, name in enumerate(contents)}
    for file in files:
        save_file({name: tensor for name, tensor in contents.items() if place[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    return folder


def random_tensors(
    seed: int, shapes: Mapping[str, Sequence[int]] = SHAPES, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Draw normal tensors of the given shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def spec(folder: Path, name: str = "") -> ModelSpec:
    """Describe a model folder by the digest of its contents."""
    model = open_model(folder, None, name or folder.name)
    assert isinstance(model, Checkpoint)
    return ModelSpec(Founder(digest(model), name or folder.name), folder)


def family(folder: Path, models: Sequence[Mapping[str, Tensor]]) -> Models:
    """Write a base and founders into ``folder`` and open them; the base is the first, founders are f1, f2 …"""
    names = ["base", *(f"f{number}" for number in range(1, len(models)))]
    return open_models([spec(make_model(folder / name, tensors)) for name, tensors in zip(names, models, strict=True)])


def step_by_step(models: Models, recipe: Recipe, name: str) -> Tensor:
    """Apply the pure method to the parents' tensors, made the same way, in float32 throughout."""
    if isinstance(recipe, Founder):
        return models.sources[recipe.digest].load(name).float()
    parents = [step_by_step(models, parent, name) for parent in recipe.parents]
    masks = HashedMasks(recipe.digest, name)
    method = method_named(recipe.method)
    base = models.base.load(name).float() if method.uses_base or recipe.base is not None else None
    return method.merge(base, parents, method.at(recipe.params, name, depths(models.names)[name]), masks)
