"""Folders in the system's temporary folder that are this user's alone, and go with the last process that uses them.

.lock    held while files appear and vanish
.users   held, shared, by all processes that use the folder; one that nobody holds was left by a session that ended
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def make_private(folder: Path) -> bool:
    """Make a folder for this user alone, and tell whether it is such: in a temporary folder another may have been first."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        about = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o077


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing what is in a folder."""
    with (folder / ".lock").open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def claimed(folder: Path, how: int) -> IO[bytes] | None:
    """Lock a folder, shared as one of its users (``LOCK_SH``) or for oneself (``LOCK_EX``); None when others do not let."""
    stream = (folder / ".users").open("ab")
    try:
        fcntl.flock(stream, how | fcntl.LOCK_NB)
    except OSError:
        stream.close()
        return None
    return stream


def sweep(root: Path) -> None:
    """Remove the folders in ``root`` that no process uses."""
    for folder in [path for path in root.iterdir() if path.is_dir()]:
        if (claim := claimed(folder, fcntl.LOCK_EX)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            claim.close()
