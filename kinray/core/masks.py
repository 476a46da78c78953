"""Random masks that are the same bits on every device, in every process and for any number of shards.

Each element's number is an integer hash of where it stands, so nothing is drawn in sequence and nothing needs a seed that
travels. The hash is Wellons' triple32 (github.com/skeeto/hash-prospector), a bijection of 32 bits with next to no bias, on the
element's index; 64 bits of a SHA-256 of child, tensor and parent enter it, half before the first round and half after it, so
that two masks are not one sequence at different places. Its arithmetic wraps at 32 bits, alike everywhere: numpy's unsigned
integers do it fastest on a CPU, and torch's signed ones on a GPU.
"""

import hashlib
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from kinray.core.recipe import canonical_json

_ROUNDS = ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB))
"""Shift and multiplier of each round."""

_LAST_SHIFT = 14
_WORD = (1 << 32) - 1

_PIECE = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Elements that are hashed at a time: on a CPU all that is needed stays in the cache, a GPU wants few and large calls."""

_HELD = threading.local()

RESOLUTION = 2.0**-32
"""Chances are counted in this; smaller ones are none."""


class MaskSource(Protocol):
    """Where a merge method takes its random numbers from; the seam that keeps methods pure."""

    def drop(self, row: torch.Tensor, chance: float | torch.Tensor, parent: int, start: int) -> None:
        """Zero elements at random, in place.

        Args:
            row: (n,) float32, of one parent.
            chance: probability of being kept, from 0 to 1: one, or (n,) float32.
            parent: its number.
            start: where the row begins in the tensor, in flat order.
        """


class HashedMasks:
    """The random numbers of one tensor of one child.

    Args:
        digest: the child's recipe digest, or what its recipe says instead (``Merge.seed``).
        tensor: name of the tensor.
    """

    def __init__(self, digest: str, tensor: str) -> None:
        self._place = (digest, tensor)

    def drop(self, row: torch.Tensor, chance: float | torch.Tensor, parent: int, start: int) -> None:
        """Keep an element where its hash, as a number in [0, 1), is below its chance."""
        drop = _drop_by_numpy if row.device.type == "cpu" else _drop_by_torch
        step = _PIECE.get(row.device.type, _PIECE["cuda"])
        done = 0
        while done < row.numel():
            page, index = divmod(start + done, 1 << 32)  # 32 bits number the elements of a page
            end = min(done + step, row.numel(), done + (1 << 32) - index)
            part = chance[done:end] if isinstance(chance, torch.Tensor) else chance
            drop(row[done:end], part, index, _keys([*self._place, parent, page]))
            done = end


def _keys(place: list[str | int]) -> tuple[int, int]:
    """Return two 32-bit keys."""
    digest = hashlib.sha256(canonical_json(place).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _hash(x: Any, shifted: Callable[[int], Any], word: Callable[[int], int], keys: tuple[int, int]) -> None:
    """Turn 32-bit indices into their hashes, in place.

    Args:
        x: integers, an array or a tensor.
        shifted: gives them shifted to the right, without their sign.
        word: makes a factor or a term of a number of 32 bits.
        keys: that enter.
    """
    x += word(keys[0])
    for number, (bits, factor) in enumerate(_ROUNDS):
        x ^= shifted(bits)
        x *= word(factor)
        if number == 0:
            x += word(keys[1])
    x ^= shifted(_LAST_SHIFT)


def _drop_by_numpy(row: torch.Tensor, chance: float | torch.Tensor, index: int, keys: tuple[int, int]) -> None:
    counter, x, held, floats, keep = (buffer[: row.numel()] for buffer in _buffers())
    np.add(counter, np.uint32(index), out=x)
    _hash(x, lambda bits: np.right_shift(x, bits, out=held), int, keys)
    if isinstance(chance, torch.Tensor):
        np.copyto(floats, x)
        np.multiply(floats, np.float32(RESOLUTION), out=floats)
        np.less(floats, chance.numpy(), out=keep)
    else:
        np.less(x, np.uint32(_limit(chance)), out=keep)
    array = row.numpy()
    np.multiply(array, keep, out=array)


def _drop_by_torch(row: torch.Tensor, chance: float | torch.Tensor, index: int, keys: tuple[int, int]) -> None:
    x = torch.arange(row.numel(), dtype=torch.int32, device=row.device)
    x += _signed(index)

    def shifted(bits: int) -> torch.Tensor:
        return (x >> bits).bitwise_and_(_WORD >> bits)

    _hash(x, shifted, _signed, keys)
    numbers = x.long().bitwise_and_(_WORD)
    if isinstance(chance, torch.Tensor):
        row *= numbers.float().mul_(RESOLUTION) < chance
    else:
        row *= numbers < _limit(chance)


def _limit(chance: float) -> int:
    """Return how many of the hashes are below a probability; one less at most, so that 32 bits hold it."""
    return min(round(chance / RESOLUTION), _WORD)


def _buffers() -> tuple[Any, ...]:
    """Return rows that this thread may write into: the first holds 0, 1, 2 …, and stays so."""
    if not hasattr(_HELD, "buffers"):
        size = _PIECE["cpu"]
        counter = np.arange(size, dtype=np.uint32)
        _HELD.buffers = (counter, *(np.empty(size, dtype) for dtype in (np.uint32, np.uint32, np.float32, np.bool_)))
    buffers: tuple[Any, ...] = _HELD.buffers
    return buffers


def _signed(value: int) -> int:
    """Return the int32 with the same lowest 32 bits."""
    return ((value + (1 << 31)) & _WORD) - (1 << 31)
