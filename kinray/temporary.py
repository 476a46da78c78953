"""Temporary folders that are a process's own, and that do not stay when it ends, however it does."""

import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARKER = "lock"
"""A file in each folder, locked as long as its process lives."""

_REMAINS = 600.0
"""Seconds after which a folder without marker is not new: some other process wrote into it when it had been removed already."""


@contextmanager
def temporary_folder(place: Path, prefix: str) -> Iterator[Path]:
    """Give a new folder in ``place`` that this user alone can read, and remove it when the block ends.

    A process that is killed cannot, so whoever makes the next one removes those of dead processes first.
    """
    sweep_folders(place, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    try:
        with (folder / "new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "new").rename(folder / _MARKER)  # nobody sees it before it is locked
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_folders(place: Path, prefix: str) -> None:
    """Remove this user's temporary folders whose processes have ended."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):  # its process lives, it has gone meanwhile, or it is another user's
            if not (folder / _MARKER).exists():
                if time.time() > folder.stat().st_mtime + _REMAINS:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            with (folder / _MARKER).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
