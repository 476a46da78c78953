"""What a merge does to which tensors: its effective parameters, and how much of each parent is in the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kinray.core.layers import layer_of
from kinray.core.methods import Params, method_named
from kinray.core.recipe import Merge, topological
from kinray.core.statistics import Float64
from kinray.engine.gram import tensor_statistics
from kinray.merge.output import Output, Section

WEIGHTS = (
    "A parent's weight is its share in the result: of its change from the base where the merge has one, else of its weights.\n"
    "Where a method is no weighted sum, it is the weighted sum of the parents that comes closest to the result (least squares)."
)


@dataclass(frozen=True)
class Group:
    """Tensors of one layer, or of no layer, that have the same parameters.

    Args:
        where: their place, for a person.
        names: of the tensors.
        params: their effective parameters.
    """

    where: str
    names: tuple[str, ...]
    params: Params


def explain(output: Output) -> str:
    """Describe an output: for each merge and each group of tensors the effective parameters and the parents' weights.

    Reads all weights, since what a method keeps depends on them.
    """
    parts = []
    for section in output.sections:
        merges = [node for node in topological([section.recipe]) if isinstance(node, Merge)]
        parts += [_table(section, merge) for merge in merges]
    copied = [f"{name}: taken from {source.name}" for name, source in output.copied.items()]
    return "\n\n".join([*parts, *(["\n".join(copied)] if copied else []), WEIGHTS])


def _table(section: Section, recipe: Merge) -> str:
    parents = [section.labels[parent.digest] for parent in recipe.parents]
    base = f" on {section.labels[recipe.base.digest]}" if recipe.base is not None else ""
    name = f"{section.labels[recipe.digest]}: " if recipe.digest in section.labels else ""
    title = f"{name}{recipe.method} of {', '.join(parents)}{base}"
    groups = groups_of(section, recipe)
    shown = [parameter.name for parameter in method_named(recipe.method).parameters]
    rows = [["tensors", *shown, *(f"weight of {parent}" for parent in parents)]]
    for group in groups:
        weights = effective_weights(section, recipe, group.names)
        rows.append([group.where, *(_value(group.params[name]) for name in shown), *(f"{weight:.3f}" for weight in weights)])
    return title + "\n" + _aligned(rows)


def groups_of(section: Section, recipe: Merge) -> list[Group]:
    """Group tensors by their layer and their effective parameters; layers in a row with the same ones are one group."""
    method, names = method_named(recipe.method), section.models.names
    params_T = method.per_tensor(recipe.params, len(recipe.parents), {name: section.depths[name] for name in names})
    found: dict[tuple[Any, str], list[str]] = {}
    params_of = {}
    for name, params in zip(names, params_T, strict=True):
        key = (layer_of(name), repr(sorted(params.items())))
        found.setdefault(key, []).append(name)
        params_of[key] = params
    merged: list[tuple[list[Any], frozenset[str], str, list[str], Params]] = []
    for (layer, text), own in sorted(found.items(), key=lambda item: _order(item[0][0], names, item[1][0])):
        kinds = frozenset(_kind(name) for name in own)
        twin = next((m for m in merged if m[1] == kinds and m[2] == text and _follows(m[0][-1], layer)), None)
        if twin is None:
            merged.append(([layer], kinds, text, list(own), params_of[layer, text]))
        else:
            twin[0].append(layer)
            twin[3].extend(own)
    all_kinds = {layer: {_kind(n) for n in names if layer_of(n) == layer} for layer, _ in found}
    return [Group(_where(layers, kinds, all_kinds[layers[0]]), tuple(own), params) for layers, kinds, _, own, params in merged]


def effective_weights(section: Section, recipe: Merge, names: Sequence[str]) -> Float64:
    """Return the share of each parent in the result, over some tensors, (P,) float64.

    The shares are those of the weighted sum of the parents' changes that comes closest to the child's change. Changes are from
    the base; without one, the first parent's weight is what the others leave of one.
    """
    materialiser = section.materialiser
    plans = [materialiser.plan(model) for model in (*recipe.parents, recipe)]
    base = None if recipe.base is None else materialiser.plan(recipe.base)
    pivot = plans[0] if base is None else base
    size = len(plans) + (base is not None) - 1
    gram = np.zeros((size, size))
    for name in names:
        origin, *others = (
            materialiser.tensor(plan, name, torch.float32) for plan in ([pivot, *plans] if base is not None else plans)
        )
        gram += tensor_statistics([origin, *others])[2][1:, 1:]
    shares: Float64 = np.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1], rcond=1e-10)[0].astype(np.float64)
    return shares if base is not None else np.concatenate([np.array([1.0 - shares.sum()]), shares])


# -- words


def _follows(before: Any, layer: Any) -> bool:
    return before is not None and layer is not None and before[0] == layer[0] and layer[1] == before[1] + 1


def _order(layer: Any, names: Sequence[str], first: str) -> tuple[int, str, int, int]:
    return (0, "", 0, names.index(first)) if layer is None else (1, layer[0], layer[1], names.index(first))


def _kind(name: str) -> str:
    """Return what a tensor is within its layer, or its whole name outside of layers."""
    layer = layer_of(name)
    return name if layer is None else name.removeprefix(f"{layer[0]}.{layer[1]}.")


def _where(layers: Sequence[Any], kinds: frozenset[str], every: set[str]) -> str:
    if layers[0] is None:
        return _listed(kinds)
    first, last = layers[0][1], layers[-1][1]
    place = f"{layers[0][0]}.{first}" if first == last else f"{layers[0][0]}.{first} to {last}"
    return place if kinds == every else f"{place}: {_listed(frozenset(kind.split('.')[0] for kind in kinds))}"


def _listed(words: frozenset[str]) -> str:
    ordered = sorted(words)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(_value(one) for one in value) if len(set(value)) > 1 else _value(value[0])
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
