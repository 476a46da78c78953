"""Scores that were found before, in this run or another, one small JSON file for each."""

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kinray.core.scores import FROM_CACHE, Failed, Scored, TaskScore
from kinray.errors import ConfigError
from kinray.evaluation.score_key import key_of
from kinray.files import nearest, write_atomically


class ScoreCache:
    """Results by the parts of their keys (``Scope.of``).

    Contract: several processes on several nodes may share the folder. A file appears whole or not at all. One that is damaged,
    or is another key's, is as good as none; what cannot be written is not remembered.

    Args:
        folder: where the files lie; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, parts: Mapping[str, Any]) -> Scored | Failed | None:
        """Return what is remembered, at no cost; None for nothing."""
        try:
            data = json.loads(self._path(parts).read_bytes())
            if data["key"] != parts or data["checksum"] != _checksum(data["result"]):
                return None
            return _from_json(data["result"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, parts: Mapping[str, Any], result: Scored | Failed) -> None:
        """Remember a result."""
        plain = _to_json(result)
        data = {"key": parts, "result": plain, "checksum": _checksum(plain)}
        with suppress(OSError):
            write_atomically(self._path(parts), json.dumps(data).encode())

    def _path(self, parts: Mapping[str, Any]) -> Path:
        key = key_of(parts)
        return self.folder / key[:2] / f"{key}.json"


def check_score_cache(folder: str) -> None:
    """Raise ConfigError unless scores can be remembered in a folder; nothing is written."""
    place = nearest(Path(folder))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found = "is not a folder" if not place.is_dir() else "may not be written to"
        raise ConfigError(f"evaluation.score_cache is '{folder}', but {place} {found}. Name another folder, or null for none.")


def _to_json(result: Scored | Failed) -> dict[str, Any]:
    if isinstance(result, Failed):
        return {"error": result.error}
    return {"tasks": {name: {**vars(task)} for name, task in result.tasks.items()}}


def _from_json(data: Mapping[str, Any]) -> Scored | Failed:
    if "error" in data:
        return Failed(str(data["error"]))
    tasks = {
        name: TaskScore(**own | {"items": tuple(own["items"]), "values": tuple(own["values"])})
        for name, own in data["tasks"].items()
    }
    return Scored(tasks, {"merge": 0.0, "copy": 0.0, "evaluate": 0.0}, {"device": FROM_CACHE, "node": platform.node()})


def _checksum(result: Any) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()
