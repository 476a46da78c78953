"""Turn recipes into weights, tensor by tensor, from the founders' files.

A recipe of linear-family merges, however deep, is one weighted sum of founders. Any other merge is computed from its parents,
unrounded; only the tensor at hand and the parents it needs are in memory. The cast to the output dtype comes once, at the end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch

from kinray.checkpoints.models import Models
from kinray.core.algebra import Products, is_linear, linear_rows
from kinray.core.layers import depths
from kinray.core.masks import HashedMasks
from kinray.core.methods import method_named, read_blocks, write_blocks
from kinray.core.methods.blocks import Operands, weighted_sum
from kinray.core.recipe import Founder, Merge, Recipe, topological
from kinray.core.statistics import Float64, Statistics
from kinray.engine.gram import tensor_statistics
from kinray.engine.parent_cache import ParentCache, Put
from kinray.errors import RecipeError


@dataclass(frozen=True)
class Plan:
    """What must be computed for a model, the same for every tensor.

    Args:
        nodes: the model, and the ancestors that no collapse makes needless, parents first.
        linear: those of them that are weighted sums of founders.
        kept: those of them that are read from the cache.
        rows: (T, M) coefficients of their δ on [θ0, δ1 … δN] by digest; empty where they follow from each tensor's angles.
    """

    nodes: tuple[Recipe, ...]
    linear: frozenset[str]
    kept: frozenset[str]
    rows: Mapping[str, Float64]

    @property
    def buffers(self) -> int:
        """Float32 copies of a whole tensor that computing one takes at most, the result apart."""
        uses = Counter(parent.digest for node in self.applied for parent in node.parents)
        living: set[str] = set()
        most = 0
        for node in self.nodes:
            if not isinstance(node, Merge):
                continue
            applied = node.digest not in self.linear | self.kept
            most = max(most, len(living) + (method_named(node.method).buffers if applied else 0))
            living.add(node.digest)
            for parent in node.parents if applied else ():
                uses[parent.digest] -= 1
                if not uses[parent.digest]:
                    living.discard(parent.digest)
        return most

    @property
    def applied(self) -> list[Merge]:
        """Those that are computed from their parents' tensors."""
        return [node for node in self.nodes if isinstance(node, Merge) and node.digest not in self.linear | self.kept]


class Materialiser:
    """Computes children's tensors from mapped founders.

    Same recipe, same bits, wherever it runs on one type of device. ``tensor`` may be called from several threads.

    Args:
        models: the base and the founders.
        statistics: their Gram matrices, which the angle of slerp follows from; measured tensor by tensor if not given.
        device: where to compute.
        tensor_depths: how deep each tensor lies, 0 to 1, where it does not follow from the names of the models' tensors.
        cache: keeps the weights of parents that are no weighted sums, so that a deep lineage costs one merge.
    """

    def __init__(
        self,
        models: Models,
        statistics: Statistics | None = None,
        device: str = "cpu",
        tensor_depths: Mapping[str, float] | None = None,
        cache: ParentCache | None = None,
    ) -> None:
        self.models = models
        self.device = torch.device(device)
        self.statistics = statistics
        self._cache = cache
        self._index = {digest: number for number, digest in enumerate(models.digests)}
        self._place = {name: number for number, name in enumerate(models.names)}
        self._depths = depths(models.names) if tensor_depths is None else tensor_depths

    def tensors(
        self, recipe: Recipe, dtype: torch.dtype, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and contents of each tensor of a model, in ``dtype`` on the device.

        Raises:
            RecipeError: as ``plan``.
        """
        plan = self.plan(recipe)
        with ExitStack() as stack:
            keep = {} if names is not None else self._keeping(plan, stack)
            for name in self.models.names if names is None else names:
                yield name, self.tensor(plan, name, dtype, keep)

    def plan(self, recipe: Recipe, *, cached: bool = True) -> Plan:
        """Check a recipe and say what must be computed.

        Args:
            recipe: the model.
            cached: whether parents may come from the cache.

        Raises:
            RecipeError: when the recipe needs a founder that is not among the models, takes deltas against another base,
                or has parameters that a method does not take.
        """
        order = topological([recipe])
        for node in order:
            self._check(node)
        needed, kept = {recipe.digest}, set()
        stack = [recipe]
        while stack:
            node = stack.pop()
            if not isinstance(node, Merge) or is_linear(node):
                continue
            if cached and node is not recipe and self._cache is not None and self._cache.has(node.digest):
                kept.add(node.digest)
                continue
            stack.extend(parent for parent in node.parents if parent.digest not in needed)
            needed.update(parent.digest for parent in node.parents)
        nodes = tuple(node for node in order if node.digest in needed)
        linear = {node.digest: node for node in nodes if isinstance(node, Merge) and is_linear(node)}
        if self.statistics is None and _turns(linear.values()):
            return Plan(nodes, frozenset(linear), frozenset(kept), {})
        gram_TMM = self._gram() if linear else np.empty(0)
        rows = {digest: self._rows(node, self.models.names, gram_TMM) for digest, node in linear.items()}
        return Plan(nodes, frozenset(linear), frozenset(kept), rows)

    def tensor(self, plan: Plan, name: str, dtype: torch.dtype, keep: Mapping[str, Put] = MappingProxyType({})) -> torch.Tensor:
        """Compute one tensor of a model, in ``dtype`` on the device.

        Args:
            plan: of the model.
            name: of the tensor.
            dtype: of the result.
            keep: told of the tensors of some ancestors, by their digest.
        """
        if isinstance(plan.nodes[-1], Founder):
            return self._load(plan.nodes[-1].digest, name).to(dtype)
        out = torch.empty(self.models.base.tensors[name].shape, dtype=dtype, device=self.device)
        return write_blocks(out, self.blocks(plan, name, keep))

    def blocks(self, plan: Plan, name: str, keep: Mapping[str, Put] = MappingProxyType({})) -> Iterator[torch.Tensor]:
        """Compute one tensor of a model, and yield its elements in flat order; a block holds until the next.

        They are float32, or as they are stored where the model is a founder.

        Args:
            plan: of the model.
            name: of the tensor.
            keep: told of the tensors of some ancestors, by their digest.
        """
        rows = {digest: row_TM[self._place[name]] for digest, row_TM in plan.rows.items()}
        if len(rows) < len(plan.linear):
            gram_MM = tensor_statistics([self._load(digest, name) for digest in self.models.digests])[2]
            rows = {
                node.digest: self._rows(node, [name], gram_MM[None])[0] for node in plan.nodes if node.digest in plan.linear
            }
        uses = Counter(parent.digest for node in plan.applied for parent in node.parents)
        made: dict[str, torch.Tensor] = {}
        *ancestors, root = plan.nodes
        for node in ancestors:
            if node.digest in plan.kept:
                made[node.digest] = self._from_cache(node, name)
                continue
            made[node.digest] = self._whole(node, rows, name, made)
            if node.digest in keep:
                keep[node.digest](name, made[node.digest])
            for parent in node.parents if isinstance(node, Merge) and node.digest not in rows else ():
                uses[parent.digest] -= 1
                if not uses[parent.digest]:
                    made.pop(parent.digest, None)
        if isinstance(root, Founder):
            return read_blocks(self._load(root.digest, name))
        return self._blocks(root, rows, name, made)

    def products(self, recipe: Recipe, names: Sequence[str]) -> Products:
        """Measure a child's products with the base and the founders over the named tensors.

        Returns:
            sums over the named tensors, and dots_TM in their order.
        """
        dots, total, square = [], 0.0, 0.0
        for name, child in self.tensors(recipe, torch.float32, names):
            _, sums, gram = tensor_statistics([*(self._load(digest, name) for digest in self.models.digests), child])
            dots.append(gram[-1, :-1])
            total, square = total + float(sums[-1]), square + float(gram[-1, -1])
        return Products(total, square, np.stack(dots))

    def dot(self, a: Recipe, b: Recipe, names: Sequence[str]) -> float:
        """Measure the dot product of two children's deltas over the named tensors."""
        base = self.models.digests[0]
        both = zip(self.tensors(a, torch.float32, names), self.tensors(b, torch.float32, names), strict=True)
        return float(sum(tensor_statistics([self._load(base, name), x, y])[2][1, 2] for (name, x), (_, y) in both))

    def _load(self, digest: str, name: str) -> torch.Tensor:
        return self.models.sources[digest].load(name).to(self.device)

    # -- the cache

    def _keeping(self, plan: Plan, stack: ExitStack) -> dict[str, Put]:
        """Open the cache for the parents of a model that it does not have yet."""
        if self._cache is None:
            return {}
        root, tensors = plan.nodes[-1], self.models.base.tensors
        shapes = {name: tensors[name].shape for name in self.models.names}
        parents = {parent.digest for parent in getattr(root, "parents", ())} & {node.digest for node in plan.applied[:-1]}
        opened = {digest: stack.enter_context(self._cache.writing(digest, shapes)) for digest in sorted(parents)}
        return {digest: put for digest, put in opened.items() if put is not None}

    def _from_cache(self, node: Recipe, name: str) -> torch.Tensor:
        tensor = None if self._cache is None else self._cache.load(node.digest, name)
        if tensor is None:  # it was evicted, and not asked for over a long time
            return self.tensor(self.plan(node, cached=False), name, torch.float32)
        return tensor.to(self.device)

    # -- what to compute

    def _check(self, node: Recipe) -> None:
        if isinstance(node, Founder):
            if node.digest not in self._index:
                raise RecipeError(f"The recipe needs founder '{node.name}' ({node.digest[:12]}), which is not given.")
            return
        if node.base is not None and self._index.get(node.base.digest) != 0:
            raise RecipeError(
                f"A '{node.method}' of the recipe takes deltas against '{node.base.name}' ({node.base.digest[:12]}), "
                f"but the base is '{self.models.base.name}'."
            )
        method_named(node.method).per_tensor(node.params, len(node.parents), self._depths)

    def _gram(self) -> Float64:
        """Return the (T, M, M) products of all tensors, or as many NaN where no angle is asked for."""
        if self.statistics is not None:
            return self.statistics.take(self.models.names).gram_TMM
        return np.full((len(self.models.names), len(self.models.digests), len(self.models.digests)), np.nan)

    def _rows(self, node: Recipe, names: Sequence[str], gram_TMM: Float64) -> Float64:
        """Return (T, M) coefficients of a linear-family model's δ on [θ0, δ1 … δN] for T names."""
        return linear_rows(node, {name: self._depths[name] for name in names}, gram_TMM, self._index, {})[node.digest]

    # -- one tensor

    def _whole(self, node: Recipe, rows: Mapping[str, Float64], name: str, made: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute a tensor that another is made of: as it is stored, or unrounded."""
        if isinstance(node, Founder):
            return self._load(node.digest, name)
        out = torch.empty(self.models.base.tensors[name].shape, dtype=torch.float32, device=self.device)
        return write_blocks(out, self._blocks(node, rows, name, made))

    def _blocks(
        self, node: Merge, rows: Mapping[str, Float64], name: str, made: Mapping[str, torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        base = self._load(self.models.digests[0], name)
        if node.digest in rows:
            return self._weighted_sum(rows[node.digest], base, name)
        method = method_named(node.method)
        parents = [made[parent.digest] for parent in node.parents]
        against = base if method.against_base(node.base is not None) else None
        masks = HashedMasks(node.seed or node.digest, name)
        return method.child(against, parents, method.at(node.params, name, self._depths[name]), masks)

    def _weighted_sum(self, row_M: Float64, base: torch.Tensor, name: str) -> Iterator[torch.Tensor]:
        """Compute θ0 + Σ rᵢ·[θ0, δ1 … δN]ᵢ."""
        used = [number for number in range(1, len(row_M)) if row_M[number]]
        founders = [self._load(self.models.digests[number], name) for number in used]
        operands = Operands(base, founders or [base])
        weights = [float(row_M[number]) for number in used] or [0.0]
        return weighted_sum(operands, 1.0 + float(row_M[0]), weights)


def _turns(models: Iterable[Recipe]) -> bool:
    """Tell whether weights of one of the merges follow from its parents' angles."""
    return any(isinstance(node, Merge) and method_named(node.method).needs_gram for node in topological(models))
