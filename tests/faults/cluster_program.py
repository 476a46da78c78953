"""A search on a cluster of three nodes that loses two, in a process of its own: Ray reads its settings once in a process.

``python -m tests.faults.cluster_program CONFIG RUN`` runs the search, takes away a node with an evaluator and a shard when
five models have been scored, brings another one, takes away one with an evaluator when the final comparison begins, and exits
as the search does.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.evolve.conftest import Running
from tests.faults.processes import titled
from tests.faults.table import Table
from tests.kinship.cluster_program import small_cluster


def main(config: str, run: str) -> int:
    """Run the search and return its exit code."""
    with small_cluster(cpus=3, at_head=0) as cluster:
        command = [sys.executable, "-m", "kinray.evolve", config, "--set", f"cluster.address={cluster.address}"]
        running = Running(subprocess.Popen(command), Path())
        running.until(lambda: len(Table(Path(run)).rows) >= 5)
        remove_node(cluster, "Evaluator", "Shard")
        cluster.workers.append(cluster.grow())
        running.until(lambda: bool(json.loads((Path(run) / "state.json").read_text())["finished"]))
        remove_node(cluster, "Evaluator")
        return running.process.wait(timeout=300)


def remove_node(cluster: Any, *having: str) -> None:
    """Take away a node that has certain actors."""
    raylets = {node: node.all_processes["raylet"][0].process.pid for node in cluster.workers}
    node = next(node for node, raylet in raylets.items() if all(titled(raylet, f"ray::{name}") for name in having))
    cluster.workers.remove(node)
    cluster.remove_node(node, allow_graceful=False)
    print(f"removed a node with {' and '.join(having)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
