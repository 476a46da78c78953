"""What happens on a Ray cluster whose nodes differ or join late, in a process of its own, as ``tests.kinship.cluster_program``.

The program (``python -m tests.cluster.nodes_program REPORT FOLDER``) writes one JSON object; ``test_nodes.py`` says what must
hold in it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinray.config import ClusterConfig, EvaluationConfig, parse_config
from kinray.errors import RunError
from tests.kinship.cluster_program import small_cluster

COMMON: dict[str, Any] = {
    "num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False, "node_ip_address": "127.0.0.1",
}  # fmt: skip
CONFIG = parse_config({"base": "b", "founders": ["x", "y"], "tasks": ["t"], "cluster": {"address": "auto"}})


def refusal(action: Callable[[], Any]) -> str:
    """Return the message that an action is refused with."""
    try:
        action()
    except RunError as error:
        return str(error)
    return ""


def differing_nodes(cluster: Any, folder: Path, report: dict[str, Any]) -> None:
    """Survey nodes that are alike, then with one that has another version of a package."""
    from kinray.checkpoints.models import ModelSpec
    from kinray.cluster.nodes import living, survey
    from tests.helpers import founder

    (folder / "math").mkdir()
    (folder / "math" / "model.safetensors").write_bytes(b"weights" * 100_000)
    specs = [ModelSpec(founder("math"), folder / "math")]
    alike = survey(living(), specs, [str(folder)])
    report["alike"] = [len(alike), min(node.free for node in alike) > 0]

    (folder / "site" / "safetensors-9.9.dist-info").mkdir(parents=True)
    (folder / "site" / "safetensors-9.9.dist-info" / "METADATA").write_text("Name: safetensors\nVersion: 9.9\n")
    path = f"{folder / 'site'}:{os.environ.get('PYTHONPATH', '')}"
    other = cluster.add_node(**COMMON, env_vars={"PYTHONPATH": path})
    report["other version"] = refusal(lambda: survey(living(), specs, []))
    cluster.remove_node(other, allow_graceful=True)


class Instant:
    """Stands in for an evaluator; fails where it is told to."""

    def __init__(self, *_: Any) -> None:
        pass

    def warm(self) -> bool:
        if os.environ.get("BROKEN_NODE"):
            raise FileNotFoundError("no models here")
        return True

    def score(self, *_: Any) -> str:
        return "scored"

    def where(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def gpus(self) -> int:
        import ray

        return len(ray.get_gpu_ids())


def losing(cluster: Any, report: dict[str, Any]) -> None:
    """Lose a node whose evaluator finds no other place, score with the other one, and get a node again."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from kinray.cluster import asking
    from kinray.cluster.evaluators import Evaluators
    from kinray.cluster.nodes import living
    from kinray.cluster.session import Session
    from tests.helpers import founder

    asking._PATIENCE = 5.0
    nodes = {node.id: node for node in living()}
    lost, other = (nodes[worker.node_id] for worker in cluster.workers)
    (head,) = (node for node in nodes.values() if node not in (lost, other))
    said: list[str] = []
    evaluators = Evaluators([], CONFIG, Session("cpu", 2, 1, 1, (lost, other)), [other, lost], said.append)
    trials = (
        ray.remote(num_cpus=1)(Instant)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(head.id, soft=False))
        .remote()
    )
    ray.get([trials.warm.remote(), *(actor.warm.remote() for actor in evaluators._actors)])
    cluster.remove_node(cluster.workers.pop(0), allow_graceful=False)
    while lost.id in {node.id for node in living()}:
        time.sleep(0.2)

    jobs: list[Any] = [(founder(name), "search") for name in ("a", "b", "c")]
    report["scored elsewhere"] = [evaluators.score_all(jobs), evaluators.ready()]
    cluster.workers.append(cluster.grow())
    while len(evaluators.ready()) < 2:
        evaluators.joined()
        time.sleep(0.2)
    report["after a loss"] = [said, sorted(evaluators.ready()), evaluators.score_all(jobs)]
    ray.kill(trials)


def growing(cluster: Any, report: dict[str, Any]) -> None:
    """Begin with the evaluators that three nodes have room for, and let nodes join: one that can score, one that cannot."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from kinray.cluster.evaluators import Evaluators
    from kinray.cluster.nodes import living
    from kinray.cluster.session import Session

    said: list[str] = []
    session = Session("cpu", 2, 1, 1, tuple(living()), grows=True)
    evaluators = Evaluators([], CONFIG, session, living()[:2], said.append)
    # The CPU that a search leaves for trials and shards; else an evaluator that comes later might take it.
    left = NodeAffinitySchedulingStrategy(living()[2].id, soft=False)
    trials = ray.remote(num_cpus=1)(Instant).options(scheduling_strategy=left).remote()
    ray.get(trials.warm.remote())
    report["at first"] = [evaluators.ready(), evaluators.joined()]

    def until(done: Callable[[], bool]) -> list[int]:
        new: list[int] = []
        while not done():
            new += evaluators.joined()
            time.sleep(0.2)
        return new

    cluster.add_node(**COMMON)
    report["joined"] = until(lambda: len(evaluators.ready()) == 3)
    report["nodes"] = len(set(ray.get([actor.where.remote() for actor in evaluators._actors])))
    cluster.add_node(**COMMON, env_vars={"BROKEN_NODE": "1"})
    until(lambda: len(said) == 2)
    report["said"], report["in the end"] = said, evaluators.ready()
    ray.kill(trials)


def asking_for_more(cluster: Any, report: dict[str, Any]) -> None:
    """Join a cluster with two GPUs and ask for four, with and without an autoscaler in mind, then for two at once."""
    import ray

    from kinray.cluster.evaluators import Evaluators
    from kinray.cluster.session import ray_session

    ray.shutdown()
    cluster.add_node(**COMMON, num_gpus=2)
    on_gpus = EvaluationConfig(device="cuda")
    with ray_session(ClusterConfig(address=cluster.address, wait_minutes=2, evaluators=4), on_gpus) as session:
        report["more"] = [session.device, session.evaluators, session.grows]
    several = ClusterConfig(address=cluster.address, gpus_per_evaluator=2)
    with ray_session(several, on_gpus) as session:
        config = parse_config({"base": "b", "founders": ["x", "y"], "tasks": ["t"], "cluster": several.model_dump()})
        evaluators = Evaluators([], config, session, session.nodes[-1:])
        report["several"] = [session.evaluators, *ray.get([actor.gpus.remote() for actor in evaluators._actors])]
    report["too many"] = refusal(lambda: ray_session(ClusterConfig(address=cluster.address, evaluators=4), on_gpus).__enter__())


def main(output: str, folder: str) -> None:
    """Go through all cases on one cluster."""
    report: dict[str, Any] = {}
    with small_cluster() as cluster:
        from kinray.cluster import evaluators

        evaluators.Evaluator, evaluators._LOOK = Instant, 0.0  # type: ignore[misc,assignment]
        losing(cluster, report)
        growing(cluster, report)
        differing_nodes(cluster, Path(folder), report)
        asking_for_more(cluster, report)
    Path(output).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
