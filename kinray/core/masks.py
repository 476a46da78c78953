"""Random masks that are the same bits on every device, in every process and for any number of shards.

Each element's number is an integer hash of where it stands, so nothing is drawn in sequence and nothing needs a seed that
travels: the counter is hashed with SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), in int64 arithmetic, which wraps alike on CPU and GPU.
"""

import hashlib
from typing import Protocol

import torch

from kinray.core.recipe import canonical_json

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_CHUNK = 1 << 20
"""Elements hashed at a time, so that a mask costs 8 MiB of integers however large the tensor is."""


class MaskSource(Protocol):
    """Where a merge method takes its random numbers from; the seam that keeps methods pure."""

    def uniform(self, parent: int, numel: int, device: torch.device) -> torch.Tensor:
        """Return (numel,) float32 in [0, 1), the numbers of one parent's elements in flat order."""


class HashedMasks:
    """The numbers of one tensor of one child.

    Args:
        digest: the child's recipe digest.
        tensor: name of the tensor.
    """

    def __init__(self, digest: str, tensor: str) -> None:
        self._place = (digest, tensor)

    def uniform(self, parent: int, numel: int, device: torch.device) -> torch.Tensor:
        """Return (numel,) float32 in [0, 1) with 24 random bits each."""
        key = _key(*self._place, parent)
        out = torch.empty(numel, dtype=torch.float32, device=device)
        for start in range(0, numel, _CHUNK):
            stop = min(start + _CHUNK, numel)
            counter = torch.arange(start, stop, dtype=torch.int64, device=device)
            out[start:stop] = _logical_shift(_splitmix64(counter, key), 40).to(torch.float32) * 2.0**-24
        return out


def _key(digest: str, tensor: str, parent: int) -> int:
    place = canonical_json([digest, tensor, parent]).encode()
    return int.from_bytes(hashlib.sha256(place).digest()[:8], "little")


def _splitmix64(counter: torch.Tensor, key: int) -> torch.Tensor:
    x = counter.add_(1).mul_(_signed(_GOLDEN)).add_(_signed(key))
    x = (x ^ _logical_shift(x, 30)).mul_(_signed(_MIX_1))
    x = (x ^ _logical_shift(x, 27)).mul_(_signed(_MIX_2))
    return x ^ _logical_shift(x, 31)


def _logical_shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
