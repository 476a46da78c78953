"""The small search of ``tests/evolve``, and what an unbroken run of it comes to."""

import pytest

from kinray.demo.founders import DemoFiles
from tests.evolve.conftest import Evolve, config, demo, evolve, settings_for
from tests.faults.table import Table

__all__ = ["config", "demo", "evolve"]


@pytest.fixture(scope="session")
def unbroken(demo: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The records of an unbroken run of ``config``."""
    folder = tmp_path_factory.mktemp("unbroken")
    evolve = Evolve(folder)
    done = evolve(evolve.write(settings_for(demo, folder / "run")))
    assert done.returncode == 0, done.stdout + done.stderr
    return Table(folder / "run")
