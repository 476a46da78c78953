"""A folder in a store, such as a bucket, that pyarrow reaches by a URI."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from kinray.errors import RunError, without_secrets

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WHOLE = ("s3", "gcs", "abfs")
"""Kinds of stores in which an object is there when all of it is, and takes the place of an older one at once."""

_BLOCK = 8 << 20
_PATIENCE = {"s3": {"allow_delayed_open": "true"}, "gs": {"retry_limit_seconds": "60"}, "gcs": {"retry_limit_seconds": "60"}}
"""What is asked of a store unless its URI says otherwise: S3 one request for a small file instead of three, Google's to give
up after a minute instead of fifteen."""


def is_uri(place: str) -> bool:
    """Tell whether a run folder is named by a URI rather than a path."""
    return _SCHEME.match(place) is not None


def within(place: str, name: str) -> str:
    """Name what lies in a run folder, which is a path or a URI."""
    if not is_uri(place):
        return str(Path(place) / name)
    folder, mark, query = place.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def name_of(place: str) -> str:
    """Return the last part of the path or URI of a run folder."""
    return Path(urlsplit(place).path if is_uri(place) else place).name


class Store:
    """A folder in a store. A file that is written is there whole or not at all, and replaces an older one at once.

    Credentials come from the environment, as pyarrow takes them. Nothing is held in memory but a block of a file.

    Args:
        uri: of the folder; no password and no key may stand in it.

    Raises:
        RunError: by every method when the store cannot be used, with its own words and what to do.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        scheme, query = uri.partition("://")[0].lower(), dict(parse_qsl(uri.partition("?")[2]))
        if without_secrets(uri) != uri:  # command lines and Ray's list of jobs would show it to others
            raise RunError(
                f"{uri} holds a password or a key. Take it out, and give it by the environment, such as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or by the credentials that the cloud gives the machine."
            )
        more = [f"{key}={value}" for key, value in _PATIENCE.get(scheme, {}).items() if key not in query]
        if scheme in ("hdfs", "viewfs"):
            raise RunError(f"{uri}: HDFS replaces no file in one step. Mount it, and name the path where it is mounted.")
        with self._reaching("open"):
            full = uri if not more else f"{uri}{'&' if '?' in uri else '?'}{'&'.join(more)}"
            self._files, root = FileSystem.from_uri(full)
        self._root = root.rstrip("/")
        if not self._root:
            raise RunError(f"{uri} names no folder in a store. Name one in it, such as {within(uri, 'runs/first')}.")

    def names(self) -> list[str]:
        """List what lies in the folder, in order; nothing where there is no such folder."""
        with self._reaching("list"):
            found = self._files.get_file_info(FileSelector(self._root, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def read(self, name: str, limit: int) -> bytes | None:
        """Return at most ``limit`` bytes of a file, None where there is none."""
        with self._reaching("read", name):
            if self._files.get_file_info(self._path(name)).type != FileType.File:
                return None
            with self._files.open_input_stream(self._path(name), compression=None) as stream:
                data: bytes = stream.read(limit)
                return data

    def write(self, name: str, data: bytes) -> None:
        """Write a small file."""
        with NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self.upload(Path(file.name), name)

    def upload(self, file: Path, name: str) -> None:
        """Copy a file of this machine into the folder."""
        with self._reaching("write", name), self._replacing(name) as path, ThreadPoolExecutor(1) as worker:
            worker.submit(self._copy, file, path).result()  # in a thread: no signal ends it halfway

    def _copy(self, file: Path, path: str) -> None:
        """Copy block by block; what ends it halfway leaves half an object, as a stream cannot be given up."""
        with file.open("rb") as source:
            block = source.read(_BLOCK)
            with self._files.open_output_stream(path, compression=None) as target:
                while block:
                    target.write(block)
                    block = source.read(_BLOCK)

    def download(self, name: str, target: Path) -> None:
        """Copy a file, or a folder with all that is in it, to this machine."""
        with self._reaching("read", name):
            if self._files.get_file_info(self._path(name)).type == FileType.Directory:
                target.mkdir()
            copy_files(self._path(name), str(target), source_filesystem=self._files, destination_filesystem=LocalFileSystem())

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        with self._reaching("remove", name):
            kind = self._files.get_file_info(self._path(name)).type
            if kind == FileType.Directory:
                self._files.delete_dir(self._path(name))
            elif kind == FileType.File:
                self._files.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _replacing(self, name: str) -> Iterator[str]:
        """Give the path to write a file to; it takes its place when the block ends."""
        path = self._path(name)
        if self._files.type_name in _WHOLE:
            yield path
            return
        folder, _, last = path.rpartition("/")
        temporary = f"{folder}/.{last}.tmp"
        self._files.create_dir(folder, recursive=True)
        yield temporary
        self._files.move(temporary, path)

    @contextmanager
    def _reaching(self, do: str, name: str = "") -> Iterator[None]:
        """Say what could not be done, where and why."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            place = within(self.uri, name) if name else self.uri
            reason = (str(error).splitlines() or [type(error).__name__])[0][:400].rstrip(".")
            raise RunError(
                f"Cannot {do} {place}: {reason}. See that the store is there, and that the environment has the right to use it."
            ) from error
