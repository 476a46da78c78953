"""Measure what passes between the driver and the nodes of a cluster, and what the driver does and holds, for each child.

    python benchmarks/scale_nodes.py [--nodes 1 2 4] [--megabytes 8 64] [--children 8]

Nodes are raylets on this machine, so times say little; bytes and memory do not depend on that. Each case runs in a process of
its own: shards measure a base and three founders, then children of ties, which algebra does not cover, so that every shard
merges its part of each. Counted is what is pickled into calls and results; the statistics, put once into the object store,
count once for each node.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TENSORS = 32


def make(folder: Path, megabytes: int) -> list[str]:
    """Make a base and three founders."""
    folders = []
    for seed, name in enumerate(("base", "a", "b", "c")):
        draw = torch.Generator().manual_seed(seed)
        rows = megabytes * (1 << 20) // (2 * TENSORS * 512)
        tensors = {f"layers.{at}.weight": torch.randn(rows, 512, generator=draw).bfloat16() for at in range(TENSORS)}
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 10}))
        folders.append(str(folder / name))
    return folders


def anonymous_mb() -> float:
    """Return the memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def measure(nodes: int, children: int, models_in: list[str], folder: Path) -> dict[str, Any]:
    """Run one case in this process."""
    os.environ.update(
        RAY_TMPDIR=str(folder), RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="disabled"
    )
    import ray
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    from kinray.cluster import shards as module
    from kinray.core.recipe import Merge
    from kinray.kinship.family import open_family

    counted = {"to": 0, "from": 0}

    class Counted:
        """An actor's handle that counts what goes into its calls."""

        def __init__(self, actor: Any) -> None:
            self._actor = actor

        def __getattr__(self, name: str) -> Any:
            return self if name == "remote" else Method(getattr(self._actor, name))

    class Method:
        def __init__(self, method: Any) -> None:
            self._method = method

        def remote(self, *arguments: Any) -> Any:
            counted["to"] += len(cloudpickle.dumps([one for one in arguments if not isinstance(one, ray.ObjectRef)]))
            return self._method.remote(*arguments)

    get = module._get

    def counted_get(ref: Any) -> Any:
        result = get(ref)
        counted["from"] += len(cloudpickle.dumps(result))
        return result

    module._get = counted_get
    common = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(True, head_node_args=common)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**common)
        ray.init(address=cluster.address, log_to_driver=False)
        base, *founders = models_in
        models = open_family(base, founders).models
        before = anonymous_mb()
        shards = module.Shards(models, nodes)
        shards._actors = [Counted(actor) for actor in shards._actors]
        statistics = shards.statistics()
        first = dict(counted)
        a, b = (spec.founder for spec in models.specs[1:3])
        counted.update({"to": 0, "from": 0})
        begin = time.process_time()
        for number in range(children):
            child = Merge("ties", (a, b), {"density": (number + 1) / (children + 1)}, models.specs[0].founder)
            shards.finish_products(shards.start_products(child), models.names)
        spent = time.process_time() - begin
        size = len(cloudpickle.dumps(statistics))
        return {
            "nodes": nodes,
            "founders_mb": models.nbytes() / 1e6,
            "pass_kb_a_node": (sum(first.values()) / nodes + size) / 1e3,
            "child_kb_a_node": sum(counted.values()) / children / nodes / 1e3,
            "child_kb": sum(counted.values()) / children / 1e3,
            "driver_ms_a_child": 1000 * spent / children,
            "driver_mb": anonymous_mb() - before,
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[8, 64], help="of each model")
    parser.add_argument("--children", type=int, default=8)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        folders = sorted(str(one) for one in arguments.case.iterdir() if (one / "config.json").exists())
        base = str(arguments.case / "base")
        models = [base, *(one for one in folders if one != base)]
        print(json.dumps(measure(arguments.nodes[0], arguments.children, models, arguments.case)))
        return
    for megabytes in arguments.megabytes:
        for nodes in arguments.nodes:
            folder = Path(tempfile.mkdtemp(prefix="ks-", dir="/tmp"))  # paths of sockets must be short
            try:
                make(folder, megabytes)
                case = ["--nodes", str(nodes), "--children", str(arguments.children), "--case", str(folder)]
                done = subprocess.run([sys.executable, __file__, *case], capture_output=True, text=True, check=True)  # noqa: S603
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            row = json.loads(done.stdout.strip().splitlines()[-1])
            print(" | ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
