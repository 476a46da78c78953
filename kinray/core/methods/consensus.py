"""How deltas are added in a block: all of them, or those that agree on a sign. Rows are written into.

Signs are bits that are flipped in place, since arithmetic runs at the speed of the cache and masks of truth values do not.
"""

from collections.abc import Sequence

import torch

_SMALLEST_SHARE = 1e-8
_SIGN = -(1 << 31)


def add_all(rows: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """Add weighted deltas; with ``normalize`` divide by the sum of the weights, unless that is zero."""
    total = torch.zeros_like(rows[0])
    for row, weight in zip(rows, weights, strict=True):
        total.add_(row, alpha=weight)
    share = sum(weights)
    return total.div_(share) if normalize and abs(share) >= _SMALLEST_SHARE else total


def elect_and_add(rows: Sequence[torch.Tensor], weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """Add weighted deltas where they agree with the sign of their sum (TIES, section 3.1: elect, disjoint merge).

    With ``normalize`` an element is divided by the weights of those that agreed on it, so a delta that was dropped
    there does not dilute the others.
    """
    weighted = [row.mul_(weight) for row, weight in zip(rows, weights, strict=True)]
    return add_agreeing(weighted, weights, elect(weighted), normalize=normalize)


def elect(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return for each element the sign bit of the deltas' sum, as int32; a sum of zero is positive."""
    total = torch.add(rows[0], rows[1] if len(rows) > 1 else 0.0)
    for row in rows[2:]:
        total.add_(row)
    return total.view(torch.int32).bitwise_and_(_SIGN)


def add_agreeing(
    rows: Sequence[torch.Tensor], weights: Sequence[float], signs: torch.Tensor, *, normalize: bool
) -> torch.Tensor:
    """Add terms, already multiplied by their weights, where they are not zero and have the elected sign."""
    for row in rows:
        row.view(torch.int32).bitwise_xor_(signs)
        row.relu_()
    total = rows[0].clone() if normalize else rows[0]
    for row in rows[1:]:
        total.add_(row)
    if normalize:
        share = torch.zeros_like(total)
        for row, weight in zip(rows, weights, strict=True):
            share.add_(row.clamp_(max=1.0).ceil_(), alpha=weight)  # 1 where it agrees
        if all(weight >= _SMALLEST_SHARE for weight in weights):  # where no delta agreed this is 0 divided by something
            total.div_(share.clamp_(min=_SMALLEST_SHARE))
        else:
            total.div_(torch.where(share.abs() < _SMALLEST_SHARE, 1.0, share))
    total.view(torch.int32).bitwise_xor_(signs)
    return total
