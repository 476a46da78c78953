"""Join a Ray cluster, or start a private one that only this machine can reach and that leaves nothing behind."""

import fcntl
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kinray.config import ClusterConfig, EvaluationConfig
from kinray.errors import RunError
from kinray.evaluation.scratch import sweep
from kinray.signals import shielded

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
_FOLDER = "kinray-ray-"
_MARKER = "kinray.lock"
_OBJECT_STORE = 256 << 20
"""Bytes; recipes, statistics and scores travel, weights do not."""


@dataclass(frozen=True)
class Session:
    """What a cluster gives to a search.

    Args:
        device: ``cuda`` or ``cpu``, on which evaluators work.
        evaluators: how many models are scored at once.
        shards: how many actors hold the founders for kinship.
        threads: of each evaluator, on a CPU.
    """

    device: str
    evaluators: int
    shards: int
    threads: int


@contextmanager
def ray_session(cluster: ClusterConfig, evaluation: EvaluationConfig, *, verbose: bool = False) -> Iterator[Session]:
    """Connect to Ray for the length of the block.

    Raises:
        RunError: when the cluster cannot be reached, or GPUs are asked for and it has none.
    """
    os.environ.update(_ALWAYS)
    if cluster.address is None:
        os.environ.update(_PRIVATE)
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    with nullcontext() if cluster.address else _temporary_folder() as folder:
        try:
            sweep()
            with shielded():
                _connect(cluster, folder, verbose)
            yield _session(cluster, evaluation)
        finally:
            ray.shutdown()
            sweep()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Give a folder for Ray's sockets and logs, and remove it at the end, with those of sessions that were killed.

    It lies in /tmp, since the path of a socket may have 107 bytes only. A lock on a file in it tells the living from the dead.
    """
    for marker in Path("/tmp").glob(f"{_FOLDER}*/{_MARKER}"):  # noqa: S108
        with suppress(OSError), marker.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(marker.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir="/tmp"))
    try:
        with (folder / _MARKER).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _connect(cluster: ClusterConfig, folder: Path | None, verbose: bool) -> None:
    import ray

    common = {"log_to_driver": verbose, "logging_level": logging.ERROR, "namespace": f"kinray-{uuid.uuid4().hex}"}
    if folder is None:
        try:
            ray.init(address=cluster.address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0][:200]
            raise RunError(f"Cannot join the Ray cluster at '{cluster.address}': {reason}") from error
    else:
        ray.init(
            address="local",
            num_cpus=_cpus(cluster) + 1,  # one for Tune's thin trials, which wait and do not work
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
            **common,
        )


def _session(cluster: ClusterConfig, evaluation: EvaluationConfig) -> Session:
    import ray

    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    if evaluation.device == "cuda" and not gpus:
        raise RunError("evaluation.device is cuda, but the cluster has no GPU. Use auto or cpu, or add a GPU node.")
    device = "cpu" if evaluation.device == "cpu" or not gpus else "cuda"
    # One CPU is left for Tune's trials and the shards.
    cpus = _cpus(cluster) if cluster.address is None else max(1, int(resources.get("CPU", 2)) - 1)
    nodes = sum(node["Alive"] for node in ray.nodes())
    evaluators = cluster.evaluators
    if evaluators == "auto":
        evaluators = gpus if device == "cuda" else max(1, cpus // 2)
    limit = gpus if device == "cuda" else cpus
    if evaluators > limit:
        raise RunError(
            f"cluster.evaluators is {evaluators}, but the cluster has {limit} {'GPUs' if device == 'cuda' else 'free CPUs'}. "
            "Each evaluator needs one: lower the number, or add nodes."
        )
    shards = cluster.shards
    if shards == "auto":
        shards = gpus if device == "cuda" else nodes
    return Session(device, evaluators, shards, max(1, (cores() if cluster.address is None else cpus) // evaluators))


def _cpus(cluster: ClusterConfig) -> int:
    """Count the CPUs of a private cluster; more evaluators than cores are the user's to ask for."""
    return max(cores(), cluster.evaluators if isinstance(cluster.evaluators, int) else 1)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))
