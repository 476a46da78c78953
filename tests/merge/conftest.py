"""A kitchen for each test, in its own folder."""

from pathlib import Path

import pytest

from tests.merge.kitchen import Kitchen


@pytest.fixture
def kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kitchen:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Kitchen(tmp_path)
