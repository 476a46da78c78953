"""A model folder: its config and its safetensors files, checked from the headers alone and read tensor by tensor."""

import json
import os
import threading
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kinray.checkpoints.header import TensorInfo, read_header
from kinray.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
CONVERT = "AutoModelForCausalLM.from_pretrained(SRC).save_pretrained(DST, safe_serialization=True)."
GGUF = "GGUF is a format to run models from, mostly quantised. Merge the model that it was made from, then convert the result."
OUTPUT_LAYER = "lm_head.weight"
"""End of the name of the output layer, in models that do not use their embedding as such."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")
"""Ends of the names of the embedding."""
_READ = (".json", ".safetensors", ".jinja", ".model", ".txt", ".py")
"""Endings of the files of a model folder that anything reads or copies."""
_MAX_JSON = 1 << 26
"""Bytes; the largest tokenizers have 35 MB, the largest indices 10."""
_FILES = threading.local()


class WeightSource(Protocol):
    """Tensors of a model by name.

    The seam behind which a founder may be a folder, a folder with an adapter, or one fitted to another vocabulary.
    """

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """What there is, by name, in file order. Shapes are those that ``load`` returns."""

    def load(self, name: str) -> "torch.Tensor":
        """Return a tensor in its stored dtype, mapped from its file where possible; never written into."""


@dataclass
class ModelView:
    """A model seen in another way: what all such views have in common.

    Args:
        model: what is seen.
    """

    model: WeightSource

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.model.name

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the model."""
        return self.model.config


@dataclass
class Checkpoint:
    """A Hugging Face model folder with safetensors weights.

    Args:
        name: what errors call it.
        folder: where it lies.
        config: config.json.
        tensors: by name, in file order.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())

    def load(self, name: str) -> "torch.Tensor":
        """Return a tensor in its stored dtype, mapped from the file, so that processes share the page cache.

        The system is told to read all of it, so that the disk is ahead of who computes.
        """
        info = self.tensors[name]
        file, descriptor = _open(info.file)
        os.posix_fadvise(descriptor, info.begin, info.nbytes, os.POSIX_FADV_WILLNEED)
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _open(file: Path) -> tuple[Any, int]:
    """Keep one mapping and one descriptor of each file for each thread."""
    from safetensors import safe_open

    handles = _FILES.__dict__.setdefault("handles", {})
    stat = file.stat()
    key = (str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in handles:
        stream = file.open("rb")
        handles[key] = (safe_open(file, framework="pt", device="cpu"), stream)
    mapping, stream = handles[key]
    return mapping, stream.fileno()


def open_checkpoint(folder: Path, name: str) -> Checkpoint:
    """Open a model folder, reading its config and file headers only.

    Raises:
        CheckpointError: when the folder is missing or holds no model, its weights are pickles, its index points outside of
            it or to missing tensors, or a file is damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"Model '{name}': there is no folder {folder}.")
    check_links(folder, name)
    config = _read_config(folder, name)
    tensors: dict[str, TensorInfo] = {}
    for file in _weight_files(folder, name):
        for info in read_header(file):
            if info.name in tensors:
                raise CheckpointError(
                    f"Model '{name}': tensor '{info.name}' is in {tensors[info.name].file.name} and in {file.name}."
                )
            tensors[info.name] = info
    if not tensors:
        raise CheckpointError(f"Model '{name}': {folder} holds no tensors.")
    return Checkpoint(name, folder, config, tensors)


def read_json(file: Path, name: str) -> dict[str, Any]:
    """Read a JSON mapping of a model folder, or raise CheckpointError."""
    try:
        if file.stat().st_size > _MAX_JSON:
            raise CheckpointError(f"Model '{name}': {file} has {file.stat().st_size} bytes, more than the {_MAX_JSON} allowed.")
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"Model '{name}': cannot read {file}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"Model '{name}': {file} is not valid JSON: {str(error)[:200]}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"Model '{name}': {file} must hold a mapping, not {type(data).__name__}.")
    return data


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        if any(file.suffix == ".gguf" for file in folder.iterdir()):
            raise CheckpointError(f"Model '{name}': {folder} has no config.json. {GGUF}")
        adapter = (folder / "adapter_config.json").is_file()
        remedy = (
            "It is an adapter: name it under 'adapter' (in a recipe: MODEL+ADAPTER)."
            if adapter
            else "Name a Hugging Face model folder."
        )
        raise CheckpointError(f"Model '{name}': {folder} has no config.json. {remedy}")
    config = read_json(folder / "config.json", name)
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(one, str) for one in named):
        raise CheckpointError(f"Model '{name}': {folder / 'config.json'} names no architecture.")
    if "quantization_config" in config:
        raise CheckpointError(
            f"Model '{name}': {folder} is quantised. Merging needs plain weights: use the model before quantisation."
        )
    return config


def _weight_files(folder: Path, name: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(folder, index, name)
    if (folder / "model.safetensors").is_file():
        return [_inside(folder, "model.safetensors", name)]
    files = sorted(file for file in folder.glob("*.safetensors") if file.name != ADAPTER_WEIGHTS)
    if len(files) == 1:
        return [_inside(folder, files[0].name, name)]
    if files:
        listed = ", ".join(file.name for file in files[:5])
        raise CheckpointError(f"Model '{name}': {folder} has {len(files)} safetensors files ({listed}) and no index.")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"Model '{name}': {folder} is an adapter. Name it under 'adapter'.")
    if pickles := sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES):
        raise CheckpointError(
            f"Model '{name}': {folder} has only {pickles[0]}, a pickle, which can run code when it is read. "
            f"Convert it where you trust it: {CONVERT}"
        )
    if packed := sorted(file.name for file in folder.iterdir() if file.suffix == ".gguf"):
        raise CheckpointError(f"Model '{name}': {folder} has only {packed[0]}. {GGUF}")
    raise CheckpointError(
        f"Model '{name}': {folder} has no .safetensors file. If there are only pickles (.bin) of it, convert them: {CONVERT}"
    )


def _indexed_files(folder: Path, index: Path, name: str) -> list[Path]:
    weight_map = read_json(index, name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"Model '{name}': {index} has no weight_map from tensors to files.")
    files = {file: _inside(folder, file, name) for file in dict.fromkeys(weight_map.values())}
    if pickles := [file for file in files if not file.endswith(".safetensors")]:
        raise CheckpointError(
            f"Model '{name}': {index} names '{pickles[0]}', but only safetensors is read. If it is a pickle, convert the model "
            f"where you trust it: {CONVERT}"
        )
    held = {file: {info.name for info in read_header(path)} for file, path in files.items()}
    for tensor, file in weight_map.items():
        if tensor not in held[file]:
            raise CheckpointError(f"Model '{name}': {index.name} says that {file} holds '{tensor}', but it does not.")
    return list(files.values())


def check_links(folder: Path, name: str) -> None:
    """Raise CheckpointError for a link that leads out of a folder, to what would be read or copied as a part of the model."""
    for path in folder.iterdir():
        if path.is_symlink() and path.suffix in _READ and isfile(path):
            _inside(folder, path.name, name)


def _inside(folder: Path, file: str, name: str) -> Path:
    """Resolve a file that a model folder names, which must not lead out of it.

    Links are followed, as hub caches are made of them, but only within the folder or its hub cache.
    """
    path = folder / file
    if Path(file).is_absolute() or ".." in Path(file).parts:
        raise CheckpointError(f"Model '{name}': '{file}' points outside of {folder}.")
    if not isfile(path):  # Path.is_file raises for a name that is too long
        raise CheckpointError(f"Model '{name}': {path} is missing. Copy or download it again.")
    real = path.resolve()
    home = folder.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(cache)):
        raise CheckpointError(f"Model '{name}': {path} is a link that leaves {folder}.")
    return path
