"""Benchmarks run as their README says; what they time is not looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

from kinray.demo.founders import DemoFiles
from tests.evolve.conftest import demo

__all__ = ["demo"]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
def test_scoring_is_compared_with_stock_lm_eval(demo: DemoFiles) -> None:
    models = [str(demo.base), str(demo.founders["numbers"])]
    command = [sys.executable, str(BENCHMARKS / "evaluate.py"), *models, "--task-path", str(demo.tasks)]
    options = ["--tasks", "demo_numbers", "demo_numbers:2:first_n", "--limit", "8", "--rounds", "1", "--dtype", "float32"]

    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("demo_")]
    assert [row[0] for row in rows] == ["demo_numbers", "demo_numbers:2:first_n"]
    assert all(float(row[-2]) < 2e-4 and row[-1] == "yes" for row in rows), done.stdout
