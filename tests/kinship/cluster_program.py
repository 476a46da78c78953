"""What happens on a Ray cluster of three nodes, in a process of its own.

Ray reads its settings once in a process, so a test's own cluster cannot share one with other tests. The program
(``python -m tests.kinship.cluster_program REPORT MODELS``) writes one JSON object; ``test_ray.py`` says what must hold in it.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOG = "KINRAY_TEST_SHARD_LOG"
QUICK_CHECKS = {"health_check_period_ms": 500, "health_check_failure_threshold": 10, "health_check_initial_delay_ms": 0}
BREAK_AT = 9
"""Answered bundles after which something breaks."""


@contextmanager
def small_cluster(cpus: int = 1, at_head: int = 1) -> Iterator[Any]:
    """Give a cluster of three nodes, the head and two ``workers``, that only this machine reaches, and clean up after it."""
    folder = Path(tempfile.mkdtemp(prefix="kr-", dir="/tmp"))
    (folder / "ray").mkdir()
    os.environ.update(
        RAY_TMPDIR=str(folder),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="disabled",
        **{LOG: str(folder / "log")},
    )
    import ray
    from ray.cluster_utils import Cluster

    common = {"num_cpus": cpus, "object_store_memory": 100 << 20, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(True, head_node_args={**common, "num_cpus": at_head, "_system_config": QUICK_CHECKS})
    try:
        cluster.grow = lambda: cluster.add_node(**common)
        cluster.workers = [cluster.grow(), cluster.grow()]
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def measure(models: Any, expected: Any, break_it: Callable[[Any, list[str]], None]) -> dict[str, Any]:
    """Let three shards measure, break something in the middle, and say whether the numbers are those of one process."""
    import numpy as np
    import ray

    from kinray.cluster import shards
    from tests.kinship.ray_shard import SlowShard

    Path(os.environ[LOG]).unlink(missing_ok=True)
    shards.Shard = SlowShard  # type: ignore[misc]
    made = shards.Shards(models, 3)
    node_of = ray.get([actor.__ray_call__.remote(where) for actor in made._actors], timeout=60)
    seen: list[int] = []

    def progress(done: int) -> None:
        seen.append(done)
        if len(seen) == BREAK_AT:
            break_it(made, node_of)

    got = made.statistics(progress)
    equal = [
        np.array_equal(getattr(got, field), getattr(expected, field)) for field in ("count_T", "sums_TM", "gram_TMM", "squares")
    ]
    finished = [name for line in Path(os.environ[LOG]).read_text().splitlines() for name in line.split()[1].split(",")]
    return {
        "same bits": all(equal) and got.tensors == expected.tensors,
        "bytes seen": sum(seen),
        "answers": len(seen),
        "again": len(finished) - len(models.names),
        "nodes": len(set(node_of)),
    }


def where(_: Any) -> str:
    """Say on which node an actor runs."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def main(output: str, folders: list[str]) -> None:
    """Measure with an actor that is killed, then with a node that is removed."""
    with small_cluster() as cluster:
        import ray

        from kinray.engine.gram import gram_pass
        from kinray.kinship.family import open_family

        models = open_family(folders[0], folders[1:]).models
        expected = gram_pass(models, models.names)
        report: dict[str, Any] = {"bytes": models.nbytes(), "tensors": len(models.names)}
        report["killed actor"] = measure(models, expected, lambda shards, _: ray.kill(shards._actors[1], no_restart=False))

        def remove_a_node(_: Any, node_of: list[str]) -> None:
            victim = next(node for node in cluster.workers if node.node_id in node_of)
            cluster.remove_node(victim, allow_graceful=False)

        report["removed node"] = measure(models, expected, remove_a_node)
        report["nodes left"] = sum(node["Alive"] for node in ray.nodes())
        Path(output).write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
