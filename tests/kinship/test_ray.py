"""The pass on Ray: shards, an actor that dies and a node that goes away give the same numbers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kinray.cluster.shards import bundles
from tests.helpers import ARCHITECTURE, make_model

ROOT = Path(__file__).parents[2]


def test_bundles_are_few_nearly_equal_and_whole() -> None:
    sizes = {f"t{at}": 10 + at % 7 for at in range(100)}

    cut = bundles(sizes)

    assert [name for bundle in cut for name in bundle] == list(sizes)
    assert len(cut) == 16
    filled = [sum(sizes[name] for name in bundle) for bundle in cut]
    assert max(filled) - min(filled) <= 2 * max(sizes.values())


@pytest.mark.parametrize("sizes", [{"a": 5}, {"a": 10**9, "b": 1, "c": 1}, {"a": 1, "b": 10**9}, {"a": 0, "b": 0}])
def test_no_bundle_is_empty_or_lost(sizes: dict[str, int]) -> None:
    assert [name for bundle in bundles(sizes) for name in bundle] == list(sizes)
    assert all(bundles(sizes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base and three models of 40 tensors; the base's folder first."""
    folder = tmp_path_factory.mktemp("models")
    config = {"architectures": [ARCHITECTURE], "vocab_size": 10}
    made = []
    for seed, name in enumerate(["base", "a", "b", "c"]):
        draw = torch.Generator().manual_seed(seed)
        tensors = {f"layers.{at}.weight": torch.randn(64 + at, 300, generator=draw).bfloat16() for at in range(40)}
        made.append(str(make_model(folder / name, tensors, config)))
    return made


@pytest.fixture(scope="module")
def report(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("cluster") / "report.json"
    command = [sys.executable, "-m", "tests.kinship.cluster_program", str(output), *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(output.read_text())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("case", ["killed actor", "removed node"])
def test_numbers_are_those_of_one_process_to_the_last_bit(report: dict[str, Any], case: str) -> None:
    assert report[case]["same bits"]
    assert report[case]["bytes seen"] == report["bytes"]
    assert report[case]["answers"] >= 10, "progress is live"


@pytest.mark.slow
def test_killed_actor_does_only_its_unfinished_tensors_again(report: dict[str, Any]) -> None:
    assert 0 <= report["killed actor"]["again"] <= 2, "a bundle under way may be done twice, finished ones are not"


@pytest.mark.slow
def test_shards_of_a_removed_node_go_on_elsewhere(report: dict[str, Any]) -> None:
    # A loaded machine may be late to report a node, and Ray then puts its shard on another one.
    assert report["removed node"]["nodes"] >= 2
    assert report["nodes left"] == 2
    assert 0 <= report["removed node"]["again"] <= 2, "at most the bundle under way on that node"


@pytest.mark.slow
def test_command_gives_the_same_on_a_private_cluster(folders: list[str], tmp_path: Path) -> None:
    base, *others = folders
    command = [sys.executable, "-m", "kinray.kinship", *others, "--base", base]
    outputs = [tmp_path / "here.json", tmp_path / "there.json"]

    for output, options in zip(outputs, ([], ["--no-cache", "--ray", "--shards", "2"]), strict=True):
        subprocess.run([*command, "--json", str(output), *options], check=True, capture_output=True, timeout=120, cwd=ROOT)

    here, there = (json.loads(output.read_text()) for output in outputs)
    assert here == there
