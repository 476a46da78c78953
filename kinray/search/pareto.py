"""The order of models by several scores at once, that of NSGA-II (Deb, Pratap, Agarwal and Meyarivan 2002, IEEE TEC 6(2), III).

Shapes: N models, T tasks. Scores are better when higher. Where the order leaves two models equal, the one that is given first
comes first.
"""

import numpy as np
from numpy.typing import NDArray

from kinray.core.statistics import Float64


def crowded_order(scores_NT: Float64) -> list[int]:
    """Sort models by front, then by crowding distance, the loneliest first (III-B, crowded-comparison operator).

    Args:
        scores_NT: (N, T) float64, without NaN.

    Returns:
        their numbers.
    """
    ranks_N = fronts(scores_NT)
    ordered: list[int] = []
    for rank in range(int(ranks_N.max(initial=-1)) + 1):
        members = np.flatnonzero(ranks_N == rank)
        ordered += members[np.argsort(-crowding(scores_NT[members]), kind="stable")].tolist()
    return ordered


def fronts(scores_NT: Float64) -> NDArray[np.int64]:
    """Number each model's front (III-A): 0 for what no model dominates, 1 for what only models of front 0 dominate, and so on.

    One model dominates another when it is as good on every task and better on one.

    Returns:
        (N,) int64.
    """
    no_worse_NN: NDArray[np.bool_] = np.all(scores_NT[:, None] >= scores_NT[None], axis=2)
    dominates_NN = no_worse_NN & ~no_worse_NN.T
    ranks_N = np.full(len(scores_NT), -1, np.int64)
    rank = 0
    while (left := np.flatnonzero(ranks_N < 0)).size:
        ranks_N[left[~dominates_NN[np.ix_(left, left)].any(0)]] = rank
        rank += 1
    return ranks_N


def crowding(scores_NT: Float64) -> Float64:
    """Measure how far the models of one front are apart (III-B, crowding-distance-assignment).

    That is the gap between a model's two neighbours on a task, in units of the task's range, summed over tasks; infinite for
    the ends. Of models with the same scores only the first has a distance, its copies have 0.

    Returns:
        (N,) float64.
    """
    unlike_M = np.sort(np.unique(scores_NT, axis=0, return_index=True)[1])
    scores_MT = scores_NT[unlike_M]
    distance_M = np.zeros(len(unlike_M))
    for scores_M in scores_MT.T:
        order_M = np.argsort(scores_M, kind="stable")
        sorted_M = scores_M[order_M]
        if sorted_M[0] < sorted_M[-1]:
            distance_M[order_M[1:-1]] += (sorted_M[2:] - sorted_M[:-2]) / (sorted_M[-1] - sorted_M[0])
            distance_M[order_M[[0, -1]]] = np.inf
    distance_N = np.zeros(len(scores_NT))
    distance_N[unlike_M] = np.inf if len(unlike_M) == 1 else distance_M
    return distance_N
