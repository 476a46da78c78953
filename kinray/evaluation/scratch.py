"""Private folders for children that a backend loads from the disk: in memory where there is room, and never left behind."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kinray.errors import RoomError
from kinray.temporary import sweep_folders, temporary_folder

RAM = Path("/dev/shm")  # noqa: S108 (folders in it are private, see tempfile.mkdtemp)
"""A RAM disk, on Linux."""

_CONTAINER = Path("/sys/fs/cgroup")
_PREFIX = f"kinray-child-{os.geteuid()}-"
_MARGIN = 64 << 20
"""Bytes for tokenizer, config and a little more."""


@contextmanager
def scratch_folder(nbytes: int) -> Iterator[Path]:
    """Give an empty folder of this user's alone for ``nbytes``, and remove it when the block ends, however it does.

    Raises:
        RoomError: when there is too little room.
    """
    sweep()
    with temporary_folder(place_for(nbytes), _PREFIX) as private:
        (private / "child").mkdir()
        yield private / "child"


def place_for(nbytes: int) -> Path:
    """Choose where a folder of ``nbytes`` goes: to the RAM disk if it and the memory have room for it twice, else to the disk.

    Twice, since what is loaded from it takes memory, too.

    Raises:
        RoomError: when neither has room.
    """
    temporary = Path(tempfile.gettempdir())
    in_memory = min(_free(RAM), _memory())
    if in_memory >= 2 * nbytes + _MARGIN:
        return RAM
    if (on_disk := _free(temporary)) >= nbytes + _MARGIN:
        return temporary
    raise RoomError(
        f"Too little room for a child of {nbytes / 1e9:.2f} GB, which evaluation.backend loads from a folder: {temporary} has "
        f"{on_disk / 1e9:.2f} GB free, and {RAM} {in_memory / 1e9:.2f} GB, of which twice the child is needed. Make room, set "
        "TMPDIR to a folder with room, or use evaluation.backend: resident."
    )


def sweep() -> None:
    """Remove this user's folders whose processes have ended."""
    for place in (RAM, Path(tempfile.gettempdir())):
        sweep_folders(place, _PREFIX)


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free if os.access(place, os.W_OK) else 0


def _memory() -> int:
    """Return the bytes of memory that are left to this process: the machine's, or its container's."""
    left = 0
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        left = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # no limit is the word max
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        left = min(left, limit - used)
    return left
