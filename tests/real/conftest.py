"""The real models and tasks beside the checkout, built once and kept in pytest's cache folder."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
NAMES = ("base", "math", "science", "truth")


@pytest.fixture(scope="session")
def real_models(request: pytest.FixtureRequest) -> dict[str, Path]:
    """SmolLM2-135M-Instruct and three fine-tunes of it, by name."""
    build = SHARED / "founders" / "build.py"
    if not build.is_file():
        pytest.skip("the real models' build script ../shared/founders/build.py is not beside this checkout")
    pytest.importorskip("gguf", reason="building the real models needs the package gguf")
    folder = request.config.cache.mkdir("founders")
    models = {name: folder / name for name in NAMES}
    if not all((path / "model.safetensors").is_file() for path in models.values()):
        done = subprocess.run(
            [sys.executable, str(build), str(folder)], capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            pytest.skip(f"the real models cannot be built here: {done.stderr.strip().splitlines()[-1][:200]}")
    return models


@pytest.fixture(scope="session")
def real_tasks() -> Path:
    """The folder of lm-eval tasks that run offline; their data paths start from the project's root."""
    folder = SHARED / "tasks"
    if not folder.is_dir():
        pytest.skip("the tasks in ../shared/tasks are not beside this checkout")
    return folder
