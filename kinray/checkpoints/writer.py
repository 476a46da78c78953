"""Write a model folder: sharded safetensors with an index, streamed tensor by tensor, there whole or not at all."""

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kinray.checkpoints.header import DTYPE_BYTES
from kinray.errors import RunError

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@contextmanager
def folder_replacing(target: Path) -> Iterator[Path]:
    """Give a temporary sibling folder that takes the place of ``target`` when the block ends, and vanishes if it fails.

    A folder that was there before stays until the new one is whole.
    """
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.exists():
            old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_weights(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    tensors: Iterable[tuple[str, "torch.Tensor"]],
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write tensors as they come into one or more safetensors files.

    Args:
        folder: an existing folder.
        shapes: of all tensors, in the order in which they will come.
        dtype: bfloat16, float16 or float32; tensors must have it.
        tensors: name and contents; one is in memory at a time.
        shard_bytes: largest file, a single larger tensor apart.

    Returns:
        bytes of weights written.

    Raises:
        RunError: when there is too little room on the disk, before anything is written.
    """
    code = _NAMES[dtype]
    sizes = {name: prod(shape) * DTYPE_BYTES[code] for name, shape in shapes.items()}
    check_room(folder, sum(sizes.values()))
    shards = _shards(sizes, shard_bytes)
    files = [_file_name(number, len(shards)) for number in range(len(shards))]
    incoming = iter(tensors)
    for file, names in zip(files, shards, strict=True):
        with (folder / file).open("wb") as stream:
            stream.write(header_bytes({name: shapes[name] for name in names}, code, {"format": "pt"}))
            for name in names:
                _write_tensor(stream, name, incoming)
            stream.flush()
            os.fsync(stream.fileno())
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return sum(sizes.values())


def check_room(folder: Path, needed: int) -> None:
    """Raise RunError unless the disk under ``folder`` (or its nearest existing parent) has ``needed`` bytes and a little."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + (1 << 20):
        raise RunError(
            f"Too little room under {place}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free. "
            "Make room, or choose another output folder."
        )


def header_bytes(shapes: Mapping[str, Sequence[int]], code: str, metadata: Mapping[str, str]) -> bytes:
    """Make the beginning of a safetensors file: what stands before the data, its length included.

    Args:
        shapes: of all tensors, in the order in which they lie.
        code: their dtype as safetensors writes it.
        metadata: free text by name.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, shape in shapes.items():
        end = at + prod(shape) * DTYPE_BYTES[code]
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_of(tensor: "torch.Tensor") -> memoryview:
    """Return a tensor's bytes as they lie in a file."""
    import torch

    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation config of a model folder, as far as it has them."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_tensor(stream: BinaryIO, name: str, incoming: Iterator[tuple[str, "torch.Tensor"]]) -> None:
    got, tensor = next(incoming)
    assert got == name, f"expected tensor {name}, got {got}"
    stream.write(data_of(tensor))
