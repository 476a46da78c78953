"""How much of each parent is in the result of a merge, tensor by tensor: measured in one pass over the weights.

Shape suffixes: P parents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kinray.core.methods import Params, method_named
from kinray.core.recipe import Founder, Merge, Recipe, topological
from kinray.core.statistics import Float64
from kinray.engine.export import makings
from kinray.engine.gram import tensor_statistics
from kinray.engine.materialise import Plan
from kinray.engine.workers import Making, memory_for, work_on
from kinray.merge.output import Section


@dataclass(frozen=True)
class Measured:
    """What one tensor tells of a merge's parents.

    Args:
        size: number of its elements.
        weights_P: weights of the parents, where the merge is a weighted sum; else None.
        gram: where it is no weighted sum, (P + 1, P + 1) float64 products of the parents' changes and, last, the child's.
            Changes are from the base; without one from the first parent, whose row is then left out.
    """

    size: int
    weights_P: Float64 | None = None
    gram: Float64 | None = None


def measure(section: Section) -> dict[str, dict[str, Measured]]:
    """Measure all merges of a section: digest of the merge -> name of the tensor -> what it tells.

    Reads no weights where all merges are sums whose weights do not depend on them.
    """
    merges = [node for node in topological([section.recipe]) if isinstance(node, Merge)]
    params = {merge.digest: effective_params(section, merge) for merge in merges}
    found: dict[str, dict[str, Measured]] = {merge.digest: {} for merge in merges}
    plans = {node.digest: section.materialiser.plan(node) for node in merges}
    # Beside what making the result takes, the results of all merges are held.
    making = [
        replace(one, buffers=one.buffers + len(merges)) for one in makings(section.materialiser, section.recipe, "float32")
    ]

    def work(one: Making) -> list[tuple[str, str, Measured]]:
        tensors = _Tensors(section, plans, one.name, keep=[m for m in merges if not _is_sum(m, params[m.digest][one.name])])
        size = int(np.prod(one.shape))
        return [
            (merge.digest, one.name, _measured(merge, params[merge.digest][one.name], tensors.of, size)) for merge in merges
        ]

    def done(results: list[tuple[str, str, Measured]]) -> None:
        for digest, name, measured in results:
            found[digest][name] = measured

    work_on(making, work, memory_for(making, len(section.models.specs)), done=done)
    return found


def effective_params(section: Section, merge: Merge) -> dict[str, Params]:
    """Return the parameters of a merge in each tensor, by name."""
    depths = {name: section.depths[name] for name in section.models.names}
    return dict(zip(depths, method_named(merge.method).per_tensor(merge.params, len(merge.parents), depths), strict=True))


def shares(measured: Sequence[Measured], parents: int) -> Float64:
    """Return the share of each parent in the result, over some tensors in which a merge has the same parameters, (P,) float64.

    Of a weighted sum these are its weights, by the mean over all elements. Else those of the weighted sum of the parents'
    changes that comes closest to the child's change; where there is no base, the first parent's is what they leave of one.
    """
    if measured[0].weights_P is not None:
        weights_TP = np.array([one.weights_P for one in measured])
        mean: Float64 = np.average(weights_TP, axis=0, weights=[max(one.size, 1) for one in measured])
        return mean
    gram: Float64 = np.sum([one.gram for one in measured if one.gram is not None], axis=0)
    if not np.isfinite(gram).all():
        return np.full(parents, np.nan)
    result: Float64 = np.linalg.lstsq(gram[:-1, :-1], gram[:-1, -1], rcond=1e-10)[0].astype(np.float64)
    return result if len(result) == parents else np.concatenate([[1.0 - result.sum()], result])


class _Tensors:
    """One tensor of all founders and merges of a section, each made once."""

    def __init__(self, section: Section, plans: Mapping[str, Plan], name: str, keep: Sequence[Merge]) -> None:
        self._section, self._plans, self._name = section, plans, name
        self._made: dict[str, torch.Tensor] = {}
        root = section.recipe
        if keep:  # one walk gives all that the result is made of
            puts = {merge.digest: self._putting(merge.digest) for merge in keep}
            self._made[root.digest] = section.materialiser.tensor(plans[root.digest], name, torch.float32, puts)

    def of(self, node: Recipe) -> torch.Tensor:
        """Return the tensor of a model: as it is stored, or unrounded."""
        if node.digest not in self._made:
            if isinstance(node, Founder):
                tensor = self._section.models.sources[node.digest].load(self._name).to(self._section.materialiser.device)
            else:
                tensor = self._section.materialiser.tensor(self._plans[node.digest], self._name, torch.float32)
            self._made[node.digest] = tensor
        return self._made[node.digest]

    def _putting(self, digest: str) -> Callable[[str, torch.Tensor], None]:
        return lambda _, tensor: self._made.update({digest: tensor})


def _is_sum(merge: Merge, params: Params) -> bool:
    return method_named(merge.method).is_linear(params)


def _measured(merge: Merge, params: Params, tensor: Callable[[Recipe], torch.Tensor], size: int) -> Measured:
    method = method_named(merge.method)
    if not method.is_linear(params):
        origin = [] if merge.base is None else [merge.base]
        return Measured(size, gram=tensor_statistics([tensor(node) for node in (*origin, *merge.parents, merge)])[2][1:, 1:])
    gram_PP = np.full((len(merge.parents),) * 2, np.nan)
    if method.needs_gram:
        gram_PP = _products([tensor(parent) for parent in merge.parents], None if merge.base is None else tensor(merge.base))
    form = method.form(params, gram_PP, against_base=method.against_base(merge.base is not None))
    return Measured(size, weights_P=np.array(form.parents))


def _products(parents: Sequence[torch.Tensor], base: torch.Tensor | None) -> Float64:
    """Return the (P, P) dot products of the parents' changes from the base, or of their weights."""
    if base is not None:
        return tensor_statistics([base, *parents])[2][1:, 1:]
    gram_PP = tensor_statistics(parents)[2]
    whole_PP = np.eye(len(parents))
    whole_PP[:, 0] = 1.0  # weights are the first parent's and the difference from it
    result: Float64 = whole_PP @ gram_PP @ whole_PP.T
    return result
