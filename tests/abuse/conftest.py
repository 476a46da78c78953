"""Models that may be spoilt, and commands that must refuse them."""

import pytest

from tests.abuse.refusing import Refusing
from tests.merge.conftest import kitchen
from tests.merge.kitchen import Kitchen

__all__ = ["kitchen"]


@pytest.fixture
def refusing(kitchen: Kitchen, capfd: pytest.CaptureFixture[str]) -> Refusing:
    kitchen.family("base", "a", "b")
    return Refusing(kitchen, capfd)
