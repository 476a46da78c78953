"""A model seen with some of its tensors, under other names: so layers are left out, repeated and stacked."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kinray.checkpoints.folder import ModelView, WeightSource
from kinray.checkpoints.header import TensorInfo
from kinray.core.layers import layer_of, renumbered
from kinray.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configs call the number of layers."""

_IN_FRONT = re.compile(r"emb(?!ed_out)|wte|wpe|vis(ion|ual)|image|audio|projector|connector")
"""In names of tensors that work before the first layer; others outside of the layers work behind the last."""

_TOKEN_IDS = re.compile(r".*token_(id|ids|index)|architectures")
"""Settings that may be lists, but have no value for each layer."""


@dataclass
class RenamedModel(ModelView):
    """A model of which some tensors are seen under other names.

    Args:
        model: what they are tensors of.
        own: its name of each tensor, by the name that it is seen by.
    """

    own: Mapping[str, str]

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors, by their new names."""
        tensors = self.model.tensors
        return {name: replace(tensors[own], name=name) for name, own in self.own.items()}

    def load(self, name: str) -> "torch.Tensor":
        """Return a tensor as the model has it."""
        return self.model.load(self.own[name])


def main_stack(model: WeightSource) -> tuple[str, int]:
    """Return the name and the number of layers of a model's main stack.

    It is the stack that has as many layers as the config says; of several, or if there is none, the one with most weights.

    Raises:
        CheckpointError: when it has no layers.
    """
    weights: Counter[str] = Counter()
    layers: set[tuple[str, int]] = set()
    for name, info in model.tensors.items():
        if (layer := layer_of(name)) is not None:
            layers.add(layer)
            weights[layer[0]] += info.numel
    if not layers:
        raise CheckpointError(f"Model '{model.name}' has no layers to choose from: no name of a tensor holds a number.")
    counts = Counter(stack for stack, _ in layers)
    wanted = layer_count(model.config)
    stack = max(counts, key=lambda stack: (counts[stack] == wanted, weights[stack]))
    return stack, counts[stack]


def layer_count(config: Mapping[str, Any]) -> int | None:
    """Return the number of layers that a config names."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            for key in _COUNTS:
                if isinstance(part.get(key), int):
                    return int(part[key])
    return None


def layers_of(model: WeightSource, first: int, last: int, start: int, *, front: bool, back: bool) -> RenamedModel:
    """See some layers of a model's main stack as layers of another.

    Args:
        model: the model.
        first: first of its layers that is seen.
        last: first one behind it that is not.
        start: number that the first of them gets.
        front: whether to see what works before the layers too: embeddings, and other towers of the model.
        back: whether to see what works behind them: final norm, output layer.

    Raises:
        CheckpointError: when it has not so many layers.
    """
    stack, count = main_stack(model)
    if last > count:
        raise CheckpointError(
            f"Model '{model.name}' has {count} layers, numbered from 0. The range [{first}, {last}] needs {last} of them."
        )
    own = {}
    for name in model.tensors:
        layer = layer_of(name)
        if layer is None or layer[0] != stack:
            if front if layer is not None or _IN_FRONT.search(name) else back:
                own[name] = name
        elif first <= layer[1] < last:
            own[renumbered(name, start + layer[1] - first)] = name
    return RenamedModel(model, own)


def config_with_layers(config: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return a config for a model of other layers.

    Args:
        config: config.json.
        kept: for each layer of the new model, which layer of a model with this config it is like.

    Returns:
        the config with their number, and with settings that have one value a layer (such as ``layer_types``) picked.
    """
    before = layer_count(config)

    def changed(part: Mapping[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in part.items():
            if key in _COUNTS and value == before:
                result[key] = len(kept)
            elif isinstance(value, list) and len(value) == before and max(kept) < before and not _TOKEN_IDS.fullmatch(key):
                result[key] = [value[layer] for layer in kept]
            elif key == "text_config" and isinstance(value, dict):
                result[key] = changed(value)
            else:
                result[key] = value
        return result

    return changed(config)
