"""A run's children table as it lies on the disk, read without kinray."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from kinray.records.tables import TIMES


class Table:
    """The rows of a run at one moment, in the order of child numbers; none while there is no table."""

    def __init__(self, run: Path) -> None:
        self.run = run
        files = sorted((run / "children").glob("*.parquet"))
        self.rows: list[dict[str, Any]] = [
            row for file in files for row in pq.read_table(BytesIO(file.read_bytes())).to_pylist()
        ]  # read at once: it may be replaced meanwhile

    @property
    def timeless(self) -> list[dict[str, Any]]:
        """The rows without what differs between two runs of one search."""
        return [{name: value for name, value in row.items() if name not in TIMES} for row in self.rows]

    @property
    def best(self) -> bytes:
        """The weights of the exported best model."""
        return (self.run / "best" / "model.safetensors").read_bytes()
