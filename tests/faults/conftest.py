"""A search of the demo's size whose task can be told to break, and what an unbroken run of it comes to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kinray.demo.founders import DemoFiles
from tests.evolve.conftest import Evolve, demo, evolve, settings_for
from tests.faults.table import Table

__all__ = ["demo", "evolve"]

ALWAYS = 10**6


class Tasks:
    """The demo's tasks, judged by ``judge.py``."""

    def __init__(self, demo: DemoFiles, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        shutil.copy(Path(__file__).parent / "judge.py", folder)
        for file in demo.tasks.glob("*.yaml"):
            (folder / file.name).write_text(file.read_text() + "process_results: !function judge.judge\n")

    def seen(self) -> list[str]:
        """Say which models answered the probe, in their order."""
        return (self.folder / "seen").read_text().splitlines()

    def plan(self, faults: dict[str, tuple[str, int]]) -> None:
        """Let models break: ``die`` kills the evaluator, everything else is raised; so many times."""
        (self.folder / "plan.json").write_text(json.dumps(faults))


@pytest.fixture
def tasks(demo: DemoFiles, tmp_path: Path) -> Tasks:
    """Tasks that a test may plan faults for."""
    return Tasks(demo, tmp_path / "tasks")


def search_of(demo: DemoFiles, tasks: Tasks, output: Path) -> dict[str, Any]:
    settings = settings_for(demo, output)
    settings["search"] |= {"max_children": 16, "children_per_mating": 2}
    return settings | {"task_paths": [str(tasks.folder)]}


@pytest.fixture
def config(demo: DemoFiles, tasks: Tasks, tmp_path: Path) -> dict[str, Any]:
    """Configure a search that a test may change."""
    return search_of(demo, tasks, tmp_path / "run")


class Unbroken(Table):
    """The records of an unbroken run of ``config``, and how ``tasks`` tells its models, by their names."""

    def __init__(self, run: Path, tasks: Tasks) -> None:
        super().__init__(run)
        self.models = dict(zip([row["name"] for row in self.rows], tasks.seen(), strict=False))


@pytest.fixture(scope="session")
def unbroken(demo: DemoFiles, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """An unbroken run with one evaluator, so that models are scored in the order of their numbers."""
    folder = tmp_path_factory.mktemp("unbroken")
    tasks = Tasks(demo, folder / "tasks")
    evolve = Evolve(folder)
    done = evolve(evolve.write(search_of(demo, tasks, folder / "run") | {"cluster": {"evaluators": 1}}))
    assert done.returncode == 0, done.stdout + done.stderr
    return Unbroken(folder / "run", tasks)
