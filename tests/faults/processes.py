"""Finding Ray's processes below a driver."""

import os
from collections.abc import Iterator
from pathlib import Path


def parents() -> dict[int, int]:
    """Return the parent of every process that runs."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return found


def below(driver: int) -> Iterator[int]:
    """Yield the processes that a process has started, and theirs."""
    parent_of = parents()
    for process in parent_of:
        above = process
        while above in parent_of and above != driver:
            above = parent_of[above]
        if above == driver and process != driver:
            yield process


def titled(driver: int, title: str) -> int | None:
    """Return a process below a driver whose title begins so; Ray names a worker by its actor's class, as in ``ray::Shard``."""
    for process in below(driver):
        try:
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(title.encode()):
                return process
        except OSError:
            continue
    return None


def alive(process: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def in_group(group: int) -> list[int]:
    """Return the processes of a group that run."""
    return [process for process in parents() if alive(process) and os.getpgid(process) == group]
