"""The kinship of models as a value: what is printed, drawn and written is made from it alone.

Shape suffixes: N models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kinray.core.kinship import METRICS, Metric, group_kinship, kinship_by_tensor, kinship_matrix
from kinray.core.statistics import Float64, Statistics

Convention = Literal["kinray", "paper"]


@dataclass(frozen=True)
class Kinship:
    """Kinship of N models, by all three metrics; NaN where it is undefined.

    Args:
        models: N names.
        parameters: elements compared.
        pcc, cs, ed: (N, N) float64: Pearson correlation, signed cosine, Euclidean distance of the deltas.
        group: mean over pairs, by metric.
        layers: tensor name -> metric -> (N, N) float64, when asked for.
    """

    models: tuple[str, ...]
    parameters: int
    pcc: Float64
    cs: Float64
    ed: Float64
    group: dict[str, float]
    layers: dict[str, dict[str, Float64]] | None = None

    def matrix(self, metric: Metric) -> Float64:
        """Return the (N, N) matrix of one metric."""
        matrix: Float64 = getattr(self, metric)
        return matrix

    def as_json(self) -> dict[str, Any]:
        """Describe it in plain values, null for undefined ones."""
        result: dict[str, Any] = {"models": list(self.models), "parameters": self.parameters}
        result |= {metric: _plain(self.matrix(metric)) for metric in METRICS}
        result["group"] = {metric: _plain(self.group[metric]) for metric in METRICS}
        if self.layers is not None:
            result["layers"] = {
                name: {metric: _plain(matrix) for metric, matrix in layer.items()} for name, layer in self.layers.items()
            }
        return result


def kinship_table(names: Sequence[str], statistics: Statistics, *, per_layer: bool = False) -> Kinship:
    """Compute all metrics of all pairs from statistics.

    Args:
        names: of the models, in the order of ``statistics.models[1:]``.
        statistics: of the base and the models.
        per_layer: whether to compute them for each tensor as well.
    """
    matrices = {metric: kinship_matrix(metric, statistics) for metric in METRICS}
    return _table(names, statistics, matrices, _layers(statistics) if per_layer else None)


def paper_table(
    names: Sequence[str], statistics: Statistics, tied: Sequence[str], *, split: bool, per_layer: bool = False
) -> Kinship:
    """Compute what the paper's code prints, but for its float32 rounding.

    Its cosine has no sign. It walks over a state dict, where a tied embedding comes twice. With ``split`` it averages each
    metric over the tensors, weighted by their elements, which is no correlation or distance of the models as wholes: one
    tensor of which a model changed nothing makes the average undefined.

    Args:
        names: of the models, in the order of ``statistics.models[1:]``.
        statistics: of the base and the models.
        tied: tensors that the output layer shares.
        split: whether to average over tensors.
        per_layer: whether to give each tensor as well.
    """
    counted = statistics.take([*statistics.tensors, *tied])
    matrices = {}
    for metric in METRICS:
        if split:
            weights_T = counted.count_T / counted.count_T.sum()
            matrices[metric] = np.einsum("t,tij->ij", weights_T, _unsigned(metric, kinship_by_tensor(metric, counted)))
        else:
            matrices[metric] = _unsigned(metric, kinship_matrix(metric, counted))
    layers = _layers(statistics) if per_layer else None
    for layer in (layers or {}).values():
        layer["cs"] = np.abs(layer["cs"])
    return _table(names, statistics, matrices, layers)


def _unsigned(metric: Metric, matrix: Float64) -> Float64:
    return np.abs(matrix) if metric == "cs" else matrix


def _table(
    names: Sequence[str],
    statistics: Statistics,
    matrices: dict[Metric, Float64],
    layers: dict[str, dict[str, Float64]] | None,
) -> Kinship:
    group = {str(metric): group_kinship(matrix) for metric, matrix in matrices.items()}
    count = int(statistics.count_T.sum())
    return Kinship(tuple(names), count, matrices["pcc"], matrices["cs"], matrices["ed"], group, layers)


def _layers(statistics: Statistics) -> dict[str, dict[str, Float64]]:
    by_metric = {metric: kinship_by_tensor(metric, statistics) for metric in METRICS}
    return {
        name: {str(metric): by_metric[metric][place] for metric in METRICS} for place, name in enumerate(statistics.tensors)
    }


def _plain(value: Any) -> Any:
    """Turn arrays into lists of numbers and None."""
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value]
    number = float(value)
    return number if math.isfinite(number) else None
