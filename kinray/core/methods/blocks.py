"""The tensors of one merge, walked through in blocks that stay in the cache.

A method reads its inputs as they are stored and never holds a float32 copy of a whole one: it asks for a block, changes the
rows that it gets in place, and yields the child's elements in order. So each walk costs one pass over the memory, and the
buffers are of a block each.

Shape suffixes: P parents · B elements of a block.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from kinray.core.statistics import Float64

_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Elements of a block. On a CPU the rows of a merge of a few models stay near its second-level cache, and calls on them are
long enough that threads seldom wait for Python's lock; a GPU wants few and large calls."""

_SAMPLE = 1 << 12
"""Elements that tell which values are frequent."""

_COPIED = 1 << 20
"""Elements of a block of a tensor that is taken as it is."""

_GRAM_BLOCK = 1 << 16
"""Elements that are multiplied at a time in float64."""


class Operands:
    """What one merge reads: θ0 and the parents, of one shape and any floating dtypes.

    Rows are float32 buffers: they may be written into, and hold until the same is asked for again. Not thread-safe.

    Args:
        base: θ0, or None where it does not enter, so that deltas are the weights themselves.
        parents: P tensors.
    """

    def __init__(self, base: torch.Tensor | None, parents: Sequence[torch.Tensor]) -> None:
        first = parents[0]
        self.shape, self.device, self.numel = first.shape, first.device, first.numel()
        self._base = None if base is None else base.reshape(-1)
        self._parents = [parent.reshape(-1) for parent in parents]
        self._buffers: dict[object, torch.Tensor] = {}

    def __len__(self) -> int:
        """P."""
        return len(self._parents)

    @property
    def width(self) -> int:
        """Elements of a row along the last axis, at least 1."""
        return max(1, self.shape[-1]) if len(self.shape) else 1

    def blocks(self, whole: int = 1) -> Iterator[slice]:
        """Yield the blocks in order; each holds a multiple of ``whole`` elements, such as whole rows."""
        step = max(1, _BLOCK.get(self.device.type, _BLOCK["cuda"]) // whole) * whole
        for start in range(0, self.numel, step):
            yield slice(start, min(start + step, self.numel))

    def buffer(self, key: object, at: slice, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return a row of (B,) to write into; another key has another row."""
        length = at.stop - at.start
        if key not in self._buffers or self._buffers[key].numel() < length:
            self._buffers[key] = torch.empty(length, dtype=dtype, device=self.device)
        return self._buffers[key][:length]

    def base(self, at: slice) -> torch.Tensor:
        """Return θ0 in a block, (B,) float32; a zero where it does not enter."""
        if self._base is None:
            return torch.zeros((), device=self.device)
        return self.buffer("base", at).copy_(self._base[at])

    def parent(self, number: int, at: slice) -> torch.Tensor:
        """Return the weights of one parent in a block, (B,) float32."""
        return self.buffer(number, at).copy_(self._parents[number][at])

    def delta(self, number: int, at: slice) -> torch.Tensor:
        """Return the delta of one parent in a block, (B,) float32."""
        row = self.parent(number, at)
        return row if self._base is None else row.sub_(self.base(at))

    def deltas(self, at: slice) -> list[torch.Tensor]:
        """Return the deltas of all parents in a block, P rows of (B,) float32."""
        rows = [self.parent(number, at) for number in range(len(self))]
        if self._base is not None:
            base = self.base(at)
            for row in rows:
                row.sub_(base)
        return rows

    def gram(self) -> Float64:
        """Compute the (P, P) float64 dot products of the deltas."""
        gram = torch.zeros(len(self), len(self), dtype=torch.float64, device=self.device)
        for start in range(0, self.numel, _GRAM_BLOCK):
            at = slice(start, min(start + _GRAM_BLOCK, self.numel))
            rows = torch.stack([row.double() for row in self.deltas(at)])
            gram += rows @ rows.T
        result: Float64 = gram.cpu().numpy()
        return result


def weighted_sum(operands: Operands, scale: float, weights: Sequence[float]) -> Iterator[torch.Tensor]:
    """Yield scale·θ0 + Σ cᵢ·δᵢ block by block, float32; a parent of weight zero is not read.

    Args:
        operands: with a base.
        scale: factor on θ0.
        weights: P factors on the deltas.
    """
    with np.errstate(over="ignore"):  # torch refuses a factor that float32 cannot hold; here it is infinite
        scale, *weights = np.array([scale, *weights], np.float32).tolist()
    terms = [(number, weight) for number, weight in enumerate(weights) if weight]
    for at in operands.blocks():
        base = operands.base(at)
        out = operands.buffer("out", at).copy_(base)
        if scale != 1.0:
            out.mul_(scale)
        for number, weight in terms:
            out.add_(operands.parent(number, at).sub_(base), alpha=weight)
        yield out


def select_ranks(values: torch.Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the values at some ranks of a selection, 0 for the smallest; the order of ``values`` is lost.

    A CPU selects with numpy's vectorised partition, which takes a tenth of the time of ``torch.kthvalue``.

    Args:
        values: (n,) float32, changed in place.
        ranks: from 0 to n − 1.
    """
    if values.device.type != "cpu":
        return [float(torch.kthvalue(values, rank + 1).values) for rank in ranks]
    return [_select(values.numpy(), rank) for rank in ranks]


def _select(array: npt.NDArray[np.float32], rank: int) -> float:
    """Select by partition, after values that are there very often are set apart: they make it up to forty times slower.

    The deltas of a short fine-tune are such: most of them are zero.
    """
    while (often := _frequent(array)) is not None:
        below, upto = int(np.count_nonzero(array < often)), int(np.count_nonzero(array <= often))
        if below <= rank < upto:
            return often
        if rank < below:
            array = array[array < often]
        else:
            array, rank = array[~(array <= often)], rank - upto  # with what is NaN
    array.partition(rank)
    return float(array[rank])


def _frequent(array: npt.NDArray[np.float32]) -> float | None:
    """Return the most frequent value of a sample, if it is more than a quarter of it."""
    if len(array) <= _SAMPLE:
        return None
    sample = array[:: len(array) // _SAMPLE]
    values, counts = np.unique(sample, return_counts=True)
    at = int(counts.argmax())
    return float(values[at]) if counts[at] * 4 > len(sample) and not np.isnan(values[at]) else None


def read_blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the elements of a tensor as it is, in flat order."""
    yield from torch.split(tensor.reshape(-1), _COPIED)


def write_blocks(out: torch.Tensor, blocks: Iterator[torch.Tensor]) -> torch.Tensor:
    """Copy blocks, in their order, into a contiguous tensor of any floating dtype, and return it."""
    flat, at = out.view(-1), 0
    for block in blocks:
        flat[at : at + block.numel()].copy_(block)
        at += block.numel()
    assert at == flat.numel(), (at, flat.numel())
    return out
