"""Methods that find their weights in the deltas: SCE, Model Stock and Reinforced Agent Merging."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.consensus import add_agreeing, elect
from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.methods.linear import number
from kinray.core.methods.selection import keep_middle
from kinray.core.statistics import Float64

_EPSILON = Parameter("epsilon", 1e-5, "change up to which a weight counts as unchanged", low=0.0)


# -- SCE


def _sce(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    """Select positions by variance, weigh parents by energy, erase minority signs (SCE, section 3.2).

    mergekit weighs parents equally where mean squares add up to less than 1e-6, which is most tensors of a real fine-tune;
    this does so only where all deltas are zero.
    """
    deltas = [parent - base for parent in parents]
    if number(params["select_topk"]) < 1.0:
        keep = _of_most_variance(deltas, number(params["select_topk"]))
        deltas = [torch.where(keep, delta, 0.0) for delta in deltas]
    energies = [float(delta.square().sum(dtype=torch.float64)) for delta in deltas]
    total = math.fsum(energies)
    weights = [energy / total if total > 0.0 else 1.0 / len(deltas) for energy in energies]
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    return base + add_agreeing(weighted, weights, elect(deltas), normalize=True)


def _of_most_variance(deltas: Sequence[torch.Tensor], share: float) -> torch.Tensor:
    """Mark ⌊share·m⌋ positions, where m counts those with any variance; among equals the lowest index stays."""
    mean = sum(deltas[1:], deltas[0]) / len(deltas)
    variance = torch.zeros_like(mean)
    for delta in deltas:
        variance += (delta - mean).square_()
    flat = variance.reshape(-1)
    kept = int(share * int(torch.count_nonzero(flat)))
    return keep_middle(flat, flat.numel() - kept, 0).reshape(variance.shape)


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


def _model_stock_by_row(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    """Take the angle for each row along the last axis by itself, with all else as for whole tensors."""
    deltas = [(parent - base).reshape(base.shape or (1,)) for parent in parents]
    norms = [delta.square().sum(-1, keepdim=True, dtype=torch.float64).sqrt() for delta in deltas]
    total = torch.zeros_like(norms[0])
    pairs = list(combinations(range(len(deltas)), 2))
    for i, j in pairs:
        product = norms[i] * norms[j]
        dot = (deltas[i] * deltas[j]).sum(-1, keepdim=True, dtype=torch.float64)
        total += torch.where(product > 0.0, dot / product, 0.0)
    cosine = (total / len(pairs)).clamp(0.0, 1.0)
    ratio = cosine / (1.0 + (len(deltas) - 1) * cosine)
    return base + (sum(deltas[1:], deltas[0]) * ratio.float()).reshape(base.shape)


# -- Reinforced Agent Merging


def _ram(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    """Average what several parents changed, and keep whole what only one of them changed (RAM, section 4)."""
    return _add_shared_and_unique(base, parents, number(params["epsilon"]), lambda shared, unique: 1.0)


def _ramplus(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    """As RAM, with a parent's own changes scaled by 1 + r·min(alpha, shared/own), counted in this tensor (RAM+)."""
    r, alpha = number(params["r"]), number(params["alpha"])
    return _add_shared_and_unique(
        base, parents, number(params["epsilon"]), lambda shared, unique: 1.0 + r * min(alpha, shared / max(unique, 1))
    )


def _add_shared_and_unique(
    base: torch.Tensor, parents: Sequence[torch.Tensor], epsilon: float, scale: Callable[[int, int], float]
) -> torch.Tensor:
    counts = torch.zeros_like(base)
    for parent in parents:
        counts += (parent - base).abs_() > epsilon
    merged = torch.zeros_like(base)
    for parent in parents:
        delta = parent - base
        changed = delta.abs() > epsilon
        alone = changed & (counts == 1)
        own = int(alone.sum())
        factor = torch.where(alone, scale(int(changed.sum()) - own, own), 1.0 / counts.clamp(min=1))
        merged += torch.where(changed, delta * factor, 0.0)
    return base + merged


SCE = Method(
    "sce",
    (Parameter("select_topk", 1.0, "share of positions with most variance that is kept", low=0.0, high=1.0),),
    "Wan et al., FuseChat, arXiv 2408.07990",
    tensors=_sce,
    uses_base=True,
)
MODEL_STOCK = Method(
    "model_stock",
    (Parameter("filter_wise", False, "one angle for each row, not for the tensor"),),
    "Jang et al., Model Stock, arXiv 2403.19522",
    weights=_model_stock,
    tensors=_model_stock_by_row,
    uses_base=True,
    needs_gram=True,
    linear_when=lambda params: params["filter_wise"] is False,
    min_parents=2,
)
RAM = Method(
    "ram", (_EPSILON,), "Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572", tensors=_ram, uses_base=True
)
RAMPLUS_TL = Method(
    "ramplus_tl",
    (
        Parameter("r", 0.1, "how much more of what only one model changed", low=0.0),
        Parameter("alpha", 0.2, "largest ratio of shared to own changes that counts", low=0.0),
        _EPSILON,
    ),
    "Behavior knowledge merge in reinforced agentic models, arXiv 2601.13572, scaled tensor by tensor",
    tensors=_ramplus,
    uses_base=True,
)
