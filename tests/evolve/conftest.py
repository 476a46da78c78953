"""The demo's models with a few training steps, and a way to run ``kinray evolve`` as a user does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kinray.demo.founders import DemoFiles, build_demo
from kinray.demo.settings import DemoSettings

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """Four tiny models and three tasks; hardly trained, so that they are there in a few seconds."""
    lessons = tuple(replace(lesson, steps=8) for lesson in DemoSettings().lessons)
    settings = DemoSettings(
        lessons=lessons, base_steps=40, hidden_size=64, intermediate_size=128, layers=2, training_items=1000
    )
    return build_demo(tmp_path_factory.mktemp("demo"), lambda message, fraction: None, settings)


def settings_for(demo: DemoFiles, output: Path) -> dict[str, Any]:
    """Configure a small search over the demo's models, as a user would."""
    return {
        "base": str(demo.base),
        "founders": [{"name": name, "model": str(folder)} for name, folder in demo.founders.items()],
        "tasks": [{"name": "demo_numbers", "limit": 40}, {"name": "demo_words", "limit": 40}],
        "task_paths": [str(demo.tasks)],
        "search": {"k": 3, "max_children": 6},
        "merge": {
            "methods": {"task_arithmetic": {"lambda": {"low": 0.5, "high": 1.5}}, "ties": {"density": 0.5}},
            "dtype": "float32",
        },
        "evaluation": {"batch_size": 64},
        "output": str(output),
    }


@pytest.fixture
def config(demo: DemoFiles, tmp_path: Path) -> dict[str, Any]:
    """Configure a search that a test may change."""
    return settings_for(demo, tmp_path / "run")


class Evolve:
    """Runs ``python -m kinray.evolve`` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}

    def write(self, config: dict[str, Any]) -> str:
        """Write a configuration file and return its path."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return str(path)

    def __call__(self, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        """Run to the end."""
        command = [sys.executable, "-m", "kinray.evolve", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=self.folder, env=self.environment, check=False
        )

    @contextmanager
    def running(self, *arguments: str, **process: Any) -> Iterator["Running"]:
        """Run in a process group of its own while the block runs, which may break it; what is left of it is ended."""
        command = [sys.executable, "-m", "kinray.evolve", *arguments]
        place = {"cwd": self.folder, "env": self.environment, "start_new_session": True}
        with (self.folder / "output.txt").open("w") as output:
            running = Running(
                subprocess.Popen(command, **{"stdout": output, "stderr": subprocess.STDOUT, **place, **process}),
                self.folder / "output.txt",
            )
            try:
                yield running
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()

    def until(self, happened: Callable[[], bool], send: signal.Signals, *arguments: str) -> tuple[int, str]:
        """Run, send a signal as soon as something has happened, and return exit code and output."""
        with self.running(*arguments) as running:
            running.until(happened)
            running.process.send_signal(send)
            return running.end()


@dataclass(frozen=True)
class Running:
    """A ``kinray evolve`` that runs, and the file that it prints into."""

    process: "subprocess.Popen[bytes]"
    output: Path

    def until(self, happened: Callable[[], bool], timeout: float = 300, every: float = 0.1) -> None:
        """Wait until something has happened, looking ``every`` so many seconds, or it ended."""
        deadline = time.monotonic() + timeout
        while not happened() and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(every)

    def end(self, timeout: float = 300) -> tuple[int, str]:
        """Wait for its end and return exit code and output."""
        code = self.process.wait(timeout=timeout)
        return code, self.output.read_text()


@pytest.fixture
def evolve(tmp_path: Path) -> Evolve:
    """Run ``kinray evolve`` from a folder of the test's own."""
    return Evolve(tmp_path)
