"""Every node has the models and versions that the work needs, and nodes that join later are used."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kinray.checkpoints.locate import hub_snapshot
from kinray.checkpoints.models import ModelSpec
from kinray.cluster import session
from kinray.cluster.nodes import Report, _compare, report
from kinray.cluster.session import ray_session
from kinray.config import ClusterConfig, EvaluationConfig
from kinray.errors import RunError
from tests.helpers import founder

ROOT = Path(__file__).parents[2]


def a_model(folder: Path, contents: bytes = b"weights" * 100_000) -> ModelSpec:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(contents)
    return ModelSpec(founder("math"), folder)


def compare(mine: Report, theirs: Report, spec: ModelSpec) -> None:
    _compare("10.0.0.7", mine, theirs, [spec])


def test_a_folder_that_a_node_lacks_is_named_with_the_node(tmp_path: Path) -> None:
    spec = a_model(tmp_path / "math")
    mine = report([spec])
    (tmp_path / "math").rename(tmp_path / "elsewhere")

    with pytest.raises(RunError, match=rf"Node 10\.0\.0\.7 has no folder {tmp_path}/math of model 'math'\. Put it there"):
        compare(mine, report([spec]), spec)


def test_task_folders_are_looked_for_too(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    spec = a_model(tmp_path / "math")
    mine = report([spec], [str(tmp_path / "tasks")])
    (tmp_path / "tasks").rmdir()

    with pytest.raises(RunError, match=r"has no folder .*/tasks of task_paths"):
        compare(mine, report([spec], [str(tmp_path / "tasks")]), spec)


@pytest.mark.parametrize("place", [0, 350_000, 699_999])
def test_other_weights_of_the_same_size_are_noticed(place: int, tmp_path: Path) -> None:
    spec = a_model(tmp_path / "math")
    mine = report([spec])
    other = bytearray(b"weights" * 100_000)
    other[place] ^= 1
    (tmp_path / "math" / "model.safetensors").write_bytes(bytes(other))

    with pytest.raises(RunError, match=r"on node 10\.0\.0\.7 does not hold the same files as here"):
        compare(mine, report([spec]), spec)


def test_other_versions_are_named(tmp_path: Path) -> None:
    spec = a_model(tmp_path / "math")
    mine = report([spec])

    with pytest.raises(RunError, match=r"Node 10\.0\.0\.7 has ray 2\.9\.0, but this process 2\."):
        compare(mine, replace(mine, versions=mine.versions | {"ray": "2.9.0"}), spec)


def test_snapshots_of_the_hub_are_known_by_their_folders(tmp_path: Path) -> None:
    assert hub_snapshot(Path("/hf/hub/models--meta-math--MetaMath-7B/snapshots/0a1b")) == ("meta-math/MetaMath-7B", "0a1b")
    assert hub_snapshot(Path("/models/math")) is None


def test_a_hub_model_that_cannot_be_fetched_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = a_model(tmp_path / "hub" / "models--org--math" / "snapshots" / ("a" * 40))
    mine = report([spec])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "hub").rename(tmp_path / "another machine")

    with pytest.raises(
        RunError, match=r"has no folder .*snapshots/a+ of model 'math' \(Model 'math': .*the hub did not give it"
    ):
        compare(mine, report([spec]), spec)


def test_an_address_where_nothing_answers_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    begin = time.monotonic()

    with (
        pytest.raises(RunError, match=rf"Cannot join the Ray cluster at '{address}': .*refused.*Check the address"),
        ray_session(ClusterConfig(address=address), EvaluationConfig()),
    ):
        pass
    assert time.monotonic() - begin < 30  # Ray itself tries for minutes


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("nodes")
    command = [sys.executable, "-m", "tests.cluster.nodes_program", str(folder / "report.json"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return result


@pytest.mark.slow
def test_every_node_is_asked(seen: dict[str, Any]) -> None:
    assert seen["alike"] == [5, True]
    assert "safetensors 9.9, but this process" in seen["other version"]


@pytest.mark.slow
def test_an_evaluator_whose_node_is_lost_for_good_is_waited_for_by_nobody(seen: dict[str, Any]) -> None:
    assert seen["scored elsewhere"] == [["scored"] * 3, [0]]
    assert seen["after a loss"] == [
        [
            "evaluator-1 has not answered for some minutes; others go on with its work, if there are any.",
            "evaluator-1 answers again.",
        ],
        [0, 1],
        ["scored"] * 3,
    ]


@pytest.mark.slow
def test_nodes_that_join_later_score_too_unless_they_cannot(seen: dict[str, Any]) -> None:
    assert seen["at first"] == [[0, 1], []]
    assert (seen["joined"], seen["nodes"]) == ([2], 3)
    joined, left_out = seen["said"]
    assert joined == "A node joined the cluster: evaluator-2 scores too."
    assert (
        "that joined the cluster is not used for evaluator-3, since it cannot score" in left_out
        and "no models here" in left_out
    )
    assert seen["in the end"] == [0, 1, 2]


@pytest.mark.slow
def test_more_evaluators_than_a_cluster_has_gpus_may_be_asked_of_an_autoscaler_only(seen: dict[str, Any]) -> None:
    assert seen["more"] == ["cuda", 2, True]
    assert "evaluators is 4, but the cluster has 2 GPUs" in seen["too many"]


@pytest.mark.slow
def test_an_evaluator_of_several_gpus_holds_as_many_of_ray(seen: dict[str, Any]) -> None:
    evaluators, gpus = seen["several"]
    assert (evaluators, gpus) == (1, 2)


@pytest.mark.parametrize("comes", [True, False])
@pytest.mark.parametrize(("gpus", "what"), [(1, "a GPU"), (4, "a node with 4 GPUs")])
def test_gpus_are_asked_of_the_autoscaler_and_waited_for(
    gpus: int, what: str, comes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.autoscaler import sdk

    from kinray.cluster import nodes

    asked, said, clock = [], [], iter(range(1000))
    head, small, large = (nodes.Node(str(has), str(has), 8, has) for has in (0, gpus - 1, gpus))
    seen = iter([[head], [head, small], [head, small]])
    monkeypatch.setattr(nodes, "living", lambda: next(seen, [head, small, large] if comes else [head, small]))
    monkeypatch.setattr(sdk, "request_resources", lambda *, bundles: asked.append(bundles))
    monkeypatch.setattr(session.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(session.time, "sleep", lambda _: None)

    cluster = ClusterConfig(address="auto", evaluators=3, gpus_per_evaluator=gpus, wait_minutes=0.5)
    session._await_gpu(cluster, 4, said.append)

    assert asked == [[{"GPU": gpus}] * 3, []]
    assert said == [f"Waiting up to 0.5 minutes for {what} to join the cluster …"]
    assert next(clock) < 5 if comes else next(clock) > 30
