"""Who may use a run folder: whether a run may begin in it, and the claim of the process that has it open."""

import errno
import fcntl
import os
import platform
import re
from datetime import datetime
from pathlib import Path
from typing import IO

from kinray.errors import RunError
from kinray.files import nearest

_LEFT = re.compile(r"\.lock|\.config\.yaml\..*\.tmp")
"""What a process that was killed while it began a run leaves behind."""


def check_vacant(path: Path) -> None:
    """Raise RunError unless a run may be started in ``path``: it is missing or empty, and can be written."""
    try:
        _check_vacant(path)
    except OSError as error:
        raise RunError(
            f"Cannot use the run folder {str(path)[:200]}: {error.strerror}. Choose another with --output."
        ) from error


def _check_vacant(path: Path) -> None:
    if (path / "config.yaml").exists():
        raise RunError(f"{path} already holds a run. Continue it with --resume {path}, or choose another with --output.")
    if path.exists() and (not path.is_dir() or not all(_LEFT.fullmatch(file.name) for file in path.iterdir())):
        raise RunError(f"{path} exists and is not an empty folder. Choose another with --output.")
    place = nearest(path)
    if not place.is_dir():
        raise RunError(f"Cannot write the run folder {path}: {place} is a file. Choose another with --output.")
    if not os.access(place, os.W_OK):
        why = f"no permission in {place}, or its disk is read-only"
        raise RunError(f"Cannot write the run folder {path}: {why}. Choose another with --output.")


def holder() -> str:
    """Say who this process is."""
    return f"process {os.getpid()} on {platform.node()}, which began {datetime.now():%Y-%m-%d %H:%M}"


def claim(path: Path, called: str = "") -> IO[str]:
    """Claim the folder for this process; the claim ends with the process, however that ends.

    On a file system without locks (some parallel ones) there is no claim, and whoever starts two runs in one folder is not
    stopped.

    Args:
        path: the folder.
        called: what a person knows it as, if not by its path.
    """
    try:
        stream = (path / ".lock").open("a+")
    except OSError as error:
        raise RunError(f"Cannot write the run folder {path}: {error.strerror}.") from error
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.seek(0)
        other = stream.read().strip() or "another process"
        stream.close()
        raise RunError(f"{called or path} is in use by {other}. Wait for it, or choose another folder.") from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise RunError(f"Cannot claim the run folder {path}: {error.strerror}.") from error
    stream.truncate(0)
    stream.write(f"{holder()}\n")
    stream.flush()
    return stream
