"""What a person sees of a kinship table: matrices that line up, and a sentence on what they mean."""

import math
from collections.abc import Sequence

import numpy as np

from kinray.core.kinship import Metric
from kinray.core.statistics import Float64
from kinray.kinship.table import Kinship

SATURATED = 0.9
"""Kinship above which merging two models is unlikely to gain (Hu et al., section 5)."""

TITLES: dict[Metric, str] = {"pcc": "Pearson correlation", "cs": "cosine", "ed": "Euclidean distance"}


def table_text(kinship: Kinship, metrics: Sequence[Metric]) -> str:
    """Write the asked metrics as aligned matrices, models numbered as for ``--merge-of``, each with its meaning."""
    parts = []
    for metric in metrics:
        matrix = kinship.matrix(metric)
        lines = [f"{metric}: {TITLES[metric]} of the weight changes", *_matrix(kinship.models, matrix)]
        parts.append("\n".join([*lines, meaning(kinship.models, matrix, metric, kinship.group[metric])]))
    return "\n\n".join(parts)


def layers_text(kinship: Kinship, metrics: Sequence[Metric]) -> str:
    """Write the mean over pairs in each tensor, a line for each."""
    assert kinship.layers is not None
    width = max((len(name) for name in kinship.layers), default=0)
    lines = [f"{'mean over pairs, by tensor':<{width}}  " + "  ".join(f"{metric:>9}" for metric in metrics)]
    for name, layer in kinship.layers.items():
        means = [_mean(layer[metric]) for metric in metrics]
        lines.append(f"{name:<{width}}  " + "  ".join(f"{_number(mean):>9}" for mean in means))
    return "\n".join(lines)


def meaning(models: Sequence[str], matrix: Float64, metric: Metric, group: float) -> str:
    """Say in a sentence which models are closest, which are most distant, and whether merging can gain."""
    undefined = [name for at, name in enumerate(models) if not math.isfinite(matrix[at, at])]
    notes = [f"{', '.join(undefined)}: undefined, the delta is zero or constant." for _ in undefined[:1]]
    left, right = np.triu_indices(len(models), 1)
    values = matrix[left, right]
    defined = np.flatnonzero(np.isfinite(values))
    if not len(defined):
        return " ".join(["There is no pair to compare.", *notes])
    ordered = defined[np.argsort(values[defined], kind="stable")]
    low, high = (ordered[-1], ordered[0]) if metric == "ed" else (ordered[0], ordered[-1])
    sentences = [f"Closest: {_pair(models, left[high], right[high])} ({_number(values[high])})."]
    if len(defined) > 1:
        sentences.append(f"Most distant: {_pair(models, left[low], right[low])} ({_number(values[low])}).")
    if math.isfinite(group):
        sentences.append(f"Mean over pairs {_number(group)}.")
    if metric != "ed" and (saturated := int((values[defined] > SATURATED).sum())):
        what = (
            "all pairs are"
            if saturated == len(values)
            else f"{saturated} of {len(values)} pairs {'are' if saturated > 1 else 'is'}"
        )
        sentences.append(f"Saturated: {what} above {SATURATED}, merging those will gain little.")
    return " ".join([*sentences, *notes])


def _matrix(models: Sequence[str], matrix: Float64) -> list[str]:
    cells = [[_number(value) for value in row] for row in matrix]
    columns = [max(len(str(at)), *(len(row[at]) for row in cells)) for at in range(len(models))]
    digits, width = len(str(len(models) - 1)), max(len(name) for name in models)
    head = " " * (digits + 2 + width) + "  " + "  ".join(f"{at:>{size}}" for at, size in enumerate(columns))
    rows = [
        f"{at:>{digits}}  {name:<{width}}  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(row, columns, strict=True))
        for at, (name, row) in enumerate(zip(models, cells, strict=True))
    ]
    return [head, *rows]


def _pair(models: Sequence[str], left: int, right: int) -> str:
    return f"{models[left]} and {models[right]}"


def _mean(matrix: Float64) -> float:
    values = matrix[np.triu_indices(len(matrix), 1)]
    return float(values.mean()) if len(values) else math.nan


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.1f}"
