"""Methods that find their weights in the deltas: SCE, Model Stock and Reinforced Agent Merging."""

import math
from collections.abc import Callable, Iterator
from itertools import combinations

import numpy as np
import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.blocks import Operands
from kinray.core.methods.consensus import add_agreeing, elect
from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.methods.linear import number
from kinray.core.methods.selection import keep_middle
from kinray.core.statistics import Float64

_EPSILON = Parameter("epsilon", 1e-5, "change up to which a weight counts as unchanged", low=0.0)


# -- SCE


def _sce(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """Select positions by variance, weigh parents by energy, erase minority signs (SCE, section 3.2).

    mergekit weighs parents equally where mean squares add up to less than 1e-6, which is most tensors of a real fine-tune;
    this does so only where all deltas are zero.
    """
    share = number(params["select_topk"])
    kept = None if share >= 1.0 else _of_most_variance(operands, share)
    energies = [0.0] * len(operands)
    for _, rows in _selected(operands, kept):
        for parent, row in enumerate(rows):
            energies[parent] += float(row.square().sum(dtype=torch.float64))
    total = math.fsum(energies)
    weights = [energy / total if total > 0.0 else 1.0 / len(energies) for energy in energies]
    for at, rows in _selected(operands, kept):
        signs = elect(rows)
        weighted = [row.mul_(weight) for row, weight in zip(rows, weights, strict=True)]
        yield add_agreeing(weighted, weights, signs, normalize=True).add_(operands.base(at))


def _selected(operands: Operands, kept: torch.Tensor | None) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Yield the deltas of each block, zero where they are not kept."""
    for at in operands.blocks():
        rows = operands.deltas(at)
        yield at, rows if kept is None else [row.mul_(kept[at]) for row in rows]


def _of_most_variance(operands: Operands, share: float) -> torch.Tensor:
    """Mark ⌊share·m⌋ positions, where m counts those with any variance; among equals the lowest index stays.

    Returns:
        (n,) bool.
    """
    count, varied = operands.numel, 0
    for at in operands.blocks():
        varied += int(torch.count_nonzero(_variance(operands, at)))
    rule = keep_middle(operands, lambda at: _variance(operands, at), count - int(share * varied), 0)
    kept = torch.zeros(count, dtype=torch.bool, device=operands.device)
    for at in operands.blocks():
        torch.ne(rule(_variance(operands, at), at), 0.0, out=kept[at])
    return kept


def _variance(operands: Operands, at: slice) -> torch.Tensor:
    rows = operands.deltas(at)
    mean = sum(rows[1:], rows[0]) / len(rows)
    variance = torch.zeros_like(mean)
    for row in rows:
        variance.add_(row.sub_(mean).square_())
    return variance


# -- Model Stock


def _stock_ratio(cosine: float, parents: int) -> float:
    """Return t = N·cosθ / (1 + (N − 1)·cosθ) (Model Stock, section 4.1).

    It interpolates between the base and the mean for angles up to 90°. Beyond that mergekit goes on to negative and
    unbounded values; this returns 0, the base.
    """
    return parents * max(cosine, 0.0) / (1.0 + (parents - 1) * max(cosine, 0.0))


def _model_stock(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    """Weigh the mean by the angle between deltas, over all pairs.

    mergekit takes products of norms below 1e-6 for 1e-6, so that small deltas look orthogonal; this does not.
    """
    norms = np.sqrt(np.maximum(np.diag(gram_PP), 0.0))
    pairs = list(combinations(range(parents), 2))
    cosines = [gram_PP[i, j] / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0 for i, j in pairs]
    return (_stock_ratio(min(1.0, math.fsum(cosines) / len(pairs)), parents) / parents,) * parents


def _model_stock_by_row(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """Take the angle for each row along the last axis by itself, with all else as for whole tensors."""
    parents, width = len(operands), operands.width
    pairs = list(combinations(range(parents), 2))
    for at in operands.blocks(whole=width):
        deltas = [row.view(-1, width) for row in operands.deltas(at)]
        norms = [delta.square().sum(-1, keepdim=True, dtype=torch.float64).sqrt() for delta in deltas]
        total = torch.zeros_like(norms[0])
        for i, j in pairs:
            product = norms[i] * norms[j]
            dot = (deltas[i] * deltas[j]).sum(-1, keepdim=True, dtype=torch.float64)
            total += torch.where(product > 0.0, dot / product, 0.0)
        cosine = (total / len(pairs)).clamp(0.0, 1.0)
        ratio = cosine / (1.0 + (parents - 1) * cosine)
        yield (sum(deltas[1:], deltas[0]) * ratio.float()).view(-1).add_(operands.base(at))


# -- Reinforced Agent Merging


def _ram(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """Average what several parents changed, and keep whole what only one of them changed (RAM, section 4)."""
    return _add_shared_and_unique(operands, number(params["epsilon"]), lambda shared, unique: 1.0)


def _ramplus(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """As RAM, with a parent's own changes scaled by 1 + r·min(alpha, shared/own), counted in this tensor (RAM+)."""
    r, alpha = number(params["r"]), number(params["alpha"])
    return _add_shared_and_unique(
        operands, number(params["epsilon"]), lambda shared, unique: 1.0 + r * min(alpha, shared / max(unique, 1))
    )


def _add_shared_and_unique(operands: Operands, epsilon: float, scale: Callable[[int, int], float]) -> Iterator[torch.Tensor]:
    """Add deltas; ``scale`` gives the factor on what a parent alone changed, from the counts of its shared and own changes."""
    changes, own = [0] * len(operands), [0] * len(operands)
    for at in operands.blocks():
        _, changed, counts = _changes(operands, epsilon, at)
        for parent, mask in enumerate(changed):
            changes[parent] += int(mask.sum())
            own[parent] += int((mask * (counts == 1)).sum())
    factors = [scale(both - alone, alone) for both, alone in zip(changes, own, strict=True)]
    for at in operands.blocks():
        rows, changed, counts = _changes(operands, epsilon, at)
        alone = (counts == 1).float()
        shared = (1.0 - alone).div_(counts.clamp_(min=1.0))
        merged = torch.zeros_like(rows[0])
        for row, mask, factor in zip(rows, changed, factors, strict=True):
            merged.add_(row.mul_(mask).mul_(shared + factor * alone))
        yield merged.add_(operands.base(at))


def _changes(operands: Operands, epsilon: float, at: slice) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Return the deltas of a block, 1 for each element that a parent changed (else 0), and by how many each was changed."""
    rows = operands.deltas(at)
    changed = [(row.abs() > epsilon).float() for row in rows]
    counts: torch.Tensor = sum(changed[1:], changed[0])
    return rows, changed, counts.clone() if len(changed) == 1 else counts


SCE = Method(
    "sce",
    (Parameter("select_topk", 1.0, "share of positions with most variance that is kept", low=0.0, high=1.0),),
    "Wan et al., FuseChat, arXiv 2408.07990",
    blocks=_sce,
    buffers=1,
    uses_base=True,
)
MODEL_STOCK = Method(
    "model_stock",
    (Parameter("filter_wise", False, "one angle for each row, not for the tensor"),),
    "Jang et al., Model Stock, arXiv 2403.19522",
    weights=_model_stock,
    blocks=_model_stock_by_row,
    uses_base=True,
    needs_gram=True,
    linear_when=lambda params: params["filter_wise"] is False,
    min_parents=2,
)
RAM = Method(
    "ram", (_EPSILON,), "Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572", blocks=_ram, uses_base=True
)
RAMPLUS_TL = Method(
    "ramplus_tl",
    (
        Parameter("r", 0.1, "how much more of what only one model changed", low=0.0),
        Parameter("alpha", 0.2, "largest ratio of shared to own changes that counts", low=0.0),
        _EPSILON,
    ),
    "Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572, scaled tensor by tensor",
    blocks=_ramplus,
    uses_base=True,
)
