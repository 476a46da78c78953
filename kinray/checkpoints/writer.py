"""Write a model folder: sharded safetensors with an index, tensor by tensor as they are made, there whole or not at all."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kinray.checkpoints.header import DTYPE_BYTES
from kinray.errors import RoomError
from kinray.files import nearest

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 5_000_000_000
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
    "tekken.json", "tiktoken.model", "spiece.model", "sentencepiece.bpe.model",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
CODES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""The dtypes that models are written in, and what safetensors calls them."""

_MOST_AT_ONCE = 1 << 30


@contextmanager
def folder_replacing(target: Path) -> Iterator[Path]:
    """Give a temporary sibling folder that takes the place of ``target`` when the block ends, and vanishes if it fails.

    A folder that was there before stays until the new one is whole.
    """
    unique = uuid.uuid4().hex[:8]
    temporary, old = (target.with_name(f".{target.name}.{unique}.{kind}") for kind in ("tmp", "old"))
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        _remove(temporary)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    finally:
        _remove(old)


def _remove(folder: Path) -> None:
    """Remove a folder with all that is in it, even when interrupted."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@dataclass(frozen=True)
class Entry:
    """Where a tensor goes.

    Args:
        dtype: as safetensors writes it, such as ``BF16``.
        shape: sizes.
        file: number of its file.
        begin: first byte in the file.
        nbytes: size in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    file: int
    begin: int
    nbytes: int


class WeightWriter:
    """Writes tensors into one or more safetensors files, in any order.

    All places are fixed beforehand, so each part of a tensor is written where it belongs as soon as it is made. ``write`` may
    be called from several threads and forked processes, once for each part; then ``finish``. ``flush`` in between, in one of
    them, lets the disk work meanwhile.

    Args:
        folder: an existing folder.
        contents: dtype (as safetensors writes it) and shape of all tensors, in the order in which they lie in the files.
        shard_bytes: largest file, a single larger tensor apart.

    Raises:
        RoomError: when there is too little room on the disk, before anything is written.
    """

    def __init__(self, folder: Path, contents: Mapping[str, tuple[str, Sequence[int]]], shard_bytes: int = SHARD_BYTES) -> None:
        sizes = {name: prod(shape) * DTYPE_BYTES[dtype] for name, (dtype, shape) in contents.items()}
        self.nbytes = sum(sizes.values())
        check_room(folder, self.nbytes)
        self._folder = folder
        self._shards = _shards(sizes, shard_bytes)
        self._files = [folder / _file_name(number, len(self._shards)) for number in range(len(self._shards))]
        self.entries: dict[str, Entry] = {}
        self._streams: list[BinaryIO] = []
        self._flusher, self._flushing = ThreadPoolExecutor(1), Future[None]()
        self._flushing.set_result(None)
        for number, (file, names) in enumerate(zip(self._files, self._shards, strict=True)):
            stream = file.open("wb")
            self._streams.append(stream)
            at = stream.write(header_bytes({name: contents[name] for name in names}, {"format": "pt"}))
            stream.flush()
            for name in names:
                dtype, shape = contents[name]
                self.entries[name] = Entry(dtype, tuple(shape), number, at, sizes[name])
                at += sizes[name]

    def write(self, name: str, data: memoryview, at: int = 0) -> None:
        """Write the bytes of one tensor, or of a part of it that begins at its byte ``at``."""
        entry = self.entries[name]
        assert at + data.nbytes <= entry.nbytes, f"tensor {name} has {entry.nbytes} bytes, not {at + data.nbytes}"
        descriptor, done = self._streams[entry.file].fileno(), 0
        while done < data.nbytes:  # Linux writes at most 2 GiB at a time
            done += os.pwrite(descriptor, data[done : done + _MOST_AT_ONCE], entry.begin + at + done)

    def flush(self) -> None:
        """Begin to bring to the disk what was written, unless that is under way; OSError where it failed before."""
        if self._flushing.done():
            self._flushing.result()
            self._flushing = self._flusher.submit(self._sync)

    def _sync(self) -> None:
        for stream in self._streams:
            os.fsync(stream.fileno())

    def finish(self) -> None:
        """Bring everything to the disk and write the index."""
        self._flushing.result()
        self._sync()
        self.close()
        if len(self._files) > 1:
            weight_map = {name: self._files[entry.file].name for name, entry in self.entries.items()}
            index = {"metadata": {"total_size": self.nbytes}, "weight_map": weight_map}
            (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        """Close the files."""
        self._flusher.shutdown()
        for stream in self._streams:
            stream.close()

    def file(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._files[self.entries[name].file]


@contextmanager
def needing_room(place: Path, needed: int) -> Iterator[None]:
    """Say what is needed when the disk of ``place`` gets full within the block.

    Raises:
        RoomError: instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RoomError(
            f"The disk under {place} is full: {needed / 1e9:.2f} GB are needed. Nothing was kept; make room, or choose another "
            "output folder."
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Raise RoomError unless the disk under ``folder`` (or its nearest existing parent) has ``needed`` bytes and a little."""
    place = nearest(folder)
    free = shutil.disk_usage(place).free
    if free < needed + (1 << 20):
        raise RoomError(
            f"Too little room under {place}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free. "
            "Make room, or choose another output folder."
        )


def header_bytes(contents: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """Make the beginning of a safetensors file: what stands before the data, its length included.

    Args:
        contents: dtype (as safetensors writes it) and shape of all tensors, in the order in which they lie.
        metadata: free text by name.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in contents.items():
        end = at + prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_of(tensor: "torch.Tensor") -> memoryview:
    """Return a tensor's bytes as they lie in a file, without a copy where it is contiguous and on the CPU."""
    import torch

    view: memoryview = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    return view


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template and generation config of a model folder, as far as it has them."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_config(source: Path, config: Mapping[str, Any], dtype: str, folder: Path) -> None:
    """Write config.json in another dtype, and copy the code of the model folder where the config names some.

    Args:
        source: the model folder that it comes from.
        config: its contents.
        dtype: of the weights.
        folder: where to write.
    """
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "torch_dtype", "dtype")}
    (folder / "config.json").write_text(json.dumps(kept | {"dtype": dtype}, indent=2) + "\n")
    if "auto_map" in config:
        for code in source.glob("*.py"):
            shutil.copyfile(code, folder / code.name)


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
