"""Write files so that they are there whole or not at all, and find out where they lie."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Return where kinray keeps what it can make again: ``$KINRAY_CACHE``, else ``~/.cache/kinray``."""
    configured = os.environ.get("KINRAY_CACHE")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kinray"


def nearest(path: Path) -> Path:
    """Return a path, or the nearest of its parents that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``target`` that takes its place when the block ends, and vanishes when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(target: Path, data: bytes) -> None:
    """Write a whole file."""
    with replacing(target) as temporary:
        temporary.write_bytes(data)
