"""The kinship of given models, measured by shard actors and nothing else running."""

from collections.abc import Mapping

from kinray.checkpoints.models import Models
from kinray.cluster.session import cores, ray_session
from kinray.config import ClusterConfig, EvaluationConfig
from kinray.core.statistics import Statistics
from kinray.engine.gram import Progress
from kinray.errors import ConfigError


def measure_on_ray(
    models: Models, rows: Mapping[str, int], device: str, address: str, shards: int | None, progress: Progress
) -> Statistics:
    """Measure models on a Ray cluster.

    Args:
        models: the base and the others, at the same paths on every node.
        rows: tensors of which only the first rows count.
        device: ``auto``, ``cpu`` or ``cuda``.
        address: of the cluster; empty for one of this machine's own.
        shards: actors; by default one for each GPU, without GPUs one for each CPU.
        progress: told of the bytes read.

    Raises:
        ConfigError: when GPUs are asked for and the cluster has none, or more shards than GPUs.
        RunError: when the cluster cannot be reached, or one of its nodes lacks a model.
    """
    with ray_session(ClusterConfig(address=address or None), EvaluationConfig(device="auto"), models.specs):
        import ray  # reads its settings when it is first imported, so after the session has made them

        from kinray.cluster.shards import Shards

        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        if device == "cuda" and not gpus:
            raise ConfigError("--device is cuda, but the cluster has no GPU. Use auto or cpu.")
        cuda = gpus > 0 and device != "cpu"
        if cuda and shards is not None and shards > gpus:
            raise ConfigError(f"--shards is {shards}, but the cluster has {gpus} GPUs. Use at most that many, or --device cpu.")
        cpus = int(resources.get("CPU", 1)) if address else cores()
        count = shards or (gpus if cuda else cpus)
        return Shards(models, count, "cuda" if cuda else "cpu", rows).statistics(progress)
