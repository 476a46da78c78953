"""A search on a cluster of three nodes that loses one, in a process of its own: Ray reads its settings once in a process.

``python -m tests.faults.cluster_program CONFIG RUN`` runs the search, takes away a node with an evaluator and a shard when
five models have been scored, and exits as the search does.
"""

import subprocess
import sys
from pathlib import Path

from tests.evolve.conftest import Running
from tests.faults.processes import titled
from tests.faults.table import Table
from tests.kinship.cluster_program import three_nodes


def main(config: str, run: str) -> int:
    """Run the search and return its exit code."""
    with three_nodes(cpus=3, at_head=0) as cluster:
        command = [sys.executable, "-m", "kinray.evolve", config, "--set", f"cluster.address={cluster.address}"]
        running = Running(subprocess.Popen(command), Path())
        running.until(lambda: len(Table(Path(run)).rows) >= 5)
        working = [
            node
            for node in cluster.workers
            if all(titled(node.all_processes["raylet"][0].process.pid, f"ray::{name}") for name in ("Evaluator", "Shard"))
        ]
        cluster.remove_node(working[0], allow_graceful=False)
        print("removed a node", flush=True)
        return running.process.wait(timeout=300)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
