"""Write a model while it is made: workers take tensors, read, merge and write each, so that all three overlap."""

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinray.checkpoints.folder import read_json
from kinray.checkpoints.header import read_header
from kinray.checkpoints.identity import count_not_finite
from kinray.checkpoints.writer import CODES, SHARD_BYTES, WeightWriter, copy_tokenizer, data_of, needing_room, write_config
from kinray.core.recipe import Recipe
from kinray.engine.gram import check_finite
from kinray.engine.materialise import Materialiser
from kinray.engine.workers import Making, memory_for, work_on
from kinray.errors import CheckpointError, RunError

Progress = Callable[[int], None]
"""Called with the number of bytes written since the last call."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        nbytes: of weights.
        checksums: CRC-32 of each tensor's bytes, where they were asked for.
    """

    nbytes: int
    checksums: dict[str, int] = field(default_factory=dict)


def makings(materialiser: Materialiser, recipe: Recipe, dtype: str) -> list[Making]:
    """List the tensors of a recipe's model.

    Args:
        materialiser: of the founders.
        recipe: the model.
        dtype: bfloat16, float16 or float32.

    Raises:
        RecipeError: when the recipe cannot be made.
    """
    plan, models = materialiser.plan(recipe), materialiser.models
    buffers = plan.buffers

    def making(name: str) -> Making:
        def taken() -> dict[str, torch.Tensor]:
            return {source.name: source.load(name) for source in models.sources.values()}

        def blocks() -> Iterator[torch.Tensor]:
            try:
                with np.errstate(all="ignore"):  # what is not finite is found afterwards
                    for block in materialiser.blocks(plan, name):
                        yield block.to(DTYPES[dtype])
            except ArithmeticError:
                _blame_models(name, taken())
                raise

        return Making(name, CODES[dtype], models.base.tensors[name].shape, blocks, taken, buffers)

    return [making(name) for name in models.names]


def write_model(
    folder: Path,
    tensors: Sequence[Making],
    *,
    parents: int = 0,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    processes: bool = False,
    checksums: bool = False,
    progress: Progress = lambda _: None,
) -> Written:
    """Make and write the tensors of a model, the largest first.

    So many are made at once that they take at most (parents + 3) times the largest one in float32, or as much as one alone
    needs.

    Args:
        folder: an existing folder.
        tensors: in the order in which they shall lie in the files.
        parents: models that are merged.
        shard_bytes: largest file.
        threads: that work, each alone; by default as many as torch is set to.
        processes: whether they are forked processes instead (``work_on``).
        checksums: whether to compute them.
        progress: told of the bytes written.

    Raises:
        RoomError: when the disk has too little room.
        RunError: when a tensor is not finite in its dtype, or one that it is made of is not.
    """
    writer = WeightWriter(folder, {tensor.name: (tensor.dtype, tensor.shape) for tensor in tensors}, shard_bytes)
    sums: dict[str, int] = {}

    def work(tensor: Making) -> tuple[str, int]:
        at = bad = checksum = 0
        for block in tensor.blocks():
            data = data_of(block)
            bad += count_not_finite(np.frombuffer(data, np.uint8), tensor.dtype)
            writer.write(tensor.name, data, at)
            checksum = zlib.crc32(data, checksum) if checksums else 0
            at += data.nbytes
        assert at == tensor.nbytes, f"tensor {tensor.name} has {at} bytes, not {tensor.nbytes}"
        if bad:
            _refuse(tensor, bad)
        return tensor.name, checksum

    def done(result: tuple[str, int]) -> None:
        name, sums[name] = result
        progress(writer.entries[name].nbytes)
        writer.flush()

    try:
        with needing_room(folder.parent, writer.nbytes):
            work_on(tensors, work, memory_for(tensors, parents), threads, done, processes=processes)
            assert len(sums) == len(writer.entries), "tensors not written"
            writer.finish()
    finally:
        writer.close()
    return Written(writer.nbytes, sums if checksums else {})


def write_recipe(
    folder: Path, materialiser: Materialiser, recipe: Recipe, dtype: str, *, threads: int | None = None
) -> Written:
    """Make a recipe's model in an existing folder: weights, and the base's config, tokenizer and code.

    Args:
        folder: an existing folder.
        materialiser: of the founders.
        recipe: the model.
        dtype: bfloat16, float16 or float32.
        threads: that work; by default as many as torch is set to.

    Raises:
        KinrayError: as ``makings`` and ``write_model``.
    """
    specs = materialiser.models.specs
    written = write_model(folder, makings(materialiser, recipe, dtype), parents=len(specs) - 1, threads=threads)
    copy_tokenizer(specs[0].folder, folder)
    write_config(specs[0].folder, read_json(specs[0].folder / "config.json", "base"), dtype, folder)
    return written


def _blame_models(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise RunError, which fails a child and not the search, for the first model whose tensor holds NaN or infinity."""
    try:
        check_finite(name, tensors)
    except CheckpointError as error:
        raise RunError(str(error)) from error


def _refuse(tensor: Making, bad: int) -> None:
    """Raise RunError for a tensor that holds NaN or infinity, blaming the model that does if there is one."""
    _blame_models(tensor.name, tensor.taken())
    raise RunError(
        f"Tensor '{tensor.name}' of the merge holds NaN or infinity in {bad} of {prod(tensor.shape)} places as "
        f"{tensor.dtype}. Change the parameters of the merge, or choose a dtype with a larger range."
    )


def verify(folder: Path, tensors: Sequence[Making], written: Written) -> None:
    """Read a written model back from the disk and compare every tensor with what was made.

    Args:
        folder: of the model.
        tensors: what should be there.
        written: with checksums.

    Raises:
        CheckpointError: when a file is damaged.
        RunError: naming the first tensor that is missing or differs.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:  # what is compared must come from the disk and not from memory
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found |= {info.name: info for info in read_header(file)}
    for tensor in tensors:
        info = found.pop(tensor.name, None)
        if info is None or (info.dtype, info.shape) != (tensor.dtype, tensor.shape):
            got = "is not there" if info is None else f"is {info.dtype} {info.shape}"
            raise RunError(f"Tensor '{tensor.name}' of {folder} {got}; {tensor.dtype} {tensor.shape} was written.")
        data = np.memmap(info.file, np.uint8, "r") if info.nbytes else np.empty(0, np.uint8)
        if zlib.crc32(data[info.begin : info.end].data) != written.checksums[tensor.name]:
            raise RunError(
                f"Tensor '{tensor.name}' of {folder} does not read back as it was written. Check the disk and merge again."
            )
    if found:
        raise RunError(f"{folder} holds '{next(iter(found))}', which was not written.")
