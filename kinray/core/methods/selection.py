"""Which elements of a delta are kept: by magnitude, at random, or at random by magnitude.

Each function looks at the whole delta of one parent where it must, and returns a rule that is applied to the rows of one block
after another, in flat order.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from kinray.core.masks import RESOLUTION, MaskSource
from kinray.core.methods.blocks import Operands, select_ranks

_COUNTED = 1 << 20
"""Elements that are counted at a time, so that truth values take little memory."""

Rule = Callable[[torch.Tensor, slice], torch.Tensor]
"""(row of a delta, where it stands) -> the row with what is left out zeroed; the argument may be written into."""


def keep_all(row: torch.Tensor, at: slice) -> torch.Tensor:
    """Leave a row as it is."""
    return row


def keep_none(row: torch.Tensor, at: slice) -> torch.Tensor:
    """Zero a row."""
    return row.zero_()


# -- by magnitude


class Above:
    """Zeroes all but what lies above a threshold, and some of what equals it.

    Args:
        threshold: a magnitude, float32.
        first, last: which of the elements equal to it count as above, numbered in flat order: from ``first`` up to ``last``.
    """

    def __init__(self, threshold: float, first: float, last: float) -> None:
        self._threshold, self._first, self._last = threshold, first, last
        self._or_equal = float(np.nextafter(np.float32(threshold), np.float32(-1)))
        self._seen = 0

    def __call__(self, row: torch.Tensor, at: slice) -> torch.Tensor:
        """Return the row with zeros where it does not lie above; rows come in flat order."""
        if self._first <= self._seen and self._last == math.inf:
            return torch.hardshrink(row, self._or_equal)
        if self._first >= self._last or self._seen >= self._last:
            return torch.hardshrink(row, self._threshold)
        equal = row.abs().eq_(self._threshold)
        begin, self._seen = self._seen, self._seen + int(torch.count_nonzero(equal))
        if self._first <= begin and self._seen <= self._last:
            return torch.hardshrink(row, self._or_equal)
        kept = torch.hardshrink(row, self._threshold)
        low, high = max(0, int(self._first - begin)), min(self._seen, self._last) - begin
        chosen = torch.nonzero(equal).reshape(-1)[low : int(high)]
        kept[chosen] = row[chosen]
        return kept


def keep_middle(operands: Operands, fill: Callable[[slice], torch.Tensor], bottom: int, top: int) -> Rule:
    """Keep all but the ``bottom`` smallest and the ``top`` largest of n magnitudes; among equals the lowest index stays.

    Args:
        operands: of the merge, for its blocks.
        fill: gives the numbers of a block, whose magnitudes count.
        bottom: how many of the smallest are left out.
        top: how many of the largest are left out.

    Returns:
        a rule by which exactly n − bottom − top are kept (zeros among them stay zero).
    """
    count = operands.numel
    if bottom + top >= count:
        return keep_none
    if not bottom and not top:
        return keep_all
    sizes = torch.empty(count, dtype=torch.float32, device=operands.device)
    for at in operands.blocks():
        torch.abs(fill(at), out=sizes[at])
    if not top:
        (low,) = select_ranks(sizes, [bottom])
        # Which of the zeros stay makes no difference.
        return Above(low, 0, _count(sizes, low)[1] - bottom) if low else keep_all
    low, high = select_ranks(sizes, [bottom, count - top - 1])
    below_low, to_low = _count(sizes, low)
    below_high, _ = _count(sizes, high)
    # What is dropped at the top: all above, and of those equal to it all after the first few.
    largest = Above(high, count - top - max(bottom, below_high), math.inf)
    if not bottom:
        return lambda row, at: row - largest(row, at)
    if low == high:
        smallest, largest = Above(low, 0, count - top - max(bottom, below_low)), Above(high, 0, 0)
    else:
        smallest = Above(low, 0, to_low - bottom)

    def rule(row: torch.Tensor, at: slice) -> torch.Tensor:
        kept = row - largest(row, at)
        return smallest(kept, at)

    return rule


def _count(sizes: torch.Tensor, value: float) -> tuple[int, int]:
    """Count the numbers below a value, and those up to it."""
    parts = torch.split(sizes, _COUNTED)
    if sizes.device.type == "cpu":
        arrays = [part.numpy() for part in parts]
        return sum(int(np.count_nonzero(a < value)) for a in arrays), sum(int(np.count_nonzero(a <= value)) for a in arrays)
    return sum(int((part < value).sum()) for part in parts), sum(int((part <= value).sum()) for part in parts)


def keep_largest(operands: Operands, parent: int, density: float) -> Rule:
    """Zero all but the ⌊density·n⌋ elements of largest magnitude; among equals the lowest index stays (TIES, trim).

    In mergekit it is left to an unstable sort which of equals stay, and a density that keeps no element is an error.
    """
    return drop_extremes(operands, parent, density, 0.0)


def drop_extremes(operands: Operands, parent: int, density: float, gamma: float) -> Rule:
    """Zero the ⌊gamma·n⌋ largest elements and as many of the smallest as leave ⌊density·n⌋ (Model Breadcrumbs).

    Where fewer than ⌊gamma·n⌋ may go, only so many of the largest go. Where ⌊gamma·n⌋ is zero mergekit 0.1.4 returns zeros;
    this keeps the largest ones.
    """
    if density >= 1.0:
        return keep_all
    kept = int(density * operands.numel)
    top = min(int(gamma * operands.numel), operands.numel - kept)
    return keep_middle(operands, lambda at: operands.delta(parent, at), operands.numel - kept - top, top)


# -- at random


def drop_at_random(operands: Operands, density: float, parent: int, masks: MaskSource, *, rescale: bool) -> Rule:
    """Keep each element with probability ``density`` and, with ``rescale``, divide it by that (DARE, equation 2).

    mergekit restores the L1 norm of the tensor instead, which depends on the draw.
    """
    if density >= 1.0:
        return keep_all
    if density < RESOLUTION:
        return keep_none

    def rule(row: torch.Tensor, at: slice) -> torch.Tensor:
        masks.drop(row, density, parent, at.start)
        return row.mul_(1.0 / density) if rescale else row

    return rule


def drop_by_rank(operands: Operands, density: float, epsilon: float, parent: int, masks: MaskSource, *, rescale: bool) -> Rule:
    """Keep each element with a probability that grows with its rank in its row (DELLA, section 3.1, MagPrune).

    The smallest of a row (along the last axis) stays with probability density − epsilon, the largest with density + epsilon;
    among equals the lower index ranks lower. With ``rescale`` what stays is divided by its own probability, as the paper says;
    mergekit restores the L1 norm of the tensor instead, and ranks along the second axis where a tensor has more than two.

    The rule takes blocks of whole rows.
    """
    if density >= 1.0:
        return keep_all
    if density <= 0.0:
        return keep_none
    width = operands.width
    if width == 1:
        by_rank = torch.full((1,), density, device=operands.device)
    else:
        steps = torch.arange(width, dtype=torch.float32, device=operands.device) / (width - 1)
        by_rank = (density - epsilon) + 2.0 * epsilon * steps

    def rule(row: torch.Tensor, at: slice) -> torch.Tensor:
        chance = operands.buffer("chance", at)
        sizes = torch.abs(row, out=chance).view(-1, width)
        order = _rising_order(sizes, operands.buffer("order", at, torch.int64).view(-1, width))
        chance.view(-1, width).scatter_(1, order, by_rank.expand(order.shape))
        masks.drop(row, chance, parent, at.start)
        return row.div_(chance) if rescale else row

    return rule


def _rising_order(sizes: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the indices (int64) that put each row's magnitudes in rising order, equals by index; ``order`` is written into.

    Magnitude (whose bits rise with it) and index are packed into one integer, so that no two are equal and any sort of plain
    numbers will do: numpy's vectorised one takes a fifteenth of the time of an argsort.
    """
    order.copy_(sizes.view(torch.int32)).bitwise_left_shift_(32)
    order.bitwise_or_(torch.arange(sizes.shape[1], dtype=torch.int64, device=sizes.device))
    if order.device.type == "cpu":
        order.numpy().sort(axis=1)
    else:
        order = order.sort(dim=1).values
    return order.bitwise_and_(0xFFFFFFFF)
