"""A private Ray session, with real processes."""

import subprocess
import sys

import pytest

LISTENING = """
import os
from contextlib import suppress
from pathlib import Path
from socket import SOCK_DGRAM
import psutil
from kinray.cluster.session import ray_session
from kinray.config import ClusterConfig, EvaluationConfig

def sockets():
    '''List who of this process and all that it started listens where, also for datagrams.'''
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN or socket.type == SOCK_DGRAM:
                    yield process.name(), socket.laddr.ip

with ray_session(ClusterConfig(), EvaluationConfig(device="cpu")) as session:
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    print("session", session)
    (node,) = ray.nodes()
    folder = next(one for one in Path(node["RayletSocketName"]).parents if one.name.startswith("kinray-ray-"))
    assert folder.is_dir()
    print("mode", oct(folder.stat().st_mode & 0o777))
    for name, address in sorted(set(sockets())):
        print("socket", address, name)
print("left", folder.exists())
print("token", (Path.home() / ".ray" / "auth_token").exists())
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("home")
    import os

    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "HOME": str(home)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_port_of_a_private_session_listens_on_this_machine_only(report: list[str]) -> None:
    sockets = [line.split()[1:] for line in report if line.startswith("socket")]

    assert {name for _, name in sockets} >= {"raylet", "gcs_server"}
    assert {address for address, _ in sockets} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, sockets


def test_a_private_session_leaves_nothing_behind(report: list[str]) -> None:
    assert "left False" in report
    assert "token False" in report


def test_only_this_user_reaches_the_sockets_and_logs_of_a_private_session(report: list[str]) -> None:
    assert "mode 0o700" in report


def test_without_gpus_each_evaluator_has_two_cores(report: list[str]) -> None:
    import os

    (session,) = (line for line in report if line.startswith("session"))

    assert f"evaluators={max(1, len(os.sched_getaffinity(0)) // 2)}" in session
    assert "shards=1" in session


def test_more_evaluators_than_a_cluster_has_room_for_are_refused() -> None:
    from kinray.cluster.nodes import Node
    from kinray.cluster.session import _session
    from kinray.config import ClusterConfig, EvaluationConfig
    from kinray.errors import RunError

    nodes = (Node("a", "10.0.0.1", cpus=4, gpus=1), Node("b", "10.0.0.2", cpus=4, gpus=0))

    with pytest.raises(RunError, match="evaluators is 2, but the cluster has 1 GPUs"):
        _session(ClusterConfig(address="auto", evaluators=2), EvaluationConfig(), nodes)
    with pytest.raises(RunError, match=r"gpus_per_evaluator is 2, but no node has more than 1 GPUs\. Lower it"):
        _session(ClusterConfig(address="auto", gpus_per_evaluator=2), EvaluationConfig(), nodes)
    with pytest.raises(RunError, match="evaluators is 2, but the cluster has 1 times 4 GPUs on one node"):
        _session(
            ClusterConfig(address="auto", evaluators=2, gpus_per_evaluator=4),
            EvaluationConfig(),
            (*nodes, Node("c", "10.0.0.3", cpus=4, gpus=7)),
        )
    with pytest.raises(RunError, match="evaluators is 8, but the cluster has 7 free CPUs"):
        _session(ClusterConfig(address="auto", evaluators=8), EvaluationConfig(device="cpu"), nodes)
    with pytest.raises(RunError, match=r"cluster has no GPU.*set cluster\.wait_minutes"):
        _session(ClusterConfig(address="auto"), EvaluationConfig(device="cuda"), nodes[1:])
