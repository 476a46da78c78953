"""Stores for tests: a real S3 server on this machine, and one that breaks when it is told to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

ACCESS, SECRET = "an-access-key-of-kinray", "a-secret-of-kinray"


class Bucket:
    """A bucket of an S3 server, seen with Amazon's own client."""

    def __init__(self, port: int) -> None:
        import boto3

        address = f"http://127.0.0.1:{port}"
        keys = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=address, **keys)
        self._client.create_bucket(Bucket="bucket")
        self.query = f"scheme=http&endpoint_override=127.0.0.1:{port}"

    def uri(self, path: str) -> str:
        return f"s3://bucket/{path}?{self.query}"

    def names(self, prefix: str) -> list[str]:
        """List all objects below a folder, by their names in it."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        found = [one["Key"].removeprefix(f"{prefix}/") for page in pages for one in page.get("Contents", [])]
        return [name for name in found if name and not name.endswith("/")]

    def copy(self, prefix: str, folder: Path) -> Path:
        """Copy all objects below a folder to this machine."""
        for name in self.names(prefix):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._client.download_file("bucket", f"{prefix}/{name}", str(folder / name))
        return folder


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """Serve a bucket while the block runs; whoever uses it needs ``ACCESS`` and ``SECRET`` in the environment."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield Bucket(server.get_host_and_port()[1])
    finally:
        server.stop()


class Breaking(LocalFileSystem):
    """A store that keeps its files in a folder, and can be told when to break."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.writes_left = 10**9
        self.written: list[str] = []

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if "w" in mode:
            self.writes_left -= 1
            if self.writes_left < 0:
                raise TimeoutError(110, "Connection timed out")
            self.written.append(path)
        return super()._open(path, mode, **more)


def breaking_store(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Breaking:
    """Let every URI lead to a folder through a store that can be broken."""
    store = Breaking()
    reached = (PyFileSystem(FSSpecHandler(store)), str(folder))
    monkeypatch.setattr("kinray.records.store.FileSystem", SimpleNamespace(from_uri=lambda uri: reached))
    return store
