"""Sufficient statistics of a set of models: everything that kinship needs, in float64, small enough to travel.

Shape suffixes: T tensors · M models, the base first · B elements of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
        apart_TMM: (T, M, M) float64, squared distances of the rows, given where near-twins were measured from their direct
            difference; by default they follow from the products. Read them as ``squares``.
    """

    models: tuple[str, ...]
    tensors: tuple[str, ...]
    count_T: npt.NDArray[np.int64]
    sums_TM: Float64
    gram_TMM: Float64
    apart_TMM: Float64 | None = None

    def __post_init__(self) -> None:
        t, m = len(self.tensors), len(self.models)
        assert self.count_T.shape == (t,), self.count_T.shape
        assert self.sums_TM.shape == (t, m), self.sums_TM.shape
        assert self.gram_TMM.shape == (t, m, m), self.gram_TMM.shape
        assert self.apart_TMM is None or self.apart_TMM.shape == (t, m, m), self.apart_TMM.shape

    @classmethod
    def zeros(cls, models: Sequence[str], tensors: Sequence[str]) -> "Statistics":
        """Make the statistics of no elements, the neutral element of ``+``."""
        t, m = len(tensors), len(models)
        return cls(tuple(models), tuple(tensors), np.zeros(t, np.int64), np.zeros((t, m)), np.zeros((t, m, m)))

    @property
    def squares(self) -> Float64:
        """(T, M, M) float64, squared distances of the rows, as good as they are known."""
        return squared_distances(self.gram_TMM) if self.apart_TMM is None else self.apart_TMM

    def __add__(self, other: "Statistics") -> "Statistics":
        assert self.models == other.models, "statistics of different models do not add"
        names = sorted({*self.tensors, *other.tensors})
        place = {name: number for number, name in enumerate(names)}
        total, apart_TMM = Statistics.zeros(self.models, names), None
        if self.apart_TMM is not None or other.apart_TMM is not None:
            apart_TMM = np.zeros_like(total.gram_TMM)
        for part in (self, other):
            rows = [place[name] for name in part.tensors]
            total.count_T[rows] += part.count_T
            total.sums_TM[rows] += part.sums_TM
            total.gram_TMM[rows] += part.gram_TMM
            if apart_TMM is not None:
                apart_TMM[rows] += part.squares
        return replace(total, apart_TMM=apart_TMM)

    def select(self, models: Sequence[str]) -> "Statistics":
        """Keep the given models (digests), in the given order."""
        rows = [self.models.index(model) for model in models]
        return replace(
            self,
            models=tuple(models),
            sums_TM=self.sums_TM[:, rows],
            gram_TMM=self.gram_TMM[:, rows][:, :, rows],
            apart_TMM=None if self.apart_TMM is None else self.apart_TMM[:, rows][:, :, rows],
        )

    def take(self, tensors: Sequence[str]) -> "Statistics":
        """Keep the given tensors, in the given order; one that is named twice counts twice."""
        place = {name: number for number, name in enumerate(self.tensors)}
        at = [place[name] for name in tensors]
        return Statistics(
            self.models,
            tuple(tensors),
            self.count_T[at],
            self.sums_TM[at],
            self.gram_TMM[at],
            None if self.apart_TMM is None else self.apart_TMM[at],
        )

    def square(self, row_TM: Float64) -> Float64:
        """Compute the squared length of a combination of the rows, from their distances, so that near-twins do not cancel.

        Args:
            row_TM: (T, M) float64 coefficients of [θ0, δ1 … δN].

        Returns:
            (T,) float64 ‖Σ rowᵢ·[θ0, δ1 … δN]ᵢ‖².
        """
        own_T, deltas_TN = row_TM[:, 0], row_TM[:, 1:]
        norms_TN = np.diagonal(self.gram_TMM, axis1=1, axis2=2)[:, 1:]
        apart_T = np.einsum("ti,tij,tj->t", deltas_TN, self.squares[:, 1:, 1:], deltas_TN)
        with_base_T = own_T * self.gram_TMM[:, 0, 0] + 2 * (deltas_TN * self.gram_TMM[:, 0, 1:]).sum(1)
        square_T: Float64 = deltas_TN.sum(1) * (deltas_TN * norms_TN).sum(1) - apart_T / 2 + own_T * with_base_T
        return square_T

    def with_combination(self, digest: str, row_TM: Float64) -> "Statistics":
        """Add the statistics of one more model whose delta is a combination of the rows, such as a child not yet made.

        Args:
            digest: the new model's.
            row_TM: (T, M) float64 coefficients of its δ on [θ0, δ1 … δN].
        """
        t, m = row_TM.shape
        dots_TM = np.einsum("tm,tmn->tn", row_TM, self.gram_TMM)
        gram_TMM, apart_TMM = np.zeros((t, m + 1, m + 1)), np.zeros((t, m + 1, m + 1))
        gram_TMM[:, :m, :m], apart_TMM[:, :m, :m] = self.gram_TMM, self.squares
        gram_TMM[:, :m, m] = gram_TMM[:, m, :m] = dots_TM
        gram_TMM[:, m, m] = self.square(row_TM)
        for other in range(m):
            apart_TMM[:, other, m] = apart_TMM[:, m, other] = self.square(row_TM - np.eye(m)[other])
        sums_TM = np.column_stack([self.sums_TM, (row_TM * self.sums_TM).sum(1)])
        return Statistics((*self.models, digest), self.tensors, self.count_T, sums_TM, gram_TMM, apart_TMM)


def squared_distances(gram_XMM: Float64) -> Float64:
    """Compute the squared distances of rows from their (…, M, M) products; of near-twins only a few digits are right."""
    norms = np.diagonal(gram_XMM, axis1=-2, axis2=-1)
    apart: Float64 = np.maximum(norms[..., :, None] + norms[..., None, :] - 2 * gram_XMM, 0.0)
    return apart
