"""The nodes of a cluster: what each has, and whether it has the models and the versions that the work needs."""

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kinray.checkpoints.locate import hub_snapshot, locate
from kinray.checkpoints.models import ModelSpec
from kinray.errors import KinrayError, RunError
from kinray.versions import installed

_PACKAGES = ("ray", "kinray", "torch", "transformers", "lm-eval", "safetensors")
"""What scores and bits may depend on, besides Python itself."""

_PROBES, _PROBE = 16, 1 << 16
"""Places in a file of weights that are compared between nodes, and bytes of each: a whole model would take too long."""


@dataclass(frozen=True)
class Node:
    """What one node gives to the work.

    Args:
        id: Ray's.
        address: for people.
        cpus: that Ray may use.
        gpus: likewise.
        free: bytes of memory that nothing needs now.
    """

    id: str
    address: str
    cpus: int
    gpus: int
    free: int = 0


@dataclass(frozen=True)
class Report:
    """What a node says of itself.

    Args:
        versions: of Python and the packages that matter.
        free: bytes of memory that nothing needs.
        found: by folder of weights, a digest of samples of its files; None where there is no such folder.
        errors: why folders of the hub could not be fetched, by folder.
    """

    versions: dict[str, str]
    free: int
    found: dict[str, str | None]
    errors: dict[str, str] = field(default_factory=dict)


def living() -> list[Node]:
    """List the nodes that are there now."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in nodes
    ]


def this_machine(node: Node, cpus: int) -> Node:
    """Describe the one node of a private cluster, which has what this process has, and so many CPUs for evaluators."""
    return replace(node, address="this machine", cpus=cpus, free=free_memory())


def survey(nodes: Sequence[Node], specs: Sequence[ModelSpec], folders: Sequence[str]) -> list[Node]:
    """Let each node find the models, and return the nodes with their free memory.

    A node fetches what comes from the hub, once. What lies in a folder must be at the same path on all nodes.

    Raises:
        RunError: naming the node and what it lacks or has otherwise than this process.
    """
    mine = report(specs, folders)
    task = ray.remote(num_cpus=0, max_retries=2)(report)
    asked = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(specs, folders)
        for node in nodes
    ]
    checked = []
    for node, ref in zip(nodes, asked, strict=True):
        try:
            theirs: Report = ray.get(ref)
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1][:300]
            raise RunError(
                f"Node {node.address} cannot run kinray: {reason}. Install the same on every node, with -c constraints.txt."
            ) from error
        _compare(node.address, mine, theirs, specs)
        checked.append(replace(node, free=theirs.free))
    return checked


def report(specs: Sequence[ModelSpec], folders: Sequence[str] = ()) -> Report:
    """Describe the node that this runs on, after fetching the models of the hub that it lacks."""
    found: dict[str, str | None] = {}
    errors: dict[str, str] = {}
    for spec in specs:
        for folder in filter(None, (spec.folder, spec.adapter)):
            try:
                found[str(folder)] = _sample(_fetched(folder, spec.founder.name))
            except (KinrayError, OSError) as error:
                found[str(folder)], errors[str(folder)] = None, str(error)
    found |= {folder: "there" if os.path.isdir(folder) else None for folder in folders}
    versions = {"python": platform.python_version()} | {name: installed(name) or "not installed" for name in _PACKAGES}
    return Report(versions, free_memory(), found, errors)


def free_memory() -> int:
    """Return the bytes of this machine's memory that nothing needs, the page cache included."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _compare(address: str, mine: Report, theirs: Report, specs: Sequence[ModelSpec]) -> None:
    for name, wanted in mine.versions.items():
        if theirs.versions[name] != wanted:
            raise RunError(
                f"Node {address} has {name} {theirs.versions[name]}, but this process {wanted}. Every node needs the same "
                "versions: install kinray everywhere with -c constraints.txt."
            )
    names = {str(folder): spec.founder.name for spec in specs for folder in (spec.folder, spec.adapter) if folder}
    for folder, sample in mine.found.items():
        what = f"of model '{names[folder]}'" if folder in names else "of task_paths"
        if theirs.found[folder] is None:
            reason = f" ({theirs.errors[folder]})" if folder in theirs.errors else ""
            raise RunError(
                f"Node {address} has no folder {folder} {what}{reason}. Put it there, or on a file system that all nodes see."
            )
        if theirs.found[folder] != sample:
            raise RunError(
                f"The folder {folder} {what} on node {address} does not hold the same files as here. Copy it there again, or "
                "use a file system that all nodes see."
            )


def _fetched(folder: Path, name: str) -> Path:
    """Return a folder of weights, fetching it again if it is a hub's snapshot that this node lacks."""
    snapshot = hub_snapshot(folder)
    if folder.is_dir() or snapshot is None:
        return folder
    here = locate(snapshot[0], name, snapshot[1])
    if here != folder:
        raise RunError(f"the hub's cache of this node is elsewhere, {here}: set HF_HOME alike on all nodes")
    return folder


def _sample(folder: Path) -> str | None:
    """Digest names, sizes and some places of the files of weights: two models of one architecture differ nearly everywhere."""
    if not folder.is_dir():
        return None
    samples = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        samples.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for number in range(_PROBES):
                stream.seek(max(0, size - _PROBE) * number // (_PROBES - 1))
                samples.update(stream.read(_PROBE))
    return samples.hexdigest()
