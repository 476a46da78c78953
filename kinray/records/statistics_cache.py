"""Statistics of models kept on disk, one Parquet file for each model, so that a table grows by a row.

They are keyed by the identity of files, so they are never stale, and they can be deleted at any time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kinray.core.recipe import canonical_json
from kinray.core.statistics import Statistics
from kinray.files import replacing

_FORMAT = 2
"""Counts the kernels: statistics of another one are not mixed with these."""

SCHEMA = pa.schema(
    [
        ("tensor", pa.string()),
        ("other", pa.string()),
        ("count", pa.int64()),
        ("sum", pa.float64()),
        ("dot", pa.float64()),
        ("square", pa.float64()),
    ]
)
"""A model's file: for each tensor and other model (the base and itself among them) the count of elements, the sum of the
model's row, and the product and the squared distance of both rows."""


class StatisticsCache:
    """The statistics of models of one base over the same rows.

    Two processes may use one folder: a file is replaced whole, and of two that write one at a time the later one stays.

    Args:
        folder: where to keep them.
        base: identity of the base.
        rows: tensors of which only some rows count, and how many.
    """

    def __init__(self, folder: Path, base: str, rows: Mapping[str, int]) -> None:
        key = canonical_json([_FORMAT, base, dict(rows)])
        self._folder = folder / hashlib.sha256(key.encode()).hexdigest()[:32]

    def load(self, models: Sequence[str], tensors: Sequence[str]) -> Statistics | None:
        """Return the statistics of these models (identities, the base's first) and tensors, or None unless all are known."""
        t, m = len(tensors), len(models)
        at_T = {name: place for place, name in enumerate(tensors)}
        count_T, sums_TM = np.zeros(t, np.int64), np.zeros((t, m))
        gram_TMM, apart_TMM = np.full((t, m, m), np.nan), np.full((t, m, m), np.nan)
        for column, model in enumerate(models):
            table = self._read(model)
            if table is None:
                return None
            names, others, counts, sums, dots, squares = (table[field].to_numpy() for field in SCHEMA.names)
            rows = np.array([at_T.get(name, -1) for name in names])
            for place, other in enumerate(models):
                chosen = (others == other) & (rows >= 0)
                gram_TMM[rows[chosen], column, place] = dots[chosen]
                apart_TMM[rows[chosen], column, place] = squares[chosen]
                if place == column:
                    count_T[rows[chosen]], sums_TM[rows[chosen], column] = counts[chosen], sums[chosen]
        gram_TMM = np.where(np.isnan(gram_TMM), gram_TMM.transpose(0, 2, 1), gram_TMM)
        apart_TMM = np.where(np.isnan(apart_TMM), apart_TMM.transpose(0, 2, 1), apart_TMM)
        if np.isnan(gram_TMM).any() or np.isnan(apart_TMM).any():
            return None
        return Statistics(tuple(models), tuple(tensors), count_T, sums_TM, gram_TMM, apart_TMM)

    def save(self, statistics: Statistics) -> None:
        """Keep statistics; a cache that cannot be written only costs time."""
        try:
            for row in range(len(statistics.models)):
                self._save_row(statistics, row)
        except OSError:
            return

    def _save_row(self, statistics: Statistics, row: int) -> None:
        model, (t, m) = statistics.models[row], statistics.sums_TM.shape
        new = pa.table(
            {
                "tensor": np.repeat(statistics.tensors, m),
                "other": np.tile(statistics.models, t),
                "count": np.repeat(statistics.count_T, m),
                "sum": np.repeat(statistics.sums_TM[:, row], m),
                "dot": statistics.gram_TMM[:, row].reshape(-1),
                "square": statistics.squares[:, row].reshape(-1),
            },
            schema=SCHEMA,
        )
        old = self._read(model)
        if old is not None:
            known = np.isin(old["other"].to_numpy(), statistics.models)
            new = pa.concat_tables([new, old.filter(pa.array(~known))])
        with replacing(self._path(model)) as temporary:
            pq.write_table(new, temporary, compression="zstd")

    def _read(self, model: str) -> pa.Table | None:
        try:
            table = pq.read_table(self._path(model))
        except (pa.ArrowException, OSError):
            return None
        return table if table.schema.equals(SCHEMA) else None

    def _path(self, model: str) -> Path:
        return self._folder / f"{model}.parquet"
