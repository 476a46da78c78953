"""Turn recipes into weights, tensor by tensor, from the founders' files.

A recipe of linear-family merges, however deep, is one weighted sum of founders. Any other merge is computed from its parents,
unrounded; only the tensor at hand and the parents it needs are in memory. The cast to the output dtype comes once, at the end.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from kinray.checkpoints.models import Models
from kinray.core.algebra import Products, is_linear, linear_rows
from kinray.core.layers import depths
from kinray.core.masks import HashedMasks
from kinray.core.methods import method_named
from kinray.core.recipe import Founder, Merge, Recipe, topological
from kinray.core.statistics import Float64, Statistics
from kinray.engine.gram import gram_pass, tensor_statistics
from kinray.errors import RecipeError

_BLOCK = 1 << 18


class Materialiser:
    """Computes children's tensors from mapped founders.

    Not thread-safe. Same recipe, same bits, wherever it runs on one type of device.

    Args:
        models: the base and the founders.
        statistics: their Gram matrices, which the angle of slerp follows from; computed when first needed if not given.
        device: where to compute.
    """

    def __init__(self, models: Models, statistics: Statistics | None = None, device: str = "cpu") -> None:
        self.models = models
        self.device = torch.device(device)
        self.statistics = statistics
        self._index = {digest: number for number, digest in enumerate(models.digests)}
        self._depths = depths(models.names)

    def tensors(
        self, recipe: Recipe, dtype: torch.dtype, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and contents of each tensor of a model, in ``dtype`` on the device.

        Raises:
            RecipeError: when the recipe needs a founder that is not among the models, takes deltas against another base,
                or has parameters that a method does not take.
        """
        plan = self._plan(recipe)
        rows = {node.digest: self._collapse(node) for node in plan if isinstance(node, Merge) and is_linear(node)}
        for name in self.models.names if names is None else names:
            yield name, self._run(plan, rows, name).to(dtype)

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
        import numpy as np

        return Products(total, square, np.stack(dots))

    def dot(self, a: Recipe, b: Recipe, names: Sequence[str]) -> float:
        """Measure the dot product of two children's deltas over the named tensors."""
        base = self.models.digests[0]
        both = zip(self.tensors(a, torch.float32, names), self.tensors(b, torch.float32, names), strict=True)
        return float(sum(tensor_statistics([self._load(base, name), x, y])[2][1, 2] for (name, x), (_, y) in both))

    def _load(self, digest: str, name: str) -> torch.Tensor:
        return self.models.sources[digest].load(name).to(self.device)

    # -- what to compute

    def _plan(self, recipe: Recipe) -> list[Recipe]:
        """List what must be computed, parents first: the recipe, and the ancestors that no collapse makes needless."""
        for node in topological([recipe]):
            if isinstance(node, Founder) and node.digest not in self._index:
                raise RecipeError(f"The recipe needs founder '{node.name}' ({node.digest[:12]}), which is not given.")
            if isinstance(node, Merge) and node.base is not None and self._index[node.base.digest] != 0:
                raise RecipeError(
                    f"A '{node.method}' of the recipe takes deltas against '{node.base.name}' ({node.base.digest[:12]}), "
                    f"but the base is '{self.models.base.name}'."
                )
            if isinstance(node, Merge):  # errors come before any work
                method_named(node.method).per_tensor(node.params, len(node.parents), self._depths)
        needed: dict[str, Recipe] = {}
        stack = [recipe]
        while stack:
            node = stack.pop()
            if node.digest not in needed:
                needed[node.digest] = node
                if isinstance(node, Merge) and not is_linear(node):
                    stack.extend(node.parents)
        return [node for node in topological([recipe]) if node.digest in needed]

    def _collapse(self, recipe: Merge) -> Float64:
        """Return (T, M) coefficients of the child's δ on [θ0, δ1 … δN], over all names."""
        import numpy as np

        turns = any(isinstance(n, Merge) and method_named(n.method).needs_gram for n in topological([recipe]))
        if turns and self.statistics is None:
            self.statistics = gram_pass(self.models, self.models.names)
        size = len(self.models.digests)
        if self.statistics is None:
            gram = np.full((len(self.models.names), size, size), np.nan)
        else:
            gram = self.statistics.take(self.models.names).gram_TMM
        return linear_rows(recipe, self._depths, gram, self._index, {})[recipe.digest]

    # -- one tensor

    def _run(self, plan: Sequence[Recipe], rows: Mapping[str, Float64], name: str) -> torch.Tensor:
        uses = Counter(parent.digest for node in plan if node.digest not in rows for parent in getattr(node, "parents", ()))
        made: dict[str, torch.Tensor] = {}
        for node in plan:
            made[node.digest] = self._compute(node, rows, name, made)
            if isinstance(node, Merge) and node.digest not in rows:
                for parent in node.parents:
                    uses[parent.digest] -= 1
                    if not uses[parent.digest]:
                        made.pop(parent.digest, None)
        return made[plan[-1].digest]

    def _compute(self, node: Recipe, rows: Mapping[str, Float64], name: str, made: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(node, Founder):
            return self._load(node.digest, name)
        if node.digest in rows:
            return self._weighted_sum(rows[node.digest][self.models.names.index(name)], name)
        method = method_named(node.method)
        against_base = method.against_base(node.base is not None)
        base = self._load(self.models.digests[0], name).float() if against_base else None
        parents = [made[parent.digest].float() for parent in node.parents]
        params = method.at(node.params, name, self._depths[name])
        return method.merge(base, parents, params, HashedMasks(node.digest, name))

    def _weighted_sum(self, row_m: Float64, name: str) -> torch.Tensor:
        """Compute θ0 + Σ rᵢ·[θ0, δ1 … δN]ᵢ in float32, block by block."""
        base = self._load(self.models.digests[0], name)
        terms = [
            (float(weight), self._load(digest, name).reshape(-1))
            for weight, digest in zip(row_m[1:], self.models.digests[1:], strict=True)
            if weight
        ]
        flat, scale = base.reshape(-1), 1.0 + float(row_m[0])
        out = torch.empty(flat.numel(), dtype=torch.float32, device=self.device)
        step = _BLOCK if self.device.type == "cpu" else max(1, flat.numel())
        for start in range(0, flat.numel(), step):
            at = slice(start, start + step)
            theta = flat[at].float()
            block = out[at].copy_(theta)
            if scale != 1.0:
                block.mul_(scale)
            for weight, term in terms:
                block.add_(term[at].float().sub_(theta) if term.dtype != torch.float32 else term[at] - theta, alpha=weight)
        return out.reshape(base.shape)
