"""Methods that drop most of each delta before they add them: TIES and DARE with TIES' sign election."""

from collections.abc import Sequence

import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.methods.linear import LAMBDA, WEIGHT, number, numbers

DENSITY = Parameter("density", 1.0, "share of this model's delta that is kept", low=0.0, high=1.0, per_model=True)


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Zero all but the ⌊density·n⌋ elements of largest magnitude; among equals the lowest index stays.

    Args:
        delta: float32 of n elements.
        density: from 0 to 1.
    """
    if density >= 1.0:
        return delta
    size = delta.reshape(-1).abs()
    count = int(density * size.numel())
    if count == 0:
        return torch.zeros_like(delta)
    threshold = torch.kthvalue(size, size.numel() - count + 1).values
    keep = size > threshold
    ties = torch.nonzero(size == threshold).reshape(-1)
    keep[ties[: count - int(keep.sum())]] = True
    return torch.where(keep.reshape(delta.shape), delta, 0.0)


def drop_at_random(delta: torch.Tensor, density: float, parent: int, masks: MaskSource, *, rescale: bool) -> torch.Tensor:
    """Keep each element with probability ``density`` and, with ``rescale``, divide it by that (DARE, equation 2)."""
    if density >= 1.0:
        return delta
    keep = masks.uniform(parent, delta.numel(), delta.device).reshape(delta.shape) < density
    return torch.where(keep, delta / density if rescale and density > 0.0 else delta, 0.0)


def elect_and_add(deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """Add weighted deltas where they agree with the sign of their sum (TIES, section 3.1: elect, disjoint merge).

    With ``normalize`` an element is divided by the weights of those that agreed on it, so a delta that was dropped
    there does not dilute the others.
    """
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    positive = torch.stack(weighted).sum(0) >= 0
    total = torch.zeros_like(weighted[0])
    share = torch.zeros_like(weighted[0])
    for term, weight in zip(weighted, weights, strict=True):
        agrees = (term != 0) & ((term > 0) == positive)
        total += torch.where(agrees, term, 0.0)
        share += agrees * weight
    return total / torch.where(share.abs() < 1e-8, 1.0, share) if normalize else total


def _ties(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    densities = numbers(params["density"])
    deltas = [keep_largest(parent - base, density) for parent, density in zip(parents, densities, strict=True)]
    merged = elect_and_add(deltas, numbers(params["weight"]), normalize=bool(params["normalize"]))
    return base + number(params["lambda"]) * merged


def _dare_ties(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    deltas = [
        drop_at_random(parent - base, density, index, masks, rescale=bool(params["rescale"]))
        for index, (parent, density) in enumerate(zip(parents, numbers(params["density"]), strict=True))
    ]
    merged = elect_and_add(deltas, numbers(params["weight"]), normalize=bool(params["normalize"]))
    return base + number(params["lambda"]) * merged


TIES = Method(
    "ties",
    (WEIGHT, DENSITY, LAMBDA, Parameter("normalize", True, "divide each element by the weights that agreed on it")),
    "Yadav et al., TIES-Merging, arXiv 2306.01708",
    tensors=_ties,
    uses_base=True,
)
DARE_TIES = Method(
    "dare_ties",
    (
        WEIGHT,
        DENSITY,
        LAMBDA,
        Parameter("normalize", False, "divide each element by the weights that agreed on it"),
        Parameter("rescale", True, "divide what is kept by the density"),
    ),
    "Yu et al., Language models are super mario, arXiv 2311.03099, with the sign election of TIES",
    tensors=_dare_ties,
    uses_base=True,
)
