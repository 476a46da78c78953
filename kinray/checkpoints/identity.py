"""The identity of a model: a digest of its tensors' names, dtypes, shapes and contents, and never of its path.

Reading every byte takes a while for large models, so digests are remembered by path, size and modification time, in files
that can be deleted at any time.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kinray.checkpoints.adapters import AdaptedModel, open_model
from kinray.checkpoints.folder import Checkpoint, open_checkpoint
from kinray.checkpoints.header import TensorInfo
from kinray.core.recipe import canonical_json
from kinray.errors import CheckpointError
from kinray.files import cache_folder, write_atomically

_EXPONENTS = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""Of each floating dtype: the integers to see it as, and the bits that NaN and infinity have all set (IEEE 754)."""

Progress = Callable[[int], None]
"""Called with the number of bytes done since the last call."""


def digest(checkpoint: Checkpoint, progress: Progress = lambda _: None) -> str:
    """Return a model's digest, 64 hex digits, from the cache or by reading all of it.

    Two folders have the same digest exactly when they hold the same tensors, however these are spread over files.

    Raises:
        CheckpointError: when a weight is NaN or infinite, since all bytes pass by here anyway.
    """
    entry = cache_folder() / "digests" / f"{_fingerprint(checkpoint)}.json"
    try:
        remembered = json.loads(entry.read_text())["digest"]
        if isinstance(remembered, str) and len(remembered) == 64:
            progress(checkpoint.nbytes)
            return remembered
    except (OSError, ValueError, KeyError, TypeError):
        pass
    result = _digest_contents(checkpoint, progress)
    with suppress(OSError):  # a cache that cannot be written only costs time
        write_atomically(entry, json.dumps({"digest": result, "folder": str(checkpoint.folder)}).encode())
    return result


def model_digest(folder: Path, adapter: Path | None, name: str, progress: Progress = lambda _: None) -> str:
    """Return the digest of a model, or of a model with an adapter."""
    source = open_model(folder, adapter, name)
    if isinstance(source, AdaptedModel):
        model = digest(open_checkpoint(folder, name), progress)
        scales = {tensor: factor[3] for tensor, factor in source.factors.items()}
        parts = [model, digest(source.adapter, progress), scales]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()
    assert isinstance(source, Checkpoint)
    return digest(source, progress)


def _fingerprint(checkpoint: Checkpoint) -> str:
    """Name the state of the files: a change of any changes it."""
    files = sorted({info.file for info in checkpoint.tensors.values()})
    stats = [(str(file.resolve()), file.stat()) for file in files]
    state = [[path, stat.st_size, stat.st_mtime_ns, stat.st_ino] for path, stat in stats]
    return hashlib.sha256(canonical_json(state).encode()).hexdigest()


def _digest_contents(checkpoint: Checkpoint, progress: Progress) -> str:
    def one(info: TensorInfo) -> list[object]:
        content = hashlib.sha256()
        step = 1 << 24
        data = np.memmap(info.file, np.uint8, "r") if info.nbytes else np.empty(0, np.uint8)
        bad = 0
        for start in range(info.begin, info.end, step):
            block = data[start : min(start + step, info.end)]
            content.update(block.data)
            bad += count_not_finite(block, info.dtype)
            progress(len(block))
        if bad:
            raise CheckpointError(
                f"Model '{checkpoint.name}': tensor '{info.name}' holds NaN or infinity in {bad} of {info.numel} places. "
                "Use another checkpoint of it."
            )
        return [info.name, info.dtype, list(info.shape), content.hexdigest()]

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        parts = sorted(pool.map(one, checkpoint.tensors.values()), key=lambda part: str(part[0]))
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def count_not_finite(block: npt.NDArray[np.uint8], dtype: str) -> int:
    """Count NaN and infinity in raw bytes, without turning them into numbers."""
    if dtype not in _EXPONENTS:
        return 0
    integers, exponent = _EXPONENTS[dtype]
    bits = block.view(integers)
    return int(np.count_nonzero((bits & bits.dtype.type(exponent)) == exponent))
