"""The inner kernel of the Gram pass: products and sums of stretches of weights, in blocks that stay in the cache.

Products are taken in float32 over blocks of ``BLOCK`` elements, which always begin at the same elements of a tensor, and
added up in float64. So the error of a cosine is about 1e-7 / √blocks, and results depend neither on how many blocks are in
flight nor on threads or shards.

Shape suffixes: M models, the base first · B elements in flight · K blocks in flight · G elements of a block · P pairs.
"""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from kinray.core.statistics import Float64

BLOCK = 1 << 13
"""Elements of one float32 product."""

_IN_FLIGHT = {"cpu": 3 << 20, "cuda": 1 << 26}
"""Bytes of rows in flight in a thread: on a CPU they stay in its caches, and each call still has enough to do."""


class Kernel:
    """Computes products of stretches of M models. Each thread that calls it has its own buffer.

    Args:
        models: M, rows in the buffer.
        dtype: float32, or float64 where a model is stored so.
        device: where to compute.
    """

    def __init__(self, models: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (models, in_flight(models, device))
        self._dtype, self._device = dtype, device
        self._buffers = threading.local()

    def products(self, pieces: Sequence[torch.Tensor]) -> tuple[Float64, Float64]:
        """Return sums_M and gram_MM (float64) of the rows [θ0, δ1 … δN] over a stretch.

        Args:
            pieces: M tensors of one dimension and one length, of any floating dtypes, the base's first.
        """
        models, blocks = self._shape[0], -(-pieces[0].numel() // BLOCK)
        # One product and one sum for each block, added up in float64 at the end: threads wait for Python's lock between
        # calls, so there are few.
        products_kmm = torch.empty(blocks, models, models, dtype=self._dtype, device=self._device)
        sums_mk = torch.empty(models, blocks, dtype=self._dtype, device=self._device)
        done = 0
        for rows_mb in self._rows(pieces):
            rows_mb[1:].sub_(rows_mb[0])
            for rows_mkg in _blocks(rows_mb):
                rows_kmg, at = rows_mkg.transpose(0, 1), slice(done, done + rows_mkg.shape[1])
                torch.bmm(rows_kmg, rows_kmg.mT, out=products_kmm[at])
                torch.sum(rows_mkg, 2, out=sums_mk[:, at])
                done = at.stop
        sums_m, gram_mm = sums_mk.sum(1, dtype=torch.float64), products_kmm.sum(0, dtype=torch.float64)
        return sums_m.cpu().numpy(), gram_mm.cpu().numpy()

    def squared_distances(self, pieces: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]) -> Float64:
        """Return Σ (θi − θj)² of P pairs of rows over a stretch, (P,) float64, from their direct difference.

        Args:
            pieces: M tensors as in ``products``.
            pairs: P pairs of their numbers.
        """
        squares_p = torch.zeros(len(pairs), dtype=torch.float64, device=self._device)
        for rows_mb in self._rows(pieces):
            for number, (left, right) in enumerate(pairs):
                difference_b = rows_mb[left] - rows_mb[right]
                for block_kg in _blocks(difference_b):
                    squares_p[number] += torch.linalg.vecdot(block_kg, block_kg).sum(dtype=torch.float64)
        return squares_p.cpu().numpy()

    def _rows(self, pieces: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Bring a stretch into the buffer, part by part."""
        if not hasattr(self._buffers, "rows_mb"):
            self._buffers.rows_mb = torch.empty(self._shape, dtype=self._dtype, device=self._device)
            self._buffers.each_m = list(self._buffers.rows_mb)
        rows_mb, size = self._buffers.rows_mb, self._shape[1]
        for views in zip(*(torch.split(piece, size) for piece in pieces), strict=True):
            count, parts = views[0].numel(), list(views)
            block_mb = rows_mb if count == size else rows_mb[:, :count]
            if self._device.type != "cpu":  # moved as stored: fewer bytes than after conversion
                parts = [part.to(self._device, non_blocking=True) for part in views]
            torch._foreach_copy_(self._buffers.each_m if count == size else list(block_mb), parts)
            yield block_mb


def in_flight(models: int, device: torch.device) -> int:
    """Return how many elements of each model are in the buffer at a time, in whole blocks."""
    return BLOCK * max(1, _IN_FLIGHT[device.type] // (4 * models * BLOCK))


def _blocks(rows_xb: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cut rows into (…, K, G): whole blocks at once, then what is left over as one short block."""
    count = rows_xb.shape[-1]
    whole = count - count % BLOCK
    if whole:
        yield rows_xb[..., :whole].view(*rows_xb.shape[:-1], -1, BLOCK)
    if whole < count:
        yield rows_xb[..., whole:].unsqueeze(-2)


def near_twins(gram_mm: Float64, above: float) -> list[tuple[int, int]]:
    """List the pairs of founders (rows 1 to N) whose cosine is above a limit."""
    norms = np.sqrt(np.diagonal(gram_mm))
    close = gram_mm > above * norms[:, None] * norms[None, :]
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True) if i > 0]
