"""Which elements of a delta are kept: by magnitude, at random, or at random by magnitude."""

import torch

from kinray.core.masks import MaskSource

_BLOCK = 1 << 20
"""Elements ranked at a time, so that the integers of a sort stay small."""


def keep_middle(size: torch.Tensor, bottom: int, top: int) -> torch.Tensor:
    """Mark all but the ``bottom`` smallest and the ``top`` largest of n numbers; among equals the lowest index stays.

    Args:
        size: (n,) float32.
        bottom: how many of the smallest are left out.
        top: how many of the largest are left out.

    Returns:
        (n,) bool with exactly n − bottom − top true.
    """
    count = size.numel()
    if bottom + top >= count:
        return torch.zeros_like(size, dtype=torch.bool)
    low = torch.kthvalue(size, bottom + 1).values if bottom else size.amin()
    high = torch.kthvalue(size, count - top).values if top else size.amax()
    keep = (size > low) & (size < high)
    _mark_first(keep, size == high, count - top - max(bottom, int((size < high).sum())))
    if low < high:
        _mark_first(keep, size == low, int((size <= low).sum()) - bottom)
    return keep


def _mark_first(keep: torch.Tensor, equal: torch.Tensor, count: int) -> None:
    keep[torch.nonzero(equal).reshape(-1)[:count]] = True


def keep_largest(delta: torch.Tensor, density: float) -> torch.Tensor:
    """Zero all but the ⌊density·n⌋ elements of largest magnitude; among equals the lowest index stays (TIES, trim).

    In mergekit it is left to an unstable sort which of equals stay, and a density that keeps no element is an error.

    Args:
        delta: float32 of n elements.
        density: from 0 to 1.
    """
    return drop_extremes(delta, density, 0.0)


def drop_extremes(delta: torch.Tensor, density: float, gamma: float) -> torch.Tensor:
    """Zero the ⌊gamma·n⌋ largest elements and as many of the smallest as leave ⌊density·n⌋ (Model Breadcrumbs).

    Where fewer than ⌊gamma·n⌋ may go, only so many of the largest go. Where ⌊gamma·n⌋ is zero mergekit 0.1.4 returns zeros;
    this keeps the largest ones.
    """
    if density >= 1.0:
        return delta
    size = delta.reshape(-1).abs()
    kept = int(density * size.numel())
    top = min(int(gamma * size.numel()), size.numel() - kept)
    keep = keep_middle(size, size.numel() - kept - top, top)
    return torch.where(keep.reshape(delta.shape), delta, 0.0)


def drop_at_random(delta: torch.Tensor, density: float, parent: int, masks: MaskSource, *, rescale: bool) -> torch.Tensor:
    """Keep each element with probability ``density`` and, with ``rescale``, divide it by that (DARE, equation 2).

    mergekit restores the L1 norm of the tensor instead, which depends on the draw.
    """
    if density >= 1.0:
        return delta
    keep = masks.uniform(parent, delta.numel(), delta.device).reshape(delta.shape) < density
    return torch.where(keep, delta / density if rescale and density > 0.0 else delta, 0.0)


def drop_by_rank(
    delta: torch.Tensor, density: float, epsilon: float, parent: int, masks: MaskSource, *, rescale: bool
) -> torch.Tensor:
    """Keep each element with a probability that grows with its rank in its row (DELLA, section 3.1, MagPrune).

    The smallest of a row (along the last axis) stays with probability density − epsilon, the largest with density + epsilon;
    among equals the lower index ranks lower. With ``rescale`` what stays is divided by its own probability, as the paper says;
    mergekit restores the L1 norm of the tensor instead, and ranks along the second axis where a tensor has more than two.
    """
    if density >= 1.0:
        return delta
    if density <= 0.0:
        return torch.zeros_like(delta)
    width = _row_length(delta)
    chance = torch.full((delta.numel() // width, width), density, dtype=torch.float32, device=delta.device)
    if width > 1:
        steps = torch.arange(width, dtype=torch.float32, device=delta.device) / (width - 1)
        by_rank = (density - epsilon) + 2.0 * epsilon * steps
        rows, step = delta.reshape(chance.shape), max(1, _BLOCK // width)
        for start in range(0, len(rows), step):
            order = _rising_order(rows[start : start + step])
            chance[start : start + step].scatter_(1, order, by_rank.expand(order.shape))
    chance = chance.reshape(delta.shape)
    keep = masks.uniform(parent, delta.numel(), delta.device).reshape(delta.shape) < chance
    return torch.where(keep, delta / chance if rescale else delta, 0.0)


def _rising_order(rows: torch.Tensor) -> torch.Tensor:
    """Return the indices that put each row's magnitudes in rising order, equals by index.

    Magnitude (whose bits rise with it) and index are packed into one integer, so that no two are equal and any sort of plain
    numbers will do: numpy's vectorised one takes a fifteenth of the time of an argsort.
    """
    index = torch.arange(rows.shape[1], dtype=torch.int64, device=rows.device)
    packed = (rows.abs().view(torch.int32).to(torch.int64) << 32) | index
    if packed.device.type == "cpu":
        packed.numpy().sort(axis=1)
    else:
        packed = packed.sort(dim=1).values
    return packed & 0xFFFFFFFF


def _row_length(tensor: torch.Tensor) -> int:
    return max(1, tensor.shape[-1]) if tensor.dim() else 1
