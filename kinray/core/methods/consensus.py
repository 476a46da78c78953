"""How deltas are added: all of them, or those that agree on a sign."""

from collections.abc import Sequence

import torch

_SMALLEST_SHARE = 1e-8


def add_all(deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """Add weighted deltas; with ``normalize`` divide by the sum of the weights, unless that is zero."""
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    share = sum(weights)
    return total.div_(share) if normalize and abs(share) >= _SMALLEST_SHARE else total


def elect_and_add(deltas: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """Add weighted deltas where they agree with the sign of their sum (TIES, section 3.1: elect, disjoint merge).

    With ``normalize`` an element is divided by the weights of those that agreed on it, so a delta that was dropped
    there does not dilute the others.
    """
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    return add_agreeing(weighted, weights, elect(weighted), normalize=normalize)


def elect(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tell for each element whether the deltas add up to zero or more."""
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total += delta
    return total >= 0


def add_agreeing(
    weighted: Sequence[torch.Tensor], weights: Sequence[float], positive: torch.Tensor, *, normalize: bool
) -> torch.Tensor:
    """Add terms, already multiplied by their weights, where they are not zero and have the elected sign."""
    total = torch.zeros_like(weighted[0])
    share = torch.zeros_like(weighted[0])
    for term, weight in zip(weighted, weights, strict=True):
        agrees = (term != 0) & ((term > 0) == positive)
        total += torch.where(agrees, term, 0.0)
        share += agrees * weight
    return total / torch.where(share.abs() < _SMALLEST_SHARE, 1.0, share) if normalize else total
