"""A run is a folder. Everything a person is shown, and everything a resumed run needs, is in it.

config.yaml              resolved configuration, versions, digests of the founders
children/*.parquet       one row for each founder and child, at most 64 rows of one generation in each file
samples/*.parquet        per-item scores, one file for each model (NAME.holdout for held-out items)
kinship/*.parquet        the kinship values that each generation was mated by
state.json               the search policy as it stood when one of its last generations was made
tune/                    what Ray Tune wrote in each session; nothing reads it back
best/                    the exported best model
.lock                    held by the process that has the folder open, and says which one that is

Where the folder is a URI, all this happens in a folder of this machine, and what is recorded is copied to the store at once.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from kinray.config import Config, SearchConfig
from kinray.config.schema import NAME
from kinray.core.scores import Difference, Failed, Result, Scored, Stopped, difference, on_items_of
from kinray.errors import RunError
from kinray.files import write_atomically
from kinray.records.claim import claim
from kinray.records.config_file import config_text, read_run_config, with_search
from kinray.records.mirror import Mirror, check_output, working_folder
from kinray.records.store import is_uri
from kinray.records.tables import (
    BROKEN,
    STOPPED,
    child_row,
    children_schema,
    read_samples,
    read_table,
    torn,
    write_children,
    write_kinship,
    write_samples,
)
from kinray.search.population import Child

_ROWS = 64
"""Rows in a file of the children table, at most: recording a child writes one file anew, however large a generation is."""

_RECENT = 16
"""Results kept in memory: those of the parents of a generation, which each of their children is compared with."""


class RunFolder:
    """The records of one run; one process at a time has it open.

    Contract: rows and samples are on the disk, and in the store if the run lies in one, when ``record`` returns; a row
    implies its samples. Rows of a generation stand in the order of child numbers, whatever order they came in. What a crash
    or a power cut left half-written is dropped when the folder is opened, and ``notices`` says so; whoever lost a record is
    scored again.

    Args:
        path: the folder, which ``create`` or ``resume`` has opened.
        config: of the run.
        claimed: the claim on it; a mirror if its records are copied to a store.
    """

    def __init__(self, path: Path, config: Config, claimed: IO[str] | Mirror) -> None:
        self.path, self.config, self._claimed = path, config, claimed
        self.place = config.output if isinstance(claimed, Mirror) else str(path)
        """The path or URI that a person knows it by."""
        self.notices: list[str] = []
        self._schema = children_schema([task.name for task in config.tasks])
        self._put_torn_aside()
        self._rows = self._read_rows()
        self._status = {row["digest"]: row for rows in self._rows.values() for row in rows.values()}
        self._recent: dict[Path, Scored | Stopped] = {}

    @classmethod
    def create(cls, config: Config, digests: Mapping[str, str], note: Callable[[str], None] = lambda _: None) -> "RunFolder":
        """Start a run in a new or empty folder.

        Args:
            config: of the run; its ``output`` is a path or a URI.
            digests: of the base and the founders by name.
            note: told what is being waited for.

        Raises:
            RunError: when the folder holds something already, or cannot be written.
        """
        check_output(config.output)
        path = working_folder(config.output)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path, config, Mirror(config.output, note) if is_uri(config.output) else claim(path))
            run._write("config.yaml", config_text(config, digests))
        except OSError as error:
            raise RunError(f"Cannot write the run folder {path}: {error.strerror}. Choose another with --output.") from error
        return run

    @classmethod
    def resume(cls, place: str | Path, note: Callable[[str], None] = lambda _: None) -> "RunFolder":
        """Open the folder of a run that was begun, without what a session that was killed left behind in it.

        Children whose evaluation broke are forgotten, so that they are scored again; only where the search went on without
        them, they stay as they are.

        Args:
            place: a path or a URI.
            note: told what is being waited for.

        Raises:
            RunError: when it holds no run, one of another format, or one that another process has open.
        """
        config, _ = read_run_config(place)
        path = working_folder(str(place))
        claimed = Mirror(str(place), note) if is_uri(str(place)) else claim(path)
        for left in [*path.glob(".*.tmp"), *path.glob(".*.old"), *path.glob("*/.*.tmp")]:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        run = cls(path, config, claimed)
        run._forget_broken()
        return run

    def close(self) -> None:
        """Let other processes open the folder."""
        self._claimed.close()

    def _write(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text.encode())
        self._publish(self.path / name)

    def _publish(self, file: Path) -> None:
        """Bring a file that was written to the store, if the run lies in one; until then it does not count."""
        if isinstance(self._claimed, Mirror):
            self._claimed.publish(file)

    def publish_best(self) -> str:
        """Bring the exported model to the store, if the run lies in one, and return where it is."""
        if isinstance(self._claimed, Mirror):
            return self._claimed.publish_folder("best", last="config.json")
        return str(self.path / "best")

    def _put_torn_aside(self) -> None:
        """Rename tables that a power cut left unfinished, so that nothing reads them."""
        for file in filter(torn, sorted(self.path.glob("*/*.parquet"))):
            file.rename(file.with_name(f".{file.name}.damaged"))
            self.notices.append(f"{file} breaks off in the middle. It was put aside; what it held is made again.")

    def _read_rows(self) -> dict[int, dict[int, dict[str, Any]]]:
        """Return the rows by generation and number, without those whose samples are gone."""
        rows: dict[int, dict[int, dict[str, Any]]] = {}
        for file in sorted((self.path / "children").glob("*.parquet")):
            for row in read_table(file, self._schema):
                if not NAME.fullmatch(row["name"] or "") or None in (row["generation"], row["number"], row["digest"]):
                    raise RunError(
                        f"{file} has a row that kinray did not write, of {str(row['name'])[:80]!r}. Remove the file."
                    )
                if row["score"] is None or self._samples(row["name"], "search").is_file():
                    rows.setdefault(row["generation"], {})[row["number"]] = row
                else:
                    self.notices.append(f"The samples of {row['name']} are gone, so it is scored again.")
        return rows

    def _forget_broken(self) -> None:
        last = max(self._rows, default=0)
        told = (self.load_state() or {}).get("outcomes", {})
        for number, row in list(self._rows.get(last, {}).items()):
            if row["status"] == BROKEN and row["name"] not in told:
                del self._rows[last][number], self._status[row["digest"]]

    # -- results

    def record(self, child: Child, result: Result, gain: Difference | None, refused: str | None = None) -> None:
        """Keep what became of a child, with the reason if it was refused."""
        if not isinstance(result, Failed):
            self.keep(child.name, result)
        row = dict.fromkeys(self._schema.names) | child_row(child, result, gain, refused)
        rows = self._rows.setdefault(child.generation, {})
        rows[child.number] = row
        self._status[child.recipe.digest] = row
        self._write_rows(child.generation, child.number // _ROWS)

    def _write_rows(self, generation: int, part: int) -> None:
        rows, here = self._rows[generation], range(part * _ROWS, (part + 1) * _ROWS)
        path = self.path / "children" / f"generation-{generation:04d}-{part:04d}.parquet"
        write_children(path, [rows[number] for number in here if number in rows], self._schema)
        self._publish(path)

    def known(self, child: Child) -> Result | None:
        """Return what became of a child, None if it has no row yet."""
        row = self._status.get(child.recipe.digest)
        if row is None:
            return None
        if row["score"] is None:
            return Failed(row["error"], broke=row["status"] == BROKEN)
        return self._result(self._samples(child.name, "search"))

    def gain(self, child: Child, result: Result | None) -> Difference | None:
        """Compare a child with the mean of its parents on the search's items, or on those that it was asked.

        None for a founder, for what has no score, and where the samples of a parent are gone.
        """
        parents = [one for name in child.parents if (one := self.kept(name)) is not None]
        if result is None or isinstance(result, Failed) or not parents or len(parents) < len(child.parents):
            return None
        if isinstance(result, Stopped):
            partial = result.partial
            return difference(partial, *(on_items_of(partial, parent) for parent in parents))
        return None if math.isnan(result.score) else difference(result, *parents)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of the children table in the order of child numbers."""
        return [rows[number] for _, rows in sorted(self._rows.items()) for number in sorted(rows)]

    def keep(self, name: str, result: Scored | Stopped, split: str = "search") -> None:
        """Keep the per-item scores of a model on a split."""
        path = self._samples(name, split)
        self._recent.pop(path, None)
        write_samples(path, name, result)
        self._publish(path)

    def kept(self, name: str, split: str = "search") -> Scored | None:
        """Return the scores of a model on a split, None if there are none or it was not asked all items."""
        result = self._result(self._samples(name, split))
        return result if isinstance(result, Scored) else None

    def _result(self, path: Path) -> Scored | Stopped | None:
        if not path.is_file():
            return None
        result = self._recent.pop(path) if path in self._recent else read_samples(path)
        self._recent[path] = result  # the newest, the last to go
        while len(self._recent) > _RECENT:
            self._recent.pop(next(iter(self._recent)))
        return result

    def compared(self) -> list[Scored]:
        """Return what was scored besides the children's search items: the base, the average, and all held-out items."""
        children = {row["name"] for row in self.rows()}
        files = sorted((self.path / "samples").glob("*.parquet"))
        results = (read_samples(file) for file in files if file.stem not in children)
        return [result for result in results if isinstance(result, Scored)]

    def _samples(self, name: str, split: str) -> Path:
        return self.path / "samples" / (f"{name}.parquet" if split == "search" else f"{name}.{split}.parquet")

    def record_kinship(self, generation: int, values: Sequence[tuple[str, str, str, float]]) -> None:
        """Keep kinship values (a, b, metric, value) that a generation was mated by."""
        path = self.path / "kinship" / f"generation-{generation:04d}.parquet"
        write_kinship(path, values)
        self._publish(path)

    def next_session(self) -> Path:
        """Name a folder for what Ray Tune writes in this session: ``tune/session-1``, then ``-2`` and so on."""
        numbers = [folder.name.removeprefix("session-") for folder in (self.path / "tune").glob("session-*")]
        last = max((int(number) for number in numbers if number.isdecimal()), default=0)
        return self.path / "tune" / f"session-{last + 1}"

    # -- state of the policy

    def extend(self, search: SearchConfig) -> None:
        """Let the search go on under other budgets; then it is replayed from its records, as if it had begun with them.

        Children of the last generation that were stopped are forgotten: with more siblings they might not have been.
        """
        self._write("state.json", "null")
        last = max(self._rows, default=0)
        stopped = [number for number, row in self._rows.get(last, {}).items() if row["status"] == STOPPED]
        for number in stopped:
            del self._status[self._rows[last].pop(number)["digest"]]
        for part in {number // _ROWS for number in stopped}:
            self._write_rows(last, part)
        self._write("config.yaml", with_search((self.path / "config.yaml").read_text(), search))
        self.config = self.config.model_copy(update={"search": search})

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep the policy's state."""
        self._write("state.json", json.dumps(state))

    def load_state(self) -> dict[str, Any] | None:
        """Return the policy's state.

        None when there is none or it is damaged, and when the records have lost what it knows of; then the search is replayed
        from its records.
        """
        try:
            state = json.loads((self.path / "state.json").read_text())
        except (OSError, ValueError, RecursionError):
            return None
        outcomes = state.get("outcomes", {}) if isinstance(state, dict) else None
        recorded = {row["name"] for row in self._status.values()}
        if self.notices or not isinstance(outcomes, dict) or not recorded.issuperset(outcomes):
            return None
        return dict(state)
