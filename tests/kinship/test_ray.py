"""The pass on Ray: any number of shards, an actor that dies and a node that goes away give the same numbers."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kinray.checkpoints.models import Models
from kinray.core.statistics import Statistics
from kinray.engine.gram import gram_pass
from kinray.kinship.family import open_family
from tests.helpers import ARCHITECTURE, make_model
from tests.kinship.ray_shard import LOG, SlowShard

pytestmark = pytest.mark.slow

QUICK_CHECKS = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and three models of 40 tensors; the base's folder first."""
    folder = tmp_path_factory.mktemp("models")
    config = {"architectures": [ARCHITECTURE], "vocab_size": 10}
    made = []
    for seed, name in enumerate(["base", "a", "b", "c"]):
        draw = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{at}.weight": torch.randn(64 + at, 300, generator=draw).bfloat16() for at in range(40)}
        made.append(make_model(folder / name, tensors, config))
    return made


@pytest.fixture(scope="module")
def models(folders: list[Path]) -> Models:
    return open_family(folders[0], folders[1:]).models


@pytest.fixture(scope="module")
def expected(models: Models) -> Statistics:
    return gram_pass(models, models.names)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster of three nodes on this machine, all of which are only used by the tests here."""
    os.environ.update(ENVIRONMENT, **{LOG: str(tmp_path_factory.mktemp("log") / "log")})
    import ray
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="kr-", dir="/tmp")
    common = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    made = Cluster(True, head_node_args={**common, "_system_config": QUICK_CHECKS, "temp_dir": folder})
    made.workers = [made.add_node(**common) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def finished() -> list[str]:
    """Return the names of tensors in the order in which shards finished them, with repetitions."""
    log = Path(os.environ[LOG])
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [name for line in lines for name in line.split()[1].split(",")]


def assert_same(got: Statistics, expected: Statistics) -> None:
    assert got.tensors == expected.tensors
    np.testing.assert_array_equal(got.count_T, expected.count_T)
    np.testing.assert_array_equal(got.sums_TM, expected.sums_TM)
    np.testing.assert_array_equal(got.gram_TMM, expected.gram_TMM)
    np.testing.assert_array_equal(got.squares, expected.squares)


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_shards_gives_the_same_bits(cluster: Any, models: Models, expected: Statistics, count: int) -> None:
    from kinray.cluster.shards import Shards

    seen: list[int] = []

    got = Shards(models, count).statistics(seen.append)

    assert_same(got, expected)
    assert sum(seen) == models.nbytes()
    assert len(seen) >= 10 * count


def test_actor_that_is_killed_does_only_its_unfinished_tensors_again(
    cluster: Any, models: Models, expected: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from kinray.cluster import shards

    monkeypatch.setattr(shards, "Shard", SlowShard)
    finished()
    made = shards.Shards(models, 3)
    seen: list[int] = []

    def kill_one(done: int) -> None:
        seen.append(done)
        if len(seen) == 9:
            ray.kill(made._actors[1], no_restart=False)

    got = made.statistics(kill_one)

    assert_same(got, expected)
    assert sum(seen) == models.nbytes()
    again = len(finished()) - len(models.names)
    assert 0 <= again <= 2, "a bundle that was under way may be done twice, finished ones are not"


def test_command_joins_a_cluster_by_its_address(cluster: Any, folders: list[Path], tmp_path: Path) -> None:
    base, *others = map(str, folders)
    command = [sys.executable, "-m", "kinray.kinship", *others, "--base", base]
    outputs = [tmp_path / "here.json", tmp_path / "there.json"]

    for output, options in zip(outputs, ([], ["--no-cache", "--ray", cluster.address, "--shards", "2"]), strict=True):
        subprocess.run([*command, "--json", str(output), *options], check=True, capture_output=True, text=True)

    here, there = (json.loads(output.read_text()) for output in outputs)
    assert here == there


def test_node_that_is_removed_does_not_change_the_numbers(
    cluster: Any, models: Models, expected: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from kinray.cluster import shards

    monkeypatch.setattr(shards, "Shard", SlowShard)
    finished()
    made = shards.Shards(models, 6)
    places = {actor["node_id"] for actor in _alive(made)}
    assert len(places) == 3, "the shards are spread over the nodes"
    seen: list[int] = []

    def remove_one(done: int) -> None:
        seen.append(done)
        if len(seen) == 9:
            cluster.remove_node(cluster.workers[0], allow_graceful=False)

    got = made.statistics(remove_one)

    assert_same(got, expected)
    assert sum(seen) == models.nbytes()
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    again = len(finished()) - len(models.names)
    assert 0 <= again <= 4, "of the shards on that node only what they had not answered is done twice"


def _alive(made: Any) -> list[dict[str, str]]:
    """Wait until all shards run and say where."""
    import ray

    def node_of(_: Any) -> dict[str, str]:
        return {"node_id": ray.get_runtime_context().get_node_id()}

    deadline = time.monotonic() + 60
    calls = [actor.__ray_call__.remote(node_of) for actor in made._actors]
    return ray.get(calls, timeout=deadline - time.monotonic())
