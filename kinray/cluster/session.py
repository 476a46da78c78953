"""Join a Ray cluster, or start a private one that only this machine can reach and that leaves nothing behind."""

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kinray.checkpoints.models import ModelSpec
from kinray.config import ClusterConfig, EvaluationConfig
from kinray.errors import RunError
from kinray.evaluation.scratch import sweep
from kinray.signals import shielded
from kinray.temporary import temporary_folder

if TYPE_CHECKING:
    from kinray.cluster.nodes import Node

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "60",
    # Tune's own snapshot is not what a run is resumed from, so it need not be taken often.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}
_PRIVATE = {
    # The only setting of Ray 2.60 that binds every port of a local cluster to 127.0.0.1.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Nothing but this machine reaches it, and a token would be written into the home folder.
    "RAY_AUTH_MODE": "disabled",
}
_TEMPORARY = Path("/tmp"), "kinray-ray-"  # noqa: S108 (what is in it is private, see temporary_folder)
"""Where the folder of Ray's sockets and logs lies, and how its name begins: the path of a socket may have 107 bytes only."""
_OBJECT_STORE = 256 << 20
"""Bytes; recipes, statistics and scores travel, weights do not."""

_MOST = 4096
"""Evaluators of a cluster that grows, at most."""

_PATIENCE = 5.0
"""Seconds for a cluster's port to answer; Ray itself tries for minutes."""


@dataclass(frozen=True)
class Session:
    """What a cluster gives to a search.

    Args:
        device: ``cuda`` or ``cpu``, on which evaluators work.
        evaluators: how many models are scored at once, to begin with.
        shards: how many actors hold the founders for kinship.
        threads: of each evaluator, on a CPU.
        nodes: of the cluster.
        grows: whether nodes that join later are used too.
        gpus: of each evaluator, if it works on GPUs.
        most: the evaluators that there is ever work for.
    """

    device: str
    evaluators: int
    shards: int
    threads: int
    nodes: "tuple[Node, ...]" = ()
    grows: bool = False
    gpus: int = 1
    most: int = _MOST

    @property
    def slots(self) -> int:
        """The children that may be scored at once, at most."""
        return self.most if self.grows else self.evaluators


@contextmanager
def ray_session(
    cluster: ClusterConfig,
    evaluation: EvaluationConfig,
    specs: Sequence[ModelSpec] = (),
    folders: Sequence[str] = (),
    *,
    most: int = _MOST,
    say: Callable[[str], None] = lambda _: None,
    verbose: bool = False,
) -> Iterator[Session]:
    """Connect to Ray for the length of the block.

    Args:
        cluster: which, and how many actors.
        evaluation: on what device.
        specs: models that every node must have.
        folders: further folders that every node must have.
        most: models that are ever scored at once, so that no more evaluators are started.
        say: told of a long wait.
        verbose: whether to show the workers' logs.

    Raises:
        RunError: when the cluster cannot be reached, GPUs are asked for and it has none, or a node lacks a model or has other
            versions than this process.
    """
    if cluster.address is not None:
        _check_reachable(cluster.address)
    os.environ.update(_ALWAYS)
    if cluster.address is None:
        os.environ.update(_PRIVATE)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    with nullcontext() if cluster.address else temporary_folder(*_TEMPORARY) as folder:
        try:
            sweep()
            with shielded():
                _connect(cluster, folder, verbose)
            if cluster.address is not None and evaluation.device == "cuda":
                _await_gpu(cluster, most, say)
            yield _session(cluster, evaluation, _nodes(cluster, specs, folders), most)
        finally:
            ray.shutdown()
            sweep()


def _connect(cluster: ClusterConfig, folder: Path | None, verbose: bool) -> None:
    import ray

    common = {"log_to_driver": verbose, "logging_level": logging.ERROR, "namespace": f"kinray-{uuid.uuid4().hex}"}
    if folder is None:
        try:
            ray.init(address=cluster.address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RunError(f"Cannot join the Ray cluster at '{cluster.address}': {reason}") from error
    else:
        ray.init(
            address="local",
            num_cpus=_cpus(cluster) + 1,  # one for Tune's thin trials, which wait and do not work
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / "ray"),  # Ray opens it to everybody, but not the folder around it
            **common,
        )


def _check_reachable(address: str) -> None:
    host, separator, port = address.rpartition(":")
    if not separator or "/" in host or not port.isdecimal():
        return  # auto, or a form that Ray knows better
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"Cannot join the Ray cluster at '{address}': {error}. Check the address, and that the cluster is up."
        ) from error


def _await_gpu(cluster: ClusterConfig, most: int, say: Callable[[str], None]) -> None:
    """Ask the autoscaler for the GPUs of all evaluators and wait for those of the first."""
    from ray.autoscaler.sdk import request_resources

    from kinray.cluster.nodes import living
    from kinray.cluster.placement import room_on_gpus

    gpus = cluster.gpus_per_evaluator
    if room_on_gpus(living(), gpus) or not cluster.wait_minutes:
        return
    what = "a GPU" if gpus == 1 else f"a node with {gpus} GPUs"
    say(f"Waiting up to {cluster.wait_minutes:g} minutes for {what} to join the cluster …")
    wanted = 1 if cluster.evaluators == "auto" else min(most, int(cluster.evaluators))
    request_resources(bundles=[{"GPU": gpus}] * wanted)
    end = time.monotonic() + 60 * cluster.wait_minutes
    while not room_on_gpus(living(), gpus) and time.monotonic() < end:
        time.sleep(1)
    request_resources(bundles=[])  # from here on, the evaluators that wait for a place are what it sees


def _nodes(cluster: ClusterConfig, specs: Sequence[ModelSpec], folders: Sequence[str]) -> "tuple[Node, ...]":
    from kinray.cluster.nodes import living, survey, this_machine

    if cluster.address is None:
        return (this_machine(living()[0], _cpus(cluster)),)
    return tuple(survey(living(), specs, folders))


def _session(cluster: ClusterConfig, evaluation: EvaluationConfig, nodes: "tuple[Node, ...]", most: int = _MOST) -> Session:
    from kinray.cluster.placement import room_on_gpus

    gpus, each = sum(node.gpus for node in nodes), cluster.gpus_per_evaluator
    if evaluation.device == "cuda" and not gpus:
        waiting = " If an autoscaler brings GPU nodes, set cluster.wait_minutes." if cluster.address else ""
        raise RunError(f"evaluation.device is cuda, but the cluster has no GPU. Use auto or cpu, or add a GPU node.{waiting}")
    if evaluation.device != "cpu" and each > 1 and not room_on_gpus(nodes, each):
        raise RunError(
            f"cluster.gpus_per_evaluator is {each}, but no node has more than {max(node.gpus for node in nodes)} GPUs. "
            "Lower it, or add a node that has as many."
        )
    device = "cpu" if evaluation.device == "cpu" or not gpus else "cuda"
    # One CPU is left for Tune's trials and the shards.
    cpus = _cpus(cluster) if cluster.address is None else max(1, sum(node.cpus for node in nodes) - 1)
    limit = room_on_gpus(nodes, each) if device == "cuda" else cpus
    evaluators = cluster.evaluators
    if evaluators == "auto":
        evaluators = limit if device == "cuda" else max(1, cpus // 2)
    if evaluators > limit and not cluster.wait_minutes:
        what = "free CPUs" if device == "cpu" else "GPUs" if each == 1 else f"times {each} GPUs on one node"
        raise RunError(
            f"cluster.evaluators is {evaluators}, but the cluster has {limit} {what}. "
            "Each evaluator needs one: lower the number, or add nodes; where an autoscaler does, set cluster.wait_minutes."
        )
    evaluators = min(evaluators, limit, most)
    shards = cluster.shards
    if shards == "auto":
        shards = gpus if device == "cuda" else len(nodes)
    threads = max(1, (cores() if cluster.address is None else cpus) // evaluators)
    wanted = most if cluster.evaluators == "auto" else min(most, int(cluster.evaluators))
    grows = cluster.address is not None and wanted > evaluators
    return Session(device, evaluators, shards, threads, nodes, grows, each, most)


def room(session: Session) -> int:
    """Count the evaluators that a joined cluster has room for now, where their number is auto."""
    from kinray.cluster.nodes import living
    from kinray.cluster.placement import room_on_gpus

    nodes = living()
    if session.device == "cuda":
        return room_on_gpus(nodes, session.gpus)
    return max(1, (sum(node.cpus for node in nodes) - 1) // session.threads)


def _cpus(cluster: ClusterConfig) -> int:
    """Count the CPUs of a private cluster; more evaluators than cores are the user's to ask for."""
    return max(cores(), cluster.evaluators if isinstance(cluster.evaluators, int) else 1)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))
