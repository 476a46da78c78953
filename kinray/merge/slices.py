"""Slices: how deep their tensors lie, and what does not fit together."""

from collections.abc import Mapping, Sequence

from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.models import weight_names
from kinray.checkpoints.renamed import layer_count, main_stack
from kinray.core.layers import depths, layer_of
from kinray.core.parameters import Varied
from kinray.core.recipe import Merge
from kinray.errors import ConfigError


def depths_of_slice(names: Sequence[str], stack: str, start: int, count: int) -> dict[str, float]:
    """Say how deep tensors lie in a slice: 0 in its first layer, 1 in its last, 0 outside of layers, as mergekit has it."""
    result = depths(names)
    for name in names:
        layer = layer_of(name)
        if layer is not None and layer[0] == stack:
            result[name] = (layer[1] - start) / (count - 1) if count > 1 else 1.0
    return result


def check_depth(model: WeightSource, base: WeightSource) -> None:
    """Refuse to merge whole models of different depths: the surplus layers would be in no place."""
    got, expected = layer_count(model.config), layer_count(base.config)
    if None not in (got, expected) and got != expected:
        raise ConfigError(
            f"Model '{model.name}' has {got} layers, '{base.name}' has {expected}. Use slices with as many layers of each."
        )


def check_ends(ends: Mapping[str, WeightSource], donor: WeightSource) -> None:
    """Refuse slices whose embedding or output layer do not go with the config."""
    stack = main_stack(donor)[0]
    for name in weight_names(donor):
        if (layer := layer_of(name)) is not None and layer[0] == stack:
            continue
        who = f"'{donor.name}', whose config the output has"
        if name not in ends:
            raise ConfigError(f"No slice has '{name}', which is in {who}. Name another base_model.")
        got, expected = ends[name].tensors[name].shape, donor.tensors[name].shape
        if got != expected:
            raise ConfigError(
                f"Tensor '{name}' has shape {got} in '{ends[name].name}' but {expected} in {who}. Name another base_model; if "
                "the vocabularies differ, say 'tokenizer_source: base'."
            )


def check_filters(recipe: Merge, own: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse filters of a source by the number of a layer that has another one in the output; mergekit means the source's."""
    for parameter, value in recipe.params.items():
        for parent, entry in zip(recipe.parents, value, strict=True) if isinstance(value, tuple) else ():
            words = [word for word, _ in entry.cases] if isinstance(entry, Varied) else []
            for new, old in own[getattr(parent, "name", "")].items() if words else ():
                if wrong := next((word for word in words if (word in new) != (word in old)), None):
                    raise ConfigError(
                        f"Parameter '{parameter}' has the filter '{wrong}', which fits '{old}' of the model or '{new}' of the "
                        "output but not both. Filters by a layer's number are not supported where layers get other numbers."
                    )
