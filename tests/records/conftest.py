"""An S3 server for all tests of records that want one."""

from collections.abc import Iterator

import pytest

from tests.helpers.stores import ACCESS, SECRET, Bucket, s3_bucket


@pytest.fixture(scope="session")
def _bucket() -> Iterator[Bucket]:
    with s3_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket, with its keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return _bucket
