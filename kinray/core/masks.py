"""Random masks that are the same bits on every device, in every process and for any number of shards.

Each element's number is an integer hash of where it stands, so nothing is drawn in sequence and nothing needs a seed that
travels. The hash is Wellons' triple32 (github.com/skeeto/hash-prospector), a bijection of 32 bits with next to no bias, on the
element's index; 64 bits of a SHA-256 of child, tensor and parent enter it, half before the first round and half after it, so
that two masks are not one sequence at different places. Its arithmetic is int32, which wraps alike on CPU and GPU.
"""

import hashlib
import threading
from functools import cache
from typing import Protocol

import torch

from kinray.core.recipe import canonical_json

_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
"""Shift and multiplier of each round."""

_LAST_SHIFT = 14
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Elements hashed at a time: on a CPU the integers stay in the cache, a GPU wants few and large calls."""

_HELD = threading.local()
_PAGE = 1 << 32
"""Elements that 32 bits number; a larger tensor has a key for each page."""


RESOLUTION = 2.0**-24
"""The random numbers are multiples of this; smaller probabilities are none."""


class MaskSource(Protocol):
    """Where a merge method takes its random numbers from; the seam that keeps methods pure."""

    def uniform(self, parent: int, start: int, out: torch.Tensor) -> torch.Tensor:
        """Fill ``out``, (n,) float32, with the numbers in [0, 1) of one parent's elements, from ``start`` on in flat order."""


class HashedMasks:
    """The numbers of one tensor of one child.

    Args:
        digest: the child's recipe digest, or what its recipe says instead (``Merge.seed``).
        tensor: name of the tensor.
    """

    def __init__(self, digest: str, tensor: str) -> None:
        self._place = (digest, tensor)

    def uniform(self, parent: int, start: int, out: torch.Tensor) -> torch.Tensor:
        """Fill ``out`` with numbers of 24 random bits each."""
        page, at = divmod(start, _PAGE)
        here = min(out.numel(), _PAGE - at)
        if here < out.numel():
            self.uniform(parent, start + here, out[here:])
        keys = _keys([*self._place, parent, page])
        chunk = _CHUNK.get(out.device.type, _CHUNK["cuda"])
        for first in range(0, here, chunk):
            part = out[first : min(first + chunk, here)]
            part.copy_(_hash(at + first, part.numel(), keys, out.device)).mul_(RESOLUTION)
        return out


def _keys(place: list[str | int]) -> tuple[int, int]:
    """Return two 32-bit keys."""
    digest = hashlib.sha256(canonical_json(place).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _hash(start: int, count: int, keys: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return (count,) int32, 24 random bits for each index from ``start`` on."""
    x, shifted = (buffer[:count] for buffer in _buffers(device))
    torch.add(_counter(device)[:count], _signed(start + keys[0]), out=x)

    def shift(bits: int) -> torch.Tensor:
        torch.bitwise_right_shift(x, bits, out=shifted)
        return shifted.bitwise_and_((1 << (32 - bits)) - 1)  # without the sign

    for number, (bits, factor) in enumerate(_ROUNDS):
        x.bitwise_xor_(shift(bits)).mul_(_signed(factor))
        if number == 0:
            x.add_(_signed(keys[1]))
    x.bitwise_xor_(shift(_LAST_SHIFT))
    return shift(8)


def _buffers(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two rows of integers that this thread may write into."""
    held: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = _HELD.__dict__.setdefault("rows", {})
    if device not in held:
        held[device] = (torch.empty_like(_counter(device)), torch.empty_like(_counter(device)))
    return held[device]


@cache
def _counter(device: torch.device) -> torch.Tensor:
    return torch.arange(_CHUNK.get(device.type, _CHUNK["cuda"]), dtype=torch.int32, device=device)


def _signed(value: int) -> int:
    """Return the int32 with the same lowest 32 bits."""
    return ((value + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
