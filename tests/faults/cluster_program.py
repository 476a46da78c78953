"""A search on a cluster of three working nodes that loses two. A process of its own, since Ray reads its settings once in one.

``python -m tests.faults.cluster_program CONFIG RUN`` runs the search, takes away a node with an evaluator and a shard when
five models have been scored, one with an evaluator when the final comparison begins, and exits as the search does.
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
    with small_cluster(workers=3, cpus=3, at_head=0) as cluster:
        command = [sys.executable, "-m", "kinray.evolve", config, "--set", f"cluster.address={cluster.address}"]
        running = Running(subprocess.Popen(command), Path())
        running.until(lambda: len(Table(Path(run)).rows) >= 5)
        remove_node(cluster, "Evaluator", "Shard")
        running.until(lambda: bool(json.loads((Path(run) / "state.json").read_text())["finished"]))
        remove_node(cluster, "Evaluator")
        return running.process.wait(timeout=300)


def remove_node(cluster: Any, *having: str) -> None:
    """Take away a node that has certain actors."""
    node = next(
        node
        for node in cluster.workers
        if all(titled(node.all_processes["raylet"][0].process.pid, f"ray::{name}") for name in having)
    )
    cluster.remove_node(node, allow_graceful=False)
    print(f"removed a node with {' and '.join(having)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
