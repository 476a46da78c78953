"""How tensors are shared out among shards. What shards compute is tested with real actors in tests/evolve and tests/kinship."""

from hypothesis import given
from hypothesis import strategies as st

from kinray.cluster.shards import balance

sizes = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 10**9), min_size=1, max_size=60)


@given(sizes, st.integers(1, 9))
def test_every_tensor_belongs_to_exactly_one_shard(tensors: dict[str, int], count: int) -> None:
    shards = balance(tensors, count)

    assert sorted(name for shard in shards for name in shard) == sorted(tensors)
    assert len(shards) == min(count, len(tensors))


@given(sizes, st.integers(1, 9))
def test_no_shard_exceeds_another_by_more_than_one_tensor(tensors: dict[str, int], count: int) -> None:
    filled = [sum(tensors[name] for name in shard) for shard in balance(tensors, count)]

    assert max(filled) - min(filled) <= max(tensors.values())
