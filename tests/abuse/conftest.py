"""Models that may be spoilt, and commands that must refuse them."""

from pathlib import Path

import pytest

from kinray.demo import DemoFiles, build_demo
from tests.abuse.refusing import Refusing
from tests.evaluation.conftest import SETTINGS
from tests.merge.conftest import kitchen
from tests.merge.kitchen import Kitchen

__all__ = ["kitchen"]


@pytest.fixture
def refusing(kitchen: Kitchen, capfd: pytest.CaptureFixture[str]) -> Refusing:
    """Run commands on tiny models of no architecture that transformers knows."""
    kitchen.family("base", "a", "b")
    return Refusing(kitchen, capfd)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """Make models that transformers builds, and tasks, in a second."""
    return build_demo(tmp_path_factory.mktemp("demo"), settings=SETTINGS)


@pytest.fixture
def search(refusing: Refusing, demo: DemoFiles) -> dict[str, object]:
    """Copy the demo's models and tasks to where they may be spoilt, and say how to search with them."""
    import shutil

    for name, folder in {"base": demo.base, **demo.founders}.items():
        shutil.rmtree(refusing.folder / name, ignore_errors=True)
        shutil.copytree(folder, refusing.folder / name)
    shutil.copytree(demo.tasks, refusing.folder / "tasks")
    return {
        "base": "base",
        "founders": [str(Path(name)) for name in demo.founders],
        "tasks": [{"name": "demo_numbers", "limit": 10}],
        "task_paths": ["tasks"],
    }
