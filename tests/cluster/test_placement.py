"""Where evaluators and shards go, planned for made-up clusters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.cluster.nodes import Node
from kinray.cluster.placement import place, room_on_gpus

GB = 10**9


def node(name: str, cpus: int = 8, gpus: int = 0, free: int = 100) -> Node:
    return Node(name, name, cpus, gpus, free * GB)


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [one.id for one in nodes]


def test_each_gpu_has_an_evaluator_whatever_its_node_has_besides() -> None:
    plan = place([node("head", cpus=64), node("big", gpus=4), node("small", gpus=1)], 5, [], "cuda")

    assert sorted(names(plan.evaluators)) == ["big"] * 4 + ["small"]


def test_fewer_evaluators_than_gpus_are_spread() -> None:
    plan = place([node("a", gpus=4), node("b", gpus=4)], 4, [], "cuda")

    assert sorted(names(plan.evaluators)) == ["a", "a", "b", "b"]


def test_an_evaluator_has_all_its_gpus_on_one_node() -> None:
    nodes = [node("a", gpus=3), node("b", gpus=8)]

    plan = place(nodes, 3, [], "cuda", gpus=3)

    assert room_on_gpus(nodes, 3) == 3 and sorted(names(plan.evaluators)) == ["a", "b", "b"]
    assert plan.lines("cuda", 3)[1] == ("b", "evaluators: 2, for its 8 GPUs, 3 each; shards: none")


def test_shards_lie_beside_evaluators_where_they_fit_and_elsewhere_where_not() -> None:
    nodes = [node("head", free=500), node("gpu", gpus=1, free=30)]

    assert names(place(nodes, 1, [20 * GB], "cuda").shards) == ["gpu"]
    assert names(place(nodes, 1, [40 * GB], "cuda").shards) == ["head"]
    assert sorted(names(place(nodes, 1, [20 * GB, 20 * GB], "cuda").shards)) == ["gpu", "head"]


def test_nodes_share_the_shards_evenly_whatever_memory_they_have_as_long_as_all_fits() -> None:
    nodes = [node("a", free=30), node("b", free=90), node("c", free=31)]

    assert sorted(names(place(nodes, 3, [GB] * 3, "cpu").shards)) == ["a", "b", "c"]
    assert sorted(names(place(nodes, 3, [8 * GB] * 9, "cpu").shards)) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_shards_that_do_not_fit_evenly_follow_the_free_memory() -> None:
    nodes = [node("a", free=30), node("b", free=90)]

    assert names(place(nodes, 2, [10 * GB] * 8, "cpu").shards).count("b") == 5
    assert names(place(nodes, 2, [50 * GB] * 2, "cpu").shards).count("b") == 2


def test_the_plan_says_what_fits_and_what_does_not() -> None:
    plan = place([node("head", free=1), node("gpu", gpus=2, free=10)], 2, [5 * GB], "cuda")
    tight = place([node("gpu", gpus=2, free=10)], 2, [5 * GB, 20 * GB], "cuda")

    assert plan.lines("cuda") == [
        ("head", "evaluators: none, it has 0 GPUs; shards: none"),
        (
            "gpu",
            "evaluators: 2, for its 2 GPUs; shards: 1, beside them, of 5.0 GB, which fits into 10.0 GB of free memory",
        ),
    ]
    assert "shards: 2, beside them, of 25.0 GB, which does not fit" in tight.lines("cuda")[0][1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@given(st.lists(st.tuples(st.integers(0, 16), st.integers(0, 8), st.integers(0, 500)), min_size=1, max_size=6), st.data())
def test_no_node_has_more_evaluators_than_room_and_every_shard_has_a_node(
    device: str, has: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    nodes = [node(str(at), *one) for at, one in enumerate(has)]
    rooms = [one.gpus if device == "cuda" else one.cpus for one in nodes]
    evaluators = data.draw(st.integers(0, sum(rooms)))
    sizes = data.draw(st.lists(st.integers(0, 100 * GB), max_size=10))

    plan = place(nodes, evaluators, sizes, device)

    assert len(plan.evaluators) == evaluators
    assert all(plan.evaluators.count(one) <= room for one, room in zip(nodes, rooms, strict=True))
    assert len(plan.shards) == len(sizes) and set(plan.shards) <= set(nodes)
