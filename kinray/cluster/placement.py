"""Which node does what: evaluators where their device is, shards where they fit into memory, beside evaluators if they can."""

from collections.abc import Sequence
from dataclasses import dataclass

from kinray.cluster.nodes import Node


@dataclass(frozen=True)
class Placement:
    """A plan, which Ray follows while the nodes are there.

    Args:
        nodes: all of the cluster.
        evaluators: the node of each.
        shards: the node of each.
        shard_bytes: what each shard maps.
    """

    nodes: tuple[Node, ...]
    evaluators: tuple[Node, ...]
    shards: tuple[Node, ...]
    shard_bytes: tuple[int, ...]

    def lines(self, device: str, gpus: int = 1) -> list[tuple[str, str]]:
        """Say for each node what it gets, and why; ``gpus`` are those of each evaluator."""
        each = f", {gpus} each" if gpus > 1 else ""
        return [
            (node.address, self._line(node, f"{node.gpus} GPUs{each}" if device == "cuda" else f"{node.cpus} CPUs"))
            for node in self.nodes
        ]

    def _line(self, node: Node, has: str) -> str:
        scoring = self.evaluators.count(node)
        mapped = [size for one, size in zip(self.shards, self.shard_bytes, strict=True) if one == node]
        words = f"evaluators: {scoring}, for its {has}" if scoring else f"evaluators: none, it has {has}"
        if not mapped:
            return f"{words}; shards: none"
        beside = " beside them," if scoring else ""
        fits = "fits" if sum(mapped) <= node.free else "does not fit, so it is read from the disk again and again,"
        return (
            f"{words}; shards: {len(mapped)},{beside} of {_gb(sum(mapped))}, which {fits} into {_gb(node.free)} of free memory"
        )


def place(nodes: Sequence[Node], evaluators: int, shard_bytes: Sequence[int], device: str, gpus: int = 1) -> Placement:
    """Plan where evaluators and shards go.

    Args:
        nodes: at least one.
        evaluators: at most as many as there is ``room_on_gpus`` for, or on ``cpu`` one for each CPU.
        shard_bytes: of each shard.
        device: ``cuda`` or ``cpu``, of the evaluators.
        gpus: of each evaluator.
    """
    rooms = {node: node.gpus // gpus if device == "cuda" else node.cpus for node in nodes}
    scoring: list[Node] = []
    for _ in range(evaluators):
        node = max(rooms, key=lambda one: rooms[one])
        rooms[node] -= 1
        scoring.append(node)
    held = dict.fromkeys(nodes, 0)
    shards: dict[int, Node] = {}
    for number in sorted(range(len(shard_bytes)), key=lambda number: -shard_bytes[number]):
        size = shard_bytes[number]
        fits = [node for node in nodes if held[node] + size <= node.free]
        near = [node for node in fits if node in scoring]
        # Equal shares are read in the shortest time; where nothing fits, the disk is read least with the most memory.
        if fits:
            shards[number] = min(near or fits, key=lambda one: (held[one], -one.free))
        else:
            shards[number] = max(nodes, key=lambda one: one.free - held[one])
        held[shards[number]] += size
    return Placement(tuple(nodes), tuple(scoring), tuple(shards[n] for n in range(len(shard_bytes))), tuple(shard_bytes))


def room_on_gpus(nodes: Sequence[Node], gpus: int) -> int:
    """Count the evaluators that nodes have room for, if each takes so many GPUs of one node."""
    return sum(node.gpus // gpus for node in nodes)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
