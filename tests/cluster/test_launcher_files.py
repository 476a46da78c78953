"""The files that start clusters are what their launchers take."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kinray.config import parse_config

ROOT = Path(__file__).parents[2]
LAUNCHED = ["cluster.yaml", "configs/cluster-local.yaml"]


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_file_passes_the_check_of_the_cluster_launcher(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_are_set_up_with_the_pinned_versions_and_nothing_of_rays_defaults(name: str) -> None:
    config = read(name)
    (install,) = (command for command in config["setup_commands"] if "pip install" in command)

    assert "-c ~/kinray/constraints.txt -e ~/kinray 'ray[default]'" in install
    assert config["file_mounts"] == {"~/kinray": "."}
    (head,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in head and "--autoscaling-config" in head
    assert any("--address=$RAY_HEAD_IP:6379" in command for command in config["worker_start_ray_commands"])


def test_gpu_workers_of_the_cloud_come_and_go_and_open_no_port() -> None:
    config = read("cluster.yaml")
    types = config["available_node_types"]

    assert all("ImageId" in node["node_config"] for node in types.values()), "Ray's default image is of 2018"
    assert 1 <= types["gpu"]["min_workers"] < types["gpu"]["max_workers"] == config["max_workers"]
    assert "IpPermissions" not in config["provider"]["security_group"]
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_manifest_for_kubernetes_runs_a_configuration_that_is_one() -> None:
    import ray

    job, config_map = yaml.safe_load_all((ROOT / "configs" / "rayjob.yaml").read_text())
    config = parse_config(yaml.safe_load(config_map["data"]["search.yaml"]))
    spec = job["spec"]["rayClusterSpec"]

    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["entrypoint"] == "python -m kinray.evolve /config/search.yaml"
    assert spec["rayVersion"] == ray.__version__
    pods = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in pods):
        assert {volume["name"] for volume in pod["volumes"]} == {m["name"] for m in pod["containers"][0]["volumeMounts"]}
        assert {"name": "config", "configMap": {"name": config_map["metadata"]["name"]}} in pod["volumes"]
    assert config.cluster.address == "auto"
    assert spec["workerGroupSpecs"][0]["maxReplicas"] == config.cluster.evaluators
