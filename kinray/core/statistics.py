"""Sufficient statistics of a set of models: everything that kinship needs, in float64, small enough to travel.

Shape suffixes: T tensors · M models, the base first · B elements of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Count, sums and Gram matrices of the rows [θ0, δ1 … δN], tensor by tensor.

    Statistics of different tensors, or of different blocks of one tensor, add: ``a + b`` is what one pass over both would
    have given, up to float64 rounding. So shards and nodes combine in any order.

    Args:
        models: M digests; row 0 is the base θ0, row i the delta δi = θi − θ0 of founder i.
        tensors: T tensor names.
        count_T: (T,) int64, elements of each tensor seen.
        sums_TM: (T, M) float64, Σ over elements of each row.
        gram_TMM: (T, M, M) float64, dot products of the rows.
    """

    models: tuple[str, ...]
    tensors: tuple[str, ...]
    count_T: npt.NDArray[np.int64]
    sums_TM: Float64
    gram_TMM: Float64

    def __post_init__(self) -> None:
        t, m = len(self.tensors), len(self.models)
        assert self.count_T.shape == (t,), self.count_T.shape
        assert self.sums_TM.shape == (t, m), self.sums_TM.shape
        assert self.gram_TMM.shape == (t, m, m), self.gram_TMM.shape

    @classmethod
    def zeros(cls, models: Sequence[str], tensors: Sequence[str]) -> "Statistics":
        """Make the statistics of no elements, the neutral element of ``+``."""
        t, m = len(tensors), len(models)
        return cls(tuple(models), tuple(tensors), np.zeros(t, np.int64), np.zeros((t, m)), np.zeros((t, m, m)))

    def __add__(self, other: "Statistics") -> "Statistics":
        assert self.models == other.models, "statistics of different models do not add"
        names = sorted({*self.tensors, *other.tensors})
        place = {name: number for number, name in enumerate(names)}
        total = Statistics.zeros(self.models, names)
        for part in (self, other):
            rows = [place[name] for name in part.tensors]
            total.count_T[rows] += part.count_T
            total.sums_TM[rows] += part.sums_TM
            total.gram_TMM[rows] += part.gram_TMM
        return total

    def select(self, models: Sequence[str]) -> "Statistics":
        """Keep the given models (digests), in the given order."""
        rows = [self.models.index(model) for model in models]
        return Statistics(tuple(models), self.tensors, self.count_T, self.sums_TM[:, rows], self.gram_TMM[:, rows][:, :, rows])
