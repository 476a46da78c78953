"""Children of parents that are kept on their node: the same bits as without, and fewer merges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kinray.checkpoints.models import Models
from kinray.core.recipe import Merge, Recipe
from kinray.engine.materialise import Materialiser
from kinray.engine.parent_cache import ParentCache
from tests.helpers import family, merge, random_tensors

PLENTY = 1 << 20


class Counting(Materialiser):
    """Counts the tensors that are computed, by the digest of their model."""

    computed: list[str]

    def _blocks(self, node: Merge, *rest: Any) -> Iterator[Tensor]:
        self.computed = [*getattr(self, "computed", []), node.digest]
        return super()._blocks(node, *rest)

    def times(self, node: Recipe) -> int:
        """Tensors of a model computed since the last call."""
        count = self.computed.count(node.digest)
        self.computed = []
        return count


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return family(tmp_path / "models", [random_tensors(seed, dtype=torch.bfloat16) for seed in range(4)])


@pytest.fixture
def cache(tmp_path: Path) -> ParentCache:
    return ParentCache(tmp_path / "cache", PLENTY)


def lineage(models: Models) -> tuple[Merge, Merge, Merge]:
    """Make a parent that is no weighted sum, and two children of it."""
    base, f1, f2, f3 = (spec.founder for spec in models.specs)
    parent = merge("dare_ties", f1, f2, base=base, density=0.5)
    return parent, merge("slerp", parent, f3, t=0.3), merge("ties", parent, f3, base=base, density=0.6)


def bits(maker: Materialiser, recipe: Recipe, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in maker.tensors(recipe, dtype)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_children_have_the_same_bits_with_a_cache_and_without(models: Models, cache: ParentCache, dtype: torch.dtype) -> None:
    maker = Materialiser(models, cache=cache)

    for recipe in (*lineage(models), *lineage(models)):
        assert equal(bits(maker, recipe, dtype), bits(Materialiser(models), recipe, dtype))


def test_second_child_reads_the_parent_that_the_first_one_made(models: Models, cache: ParentCache) -> None:
    maker = Counting(models, cache=cache)
    parent, first, second = lineage(models)

    bits(maker, first)
    assert maker.times(parent) == len(models.names)
    bits(maker, second)

    assert maker.times(parent) == 0
    assert cache.has(parent.digest)
    assert not cache.has(first.digest)


def test_another_process_s_cache_of_the_same_folder_is_read(models: Models, cache: ParentCache) -> None:
    parent, first, second = lineage(models)
    bits(Materialiser(models, cache=cache), first)
    maker = Counting(models, cache=ParentCache(cache.folder, PLENTY))

    found = bits(maker, second)

    assert maker.times(parent) == 0
    assert equal(found, bits(Materialiser(models), second))


def test_weighted_sums_of_founders_are_never_kept(models: Models, cache: ParentCache) -> None:
    base, f1, f2, f3 = (spec.founder for spec in models.specs)
    parent = merge("linear", f1, f2)

    bits(Materialiser(models, cache=cache), merge("ties", parent, f3, base=base, density=0.5))

    assert list(cache.folder.glob("*.safetensors")) == []


def test_model_itself_is_computed_though_it_is_kept(models: Models, cache: ParentCache) -> None:
    maker = Counting(models, cache=cache)
    parent, first, _ = lineage(models)
    bits(maker, first)
    maker.times(parent)

    rounded = bits(maker, parent, torch.bfloat16)

    assert maker.times(parent) == len(models.names)
    assert equal(rounded, bits(Materialiser(models), parent, torch.bfloat16))


def test_eviction_after_the_plan_costs_a_merge_and_no_bit(models: Models, cache: ParentCache) -> None:
    parent, first, second = lineage(models)
    maker = Counting(models, cache=cache)
    bits(maker, first)
    plan = maker.plan(second)
    maker.times(parent)
    assert plan.kept == {parent.digest}

    cache.clear()
    found = {name: maker.tensor(plan, name, torch.float32) for name in models.names}

    assert maker.times(parent) == len(models.names)
    assert equal(found, bits(Materialiser(models), second))


def test_parents_that_push_each_other_out_are_still_right(models: Models, tmp_path: Path) -> None:
    base, f1, f2, f3 = (spec.founder for spec in models.specs)
    parents = [merge("dare_ties", f1, f2, base=base, density=density) for density in (0.3, 0.5, 0.7)]
    children = [merge("slerp", parent, other) for parent in parents for other in (*parents, f3) if parent is not other]
    room = 2 * 4 * models.parameters  # for two files without their headers, so for one
    maker = Materialiser(models, cache=ParentCache(tmp_path / "cache", room))

    for child in children * 2:
        assert equal(bits(maker, child), bits(Materialiser(models), child))


def test_consumer_that_stops_half_way_leaves_nothing(models: Models, cache: ParentCache) -> None:
    parent, first, _ = lineage(models)
    tensors = Materialiser(models, cache=cache).tensors(first, torch.float32)

    next(tensors)
    assert [path.suffix for path in cache.folder.glob(".*.tmp")] == [".tmp"]
    tensors.close()  # type: ignore[attr-defined]

    assert not cache.has(parent.digest)
    assert [path.name for path in cache.folder.iterdir() if not path.name.startswith((".lock", ".users"))] == []


def test_some_tensors_of_a_child_keep_no_parent(models: Models, cache: ParentCache) -> None:
    parent, first, _ = lineage(models)

    dict(Materialiser(models, cache=cache).tensors(first, torch.float32, models.names[:1]))

    assert not cache.has(parent.digest)
