"""A model that can be made: its tensors, each with the recipe that makes it, and what else its folder holds."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.header import TensorInfo
from kinray.checkpoints.models import Models
from kinray.checkpoints.vocabulary import Vocabulary
from kinray.checkpoints.writer import CODES
from kinray.core.methods import read_blocks
from kinray.core.recipe import Merge, Recipe, topological
from kinray.engine.export import DTYPES, makings
from kinray.engine.materialise import Materialiser
from kinray.engine.workers import Making

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Section:
    """Tensors that one recipe makes: those of a whole model, or of one slice of it.

    Args:
        materialiser: of the models that it takes, seen by the output's names.
        recipe: how they are merged.
        depths: of its tensors.
        labels: what its models and merges are called, by digest.
    """

    materialiser: Materialiser
    recipe: Merge
    depths: Mapping[str, float]
    labels: Mapping[str, str]

    @property
    def models(self) -> Models:
        """The models that it takes."""
        return self.materialiser.models


@dataclass(frozen=True)
class Output:
    """A model that can be made.

    Args:
        name: of the merge.
        sections: what makes its tensors.
        copied: tensors that only some models have, or that hold no weights: taken as they are from one model.
        dtype: bfloat16, float16 or float32.
        config: its config.json.
        source: the model whose config, tokenizer (unless there is a ``vocabulary``) and code it has.
        folder: where that lies.
        vocabulary: its tokenizer, where one was asked for.
        notices: what a person should know.
        earlier: results of other merges among its models, by name.
    """

    name: str
    sections: tuple[Section, ...]
    copied: Mapping[str, WeightSource]
    dtype: str
    config: dict[str, Any]
    source: WeightSource
    folder: Path
    vocabulary: Vocabulary | None = None
    notices: list[str] = field(default_factory=list)
    earlier: "Mapping[str, Output]" = field(default_factory=dict)

    @property
    def parents(self) -> int:
        """Models that are merged, at most."""
        return max(len(section.models.specs) for section in self.sections)

    @cached_property
    def _inner_buffers(self) -> int:
        """Float32 copies of a tensor that making it as the result of other merges takes, each with its own result."""
        return sum(1 + max(making.buffers for making in earlier.tensors()) for earlier in self.earlier.values())

    @property
    def models(self) -> list[str]:
        """What the models are called that it is made of, also by way of other merges."""
        names: list[str] = []
        for spec in (spec for section in self.sections for spec in section.models.specs):
            earlier = self.earlier.get(spec.founder.name)
            names += [spec.founder.name] if earlier is None else earlier.models
        return list(dict.fromkeys(names))

    @property
    def methods(self) -> list[str]:
        """The methods that it is merged by, also those of other merges that it is made of."""
        recipes: list[Recipe] = [section.recipe for section in self.sections]
        own = [node.method for node in topological(recipes) if isinstance(node, Merge)]
        return list(dict.fromkeys([method for earlier in self.earlier.values() for method in earlier.methods] + own))

    def tensors(self, dtype: str | None = None) -> list[Making]:
        """List all tensors with how they are made, in their order in the files."""
        chosen = dtype or self.dtype
        made = [making for section in self.sections for making in makings(section.materialiser, section.recipe, chosen)]
        if self._inner_buffers:
            made = [replace(making, buffers=making.buffers + self._inner_buffers) for making in made]
        return made + [_copying(name, source, chosen) for name, source in self.copied.items()]


def _copying(name: str, source: WeightSource, dtype: str) -> Making:
    info = source.tensors[name]

    def taken() -> "dict[str, torch.Tensor]":
        return {source.name: source.load(name)}

    def blocks() -> "Iterator[torch.Tensor]":
        for block in read_blocks(source.load(name)):
            yield block.to(DTYPES[dtype]) if info.floating else block

    return Making(name, CODES[dtype] if info.floating else info.dtype, info.shape, blocks, taken)


@dataclass
class MergedModel:
    """The result of an earlier merge, as a model: its tensors are made, unrounded, when they are asked for.

    Args:
        output: the merge.
    """

    output: Output
    _last: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.output.name

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return self.output.config

    @cached_property
    def _made(self) -> dict[str, Making]:
        return {making.name: making for making in self.output.tensors("float32")}

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors."""
        nowhere = Path(self.output.name)
        return {name: TensorInfo(name, made.dtype, made.shape, nowhere, 0, made.nbytes) for name, made in self._made.items()}

    def load(self, name: str) -> "torch.Tensor":
        """Make a tensor, in float32; asked for the same again, a thread gets it without making it anew."""
        if self._last.__dict__.get("name") != name:
            self._last.__dict__.clear()
            self._last.__dict__.update(tensor=self._made[name].whole(), name=name)
        tensor: torch.Tensor = self._last.tensor
        return tensor
