"""Kinship: how alike the weight changes of two models are (Hu et al., arXiv 2410.12613, section 3.1).

All three metrics come from five sums over the elements of the two deltas, over all parameters at once.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from kinray.core.statistics import Float64, Statistics

Metric = Literal["pcc", "cs", "ed"]
METRICS: tuple[Metric, ...] = get_args(Metric)

_NOTHING = 1e-12
"""Relative to the raw second moment: below it a variance is the rounding of sums, and the correlation undefined."""


@dataclass(frozen=True)
class Moments:
    """Sums over all elements of pairs of deltas a, b; arrays of any one shape, float64.

    Args:
        count: number of elements.
        sum_a, sum_b: Σ a, Σ b.
        dot_aa, dot_bb, dot_ab: Σ a², Σ b², Σ ab.
        apart: Σ (a − b)² where it is known better than from the products, whose difference cancels for near-twins.
    """

    count: Float64 | float
    sum_a: Float64 | float
    sum_b: Float64 | float
    dot_aa: Float64 | float
    dot_bb: Float64 | float
    dot_ab: Float64 | float
    apart: Float64 | float | None = None


def kinship(metric: Metric, moments: Moments) -> Float64:
    """Compute one metric of each pair.

    Returns:
        float64 array of the shape of the moments: ``pcc`` the Pearson correlation with the true means, ``cs`` the signed
        cosine, ``ed`` the Euclidean distance of the deltas; NaN where undefined (a delta that is zero or, for pcc,
        constant).
    """
    m = moments
    with np.errstate(divide="ignore", invalid="ignore"):
        match metric:
            case "ed":
                square = m.dot_aa + m.dot_bb - 2 * m.dot_ab if m.apart is None else m.apart
                return np.asarray(np.sqrt(np.maximum(np.asarray(square, np.float64), 0.0)), np.float64)
            case "cs":
                return _ratio(m.dot_ab, m.dot_aa, m.dot_bb, m)
            case "pcc":
                return _ratio(
                    m.dot_ab - m.sum_a * m.sum_b / m.count,
                    m.dot_aa - m.sum_a**2 / m.count,
                    m.dot_bb - m.sum_b**2 / m.count,
                    m,
                )


def _ratio(ab: Float64 | float, aa: Float64 | float, bb: Float64 | float, raw: Moments) -> Float64:
    defined = (np.asarray(aa) > _NOTHING * np.asarray(raw.dot_aa)) & (np.asarray(bb) > _NOTHING * np.asarray(raw.dot_bb))
    norm = np.sqrt(np.maximum(aa, 0.0)) * np.sqrt(np.maximum(bb, 0.0))
    return np.where(defined, np.clip(np.asarray(ab) / norm, -1.0, 1.0), np.nan)


def kinship_matrix(metric: Metric, statistics: Statistics) -> Float64:
    """Compute one metric for every pair of founders over all parameters.

    Returns:
        (N, N) float64 in the order of ``statistics.models[1:]``, symmetric.
    """
    return kinship(
        metric,
        _pairs(
            statistics.count_T.sum(),
            statistics.sums_TM.sum(0),
            statistics.gram_TMM.sum(0),
            statistics.squares.sum(0),
        ),
    )


def kinship_by_tensor(metric: Metric, statistics: Statistics) -> Float64:
    """Compute one metric for every pair of founders in each tensor by itself.

    Returns:
        (T, N, N) float64 in the order of ``statistics.tensors`` and ``statistics.models[1:]``.
    """
    count_T11 = statistics.count_T[:, None, None]
    return kinship(metric, _pairs(count_T11, statistics.sums_TM, statistics.gram_TMM, statistics.squares))


def _pairs(count: npt.ArrayLike, sums_XM: Float64, gram_XMM: Float64, squares_XMM: Float64) -> Moments:
    """Line up the moments of all pairs of founders; X is nothing, or the tensors."""
    sums, gram = sums_XM[..., 1:], gram_XMM[..., 1:, 1:]
    norms = np.diagonal(gram, axis1=-2, axis2=-1)
    return Moments(
        np.asarray(count, np.float64),
        sums[..., :, None],
        sums[..., None, :],
        norms[..., :, None],
        norms[..., None, :],
        gram,
        squares_XMM[..., 1:, 1:],
    )


def group_kinship(matrix: Float64) -> float:
    """Average a kinship matrix over its pairs of different models; NaN for fewer than two models."""
    pairs = matrix[np.triu_indices(len(matrix), 1)]
    return float(pairs.mean()) if len(pairs) else float("nan")
