"""Read and check what a safetensors file says of itself, without reading its data.

Format: 8 bytes little-endian length of a JSON header, the header, then the tensors without gaps or overlaps.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kinray.errors import CheckpointError

MAX_HEADER = 10_000_000
"""Bytes, enough for 80 000 tensors; the library reads up to 100 MB, which take seconds and gigabytes to parse."""

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1,
}  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Args:
        name: in the file.
        dtype: as safetensors writes it, such as ``BF16``.
        shape: sizes.
        file: the file.
        begin, end: bytes from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.end - self.begin

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether it holds weights, and not an index or a mask."""
        return self.dtype in FLOATING


def read_header(file: Path) -> list[TensorInfo]:
    """List the tensors of a safetensors file in the order in which they lie.

    Raises:
        CheckpointError: when the file is truncated, too long, or its header cannot be trusted.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size >= 8 and MAX_HEADER < length <= size - 8:
                raise CheckpointError(
                    f"{file} names a header of {length} bytes, more than the {MAX_HEADER} that kinray reads. Save the model "
                    "again, in several files if it has so many tensors."
                )
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{file} is not a whole safetensors file: it has {size} bytes and names a header of {length}. "
                    "Copy or download it again."
                )
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"Cannot read {file}: {error.strerror}.") from error
    try:
        header = json.loads(text, object_pairs_hook=_no_duplicates)
        if not isinstance(header, dict):
            raise ValueError("it is not a mapping")
        infos = [_info(name, entry, file, 8 + length) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{file} has a header that is not valid safetensors: {str(error)[:200]}.") from error
    infos.sort(key=lambda info: (info.begin, info.end))
    _check_layout(infos, file, 8 + length, size)
    return infos


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name is there twice")
    return result


def _info(name: str, entry: Any, file: Path, data: int) -> TensorInfo:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(
            f"tensor '{name[:200]}' has dtype {dtype!r:.40}, which kinray does not read. Quantised weights cannot be merged"
        )
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in [*shape, begin, end]):
        raise ValueError(f"tensor '{name[:200]}' has sizes that are not whole numbers")
    if end - begin != prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"tensor '{name[:200]}' of {dtype} {shape} has {end - begin} bytes")
    return TensorInfo(name, dtype, tuple(shape), file, data + begin, data + end)


def _check_layout(infos: list[TensorInfo], file: Path, data: int, size: int) -> None:
    at = data
    for info in infos:
        if info.begin != at:
            raise CheckpointError(f"{file}: tensor '{info.name}' starts at byte {info.begin}, not {at}: gap or overlap.")
        at = info.end
    if at != size:
        raise CheckpointError(
            f"{file} has {size} bytes, but its tensors end at {at}: it is {'truncated' if at > size else 'too long'}. "
            "Copy or download it again."
        )
