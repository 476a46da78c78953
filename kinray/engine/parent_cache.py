"""Weights of children that are parents, kept on their node so that they need not be merged anew for each of their own children.

A run has one folder on each node, in the system's temporary folder. There each child is one safetensors file in float32, since
a child enters its own children unrounded. Everything in it can be rebuilt: when in doubt, nothing is kept.

DIGEST.safetensors   a child, complete
.DIGEST.tmp          a child that is being written; its writer has it locked, and whoever finds one that is not removes it
.lock, .users        see ``kinray.engine.private_folder``
"""

import fcntl
import json
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kinray.checkpoints.header import DTYPE_BYTES, TensorInfo, read_header
from kinray.checkpoints.writer import data_of, header_bytes
from kinray.engine.private_folder import claimed, locked, make_private, sweep
from kinray.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_MARK = "kinray parent"
"""Key of the digest among a file's metadata."""

_FREE_SHARE = 4
"""The budget is this part of what is free, unless it is given."""

_HELD = 60.0
"""Seconds for which an evicted child stays mapped after its last use, longer than a merge takes from one tensor to the next."""

Put = Callable[[str, "torch.Tensor"], None]
"""Writes one tensor of a child: float32, from any device, each once and in any order."""


class ParentCache:
    """float32 weights of children, on this node, within a byte budget; the least recently used ones make room.

    Contract: safe for several processes, in each of them for one thread. Nothing is raised for what is wrong with the disk:
    what cannot be kept is not kept. Once ``has`` said yes, ``load`` gives this process all tensors of that child, even if
    another process evicts it, until it has not been asked for during a minute. Tensors are mapped; nobody writes into them.

    Args:
        folder: of the run. It is made if its parent is there, and used only if it is this user's and nobody else may enter it.
        budget: bytes of all files together, those being written included; with 0 nothing is kept.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self._usable = budget > 0 and make_private(folder)
        self._mapped: dict[str, _Mapped] = {}
        self._claim: IO[bytes] | None = None

    @classmethod
    def of_run(cls, run: str, gigabytes: float | str = "auto") -> "ParentCache":
        """Open the cache of a run in the temporary folder, and remove what sessions that ended left there.

        Args:
            run: names the run, in all of its processes on all nodes alike; letters, digits, ``.``, ``_`` and ``-``.
            gigabytes: the budget; ``auto``: a quarter of what is free.
        """
        assert re.fullmatch(r"\w[\w.-]*", run), run
        root = Path(tempfile.gettempdir()) / f"kinray-{os.geteuid()}"
        folder = root / run
        with suppress(OSError):
            if gigabytes != 0 and make_private(root):
                with locked(root):
                    sweep(root)
                    make_private(folder)
                    claim = claimed(folder, fcntl.LOCK_SH)
                cache = cls(folder, _bytes_for(gigabytes, folder))
                cache._claim = claim
                return cache
        return cls(folder, 0)

    def has(self, digest: str) -> bool:
        """Tell whether a child is kept; if so, it is as good as loaded."""
        self._let_go()
        return self._map(digest) is not None

    def load(self, digest: str, name: str) -> "torch.Tensor | None":
        """Return a tensor of a child, float32 and mapped; None when the child is not kept."""
        mapped = self._map(digest)
        return None if mapped is None or name not in mapped.infos else mapped.tensor(name)

    @contextmanager
    def writing(self, digest: str, shapes: Mapping[str, Sequence[int]]) -> Iterator[Put | None]:
        """Give a function that writes the tensors of a child; it is kept if all of them came by the end of the block.

        None is given when the child is kept already, another process is writing it, or there is no room for it.

        Args:
            digest: of the child.
            shapes: of all of its tensors.
        """
        draft = self._begin(digest, shapes)
        if draft is None:
            yield None
            return
        try:
            yield draft.put
            if draft.whole:
                with suppress(OSError), locked(self.folder):
                    draft.publish(self._path(digest))
        finally:
            draft.close()

    def clear(self) -> None:
        """Remove the folder, at the end of the run; what processes have mapped stays readable to them."""
        self._mapped.clear()
        if self._usable:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._claim is not None:
            self._claim.close()
        self._usable, self._claim = False, None

    # -- reading

    def _path(self, digest: str) -> Path:
        assert re.fullmatch(r"[0-9a-f]+", digest), digest
        return self.folder / f"{digest}.safetensors"

    def _map(self, digest: str) -> "_Mapped | None":
        """Map a child if it is kept, and note that it was used."""
        path = self._path(digest)
        held = self._mapped.get(digest)
        if self._usable and (inode := _touched(path)) is not None and (held is None or held.inode != inode):
            held = _opened(path, digest) or held
        if held is not None:
            held.used = time.monotonic()
            self._mapped[digest] = held
        return held

    def _let_go(self) -> None:
        """Forget evicted children that are no longer used, so that the disk gets its room back."""
        for digest, held in list(self._mapped.items()):
            if time.monotonic() - held.used > _HELD and not self._path(digest).exists():
                del self._mapped[digest]

    # -- writing

    def _begin(self, digest: str, shapes: Mapping[str, Sequence[int]]) -> "_Draft | None":
        path, draft = self._path(digest), self.folder / f".{digest}.tmp"
        header = header_bytes({name: ("F32", shape) for name, shape in shapes.items()}, {_MARK: digest})
        size = len(header) + sum(map(_bytes_of, shapes.values()))
        if not self._usable or size > self.budget:
            return None
        self._let_go()
        with suppress(OSError), locked(self.folder):
            _remove_abandoned(self.folder)
            if not draft.exists() and not (path.exists() and self._map(digest)) and self._make_room(size):
                return _Draft(draft, header, shapes, size)
        return None

    def _make_room(self, size: int) -> bool:
        """Evict what was used longest ago until ``size`` fits; nothing if it would not fit anyway."""
        kept = sorted(((path.stat(), path) for path in self.folder.glob("*.safetensors")), key=lambda one: one[0].st_mtime_ns)
        room = self.budget - size - sum(path.stat().st_size for path in self.folder.glob(".*.tmp"))
        if room < 0:
            return False
        excess = sum(about.st_size for about, _ in kept) - room
        for about, path in kept:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            excess -= about.st_size
        return True


@dataclass
class _Mapped:
    """A file that this process has mapped."""

    data: mmap.mmap
    infos: Mapping[str, TensorInfo]
    inode: int
    used: float = 0.0

    def tensor(self, name: str) -> "torch.Tensor":
        import torch

        info = self.infos[name]
        if not info.numel:
            return torch.empty(info.shape)
        return torch.frombuffer(self.data, dtype=torch.float32, count=info.numel, offset=info.begin).reshape(info.shape)


class _Draft:
    """A file that is being written. It has its full size from the start, so that it counts in full against the budget."""

    def __init__(self, path: Path, header: bytes, shapes: Mapping[str, Sequence[int]], size: int) -> None:
        self._missing = dict(_places(shapes, len(header)))
        self._broken = False
        self._path: Path | None = path
        self._stream = path.open("xb", buffering=0)
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._stream.truncate(size)
            _write_at(self._stream, memoryview(header), 0)
        except OSError:
            self.close()
            raise

    @property
    def whole(self) -> bool:
        """Whether all tensors were written."""
        return not self._missing and not self._broken

    def put(self, name: str, tensor: "torch.Tensor") -> None:
        """Write one tensor; once a write failed, nothing more is written."""
        import torch

        begin, shape = self._missing.pop(name)
        assert tensor.dtype == torch.float32 and tuple(tensor.shape) == shape, (name, tensor.dtype, tensor.shape, shape)
        if self._broken:
            return
        try:
            _write_at(self._stream, data_of(tensor), begin)
        except OSError:
            self._broken = True
            self.close()

    def publish(self, path: Path) -> None:
        """Let it be found under its name."""
        assert self._path is not None
        self._path.rename(path)
        self._path = None
        _touched(path)

    def close(self) -> None:
        """Remove the file unless it was published."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
            self._path = None
        self._stream.close()


def _places(shapes: Mapping[str, Sequence[int]], begin: int) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    for name, shape in shapes.items():
        yield name, (begin, tuple(shape))
        begin += _bytes_of(shape)


def _bytes_of(shape: Sequence[int]) -> int:
    return prod(shape) * DTYPE_BYTES["F32"]


def _write_at(stream: IO[bytes], data: memoryview, begin: int) -> None:
    while data:
        written = os.pwrite(stream.fileno(), data, begin)
        data, begin = data[written:], begin + written


def _opened(path: Path, digest: str) -> _Mapped | None:
    """Map a file; one that is not whole, or not a child's of this digest, is removed."""
    try:
        with path.open("rb") as stream:
            inode = os.fstat(stream.fileno()).st_ino
            infos = {info.name: info for info in read_header(path)}
            if path.stat().st_ino != inode:  # evicted and written anew in between
                return None
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        return None
    except (CheckpointError, OSError):
        infos, data = {}, None
    if data is not None and _digest_in(data) == digest and all(info.dtype == "F32" for info in infos.values()):
        return _Mapped(data, infos, inode)
    with suppress(OSError):
        path.unlink()
    return None


def _digest_in(data: mmap.mmap) -> Any:
    """Read whose weights a file says it holds."""
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__")
    return metadata.get(_MARK) if isinstance(metadata, dict) else None


def _touched(path: Path) -> int | None:
    """Note that a file was used, and return its inode; None when it is not there."""
    now = time.time_ns()  # the kernel's own clock for files is too coarse to tell what was used last
    try:
        os.utime(path, ns=(now, now))
        return path.stat().st_ino
    except OSError:
        return None


def _remove_abandoned(folder: Path) -> None:
    """Remove what processes were writing when they died."""
    for path in folder.glob(".*.tmp"):
        with suppress(BlockingIOError, FileNotFoundError), path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _bytes_for(gigabytes: float | str, folder: Path) -> int:
    if gigabytes != "auto":
        return int(float(gigabytes) * 1e9)
    own = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return (shutil.disk_usage(folder).free + own) // _FREE_SHARE
