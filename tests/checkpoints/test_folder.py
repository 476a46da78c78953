"""Model folders: what opens, and what each damaged, incomplete or hostile one is told."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kinray.checkpoints.folder import open_checkpoint
from kinray.checkpoints.locate import locate
from kinray.errors import CheckpointError
from tests.helpers import make_model, random_tensors

CONFIG = {"architectures": ["TinyForCausalLM"]}


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_folder_loads_what_safetensors_loads(tmp_path: Path, shards: int, dtype: torch.dtype) -> None:
    tensors = random_tensors(0, dtype=dtype)
    make_model(tmp_path / "m", tensors, shards=shards)

    checkpoint = open_checkpoint(tmp_path / "m", "m")

    theirs = {name: t for file in (tmp_path / "m").glob("*.safetensors") for name, t in load_file(file).items()}
    assert set(checkpoint.tensors) == set(tensors)
    assert checkpoint.nbytes == sum(t.nbytes for t in tensors.values())
    for name in tensors:
        assert torch.equal(checkpoint.load(name), theirs[name])
        assert checkpoint.load(name).dtype == dtype


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Model 'math': there is no folder .*/gone"):
        open_checkpoint(tmp_path / "gone", "math")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json. Name a Hugging Face model folder"),
        ("{", "config.json is not valid JSON"),
        ("[" * 100_000, "config.json is not valid JSON"),
        ("[1]", "must hold a mapping, not list"),
        ("{}", "names no architecture"),
        ('{"architectures": []}', "names no architecture"),
        ('{"architectures": "LlamaForCausalLM"}', "names no architecture"),
        ('{"architectures": ["A"], "quantization_config": {"bits": 4}}', "is quantised. Merging needs plain weights"),
    ],
)
def test_config_that_says_too_little(tmp_path: Path, config: str | None, message: str) -> None:
    make_model(tmp_path / "m", random_tensors(0))
    (tmp_path / "m" / "config.json").unlink()
    if config is not None:
        (tmp_path / "m" / "config.json").write_text(config)

    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "m", "m")


def test_config_that_is_not_utf8(tmp_path: Path) -> None:
    make_model(tmp_path / "m", random_tensors(0))
    (tmp_path / "m" / "config.json").write_bytes(b'{"architectures": ["\xff"]}')

    with pytest.raises(CheckpointError, match="is not valid JSON"):
        open_checkpoint(tmp_path / "m", "m")


def test_pickles_are_not_read_and_the_message_says_how_to_convert(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(CheckpointError, match=r"only pytorch_model.bin, a pickle.*safe_serialization=True"):
        open_checkpoint(tmp_path, "m")


@pytest.mark.parametrize("config", [True, False])
def test_adapter_in_the_place_of_a_model(tmp_path: Path, config: bool) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    with pytest.raises(CheckpointError, match=r"adapter. ?.*[Nn]ame it under 'adapter'"):
        open_checkpoint(tmp_path, "m")


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))

    with pytest.raises(CheckpointError, match=r"has no .safetensors file"):
        open_checkpoint(tmp_path, "m")
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        open_checkpoint(tmp_path, "m")


def test_several_files_without_an_index(tmp_path: Path) -> None:
    make_model(tmp_path, random_tensors(0), shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()

    with pytest.raises(CheckpointError, match=r"has 2 safetensors files \(model-00001-of-00002.safetensors, .*\) and no index"):
        open_checkpoint(tmp_path, "m")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../outside.safetensors", "'../outside.safetensors' points outside of"),
        ("a/../../outside.safetensors", "points outside of"),
        ("/etc/hostname", "'/etc/hostname' points outside of"),
        ("link.safetensors", "is a link that leaves"),
        ("gone.safetensors", "gone.safetensors is missing. Copy or download it again"),
        ("", "is missing"),
        (".", "is missing"),
        ("x" * 5000, "is missing"),
        ("a\0b", "is missing"),
    ],
    ids=lambda value: str(value)[:30].replace("\0", "NUL"),
)
def test_index_that_points_elsewhere(tmp_path: Path, file: str, message: str) -> None:
    folder = make_model(tmp_path / "m", random_tensors(0))
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    if file == "link.safetensors":
        (folder / file).symlink_to(tmp_path / "outside.safetensors")
    write_index(folder, {"a": file})

    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder, "m")


@pytest.mark.parametrize("weight_map", [None, [], "x", {"a": 1}, {"a": None}])
def test_index_without_a_map(tmp_path: Path, weight_map: Any) -> None:
    folder = make_model(tmp_path / "m", random_tensors(0))
    write_index(folder, weight_map)

    with pytest.raises(CheckpointError, match="has no weight_map from tensors to files"):
        open_checkpoint(folder, "m")


def test_single_file_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    real = make_model(tmp_path / "real", random_tensors(0))
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    os.symlink(real / "model.safetensors", folder / "model.safetensors")

    with pytest.raises(CheckpointError, match="is a link that leaves"):
        open_checkpoint(folder, "m")


def test_hub_cache_links_its_files_and_opens(tmp_path: Path) -> None:
    real = make_model(tmp_path / "real", random_tensors(0))
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for file in real.iterdir():
        file.rename(blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")

    assert len(open_checkpoint(snapshot, "m").tensors) == 4


def test_tensor_that_is_not_in_the_shard_of_the_index(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", random_tensors(0))
    write_index(folder, {"scale": "model.safetensors", "ghost": "model.safetensors"})

    with pytest.raises(CheckpointError, match=r"says that model.safetensors holds 'ghost', but it does not"):
        open_checkpoint(folder, "m")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", random_tensors(0))
    save_file({"scale": torch.ones(1), "b": torch.ones(1)}, folder / "more.safetensors")
    write_index(folder, {"norm.weight": "model.safetensors", "b": "more.safetensors"})

    with pytest.raises(CheckpointError, match=r"'scale' is in model.safetensors and in more.safetensors"):
        open_checkpoint(folder, "m")


def test_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", {"a": torch.zeros(4)})
    checkpoint = open_checkpoint(folder, "m")
    file = folder / "model.safetensors"
    times = file.stat()
    assert checkpoint.load("a").tolist() == [0] * 4

    save_file({"a": torch.ones(4)}, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert checkpoint.load("a").tolist() == [1] * 4


def test_locate_finds_folders_and_explains_the_rest(tmp_path: Path) -> None:
    assert locate(str(tmp_path), "m") == tmp_path.resolve()
    with pytest.raises(CheckpointError, match="is a folder; a revision belongs to a hub id"):
        locate(str(tmp_path), "m", revision="main")
    with pytest.raises(CheckpointError, match=r"Model 'm': there is no folder .*/gone. Check the path, or name a hub id"):
        locate(str(tmp_path / "gone"), "m")


def test_an_adapter_with_a_config_and_one_file_of_weights_is_no_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "lora", {"a.lora_A.weight": torch.ones(2, 2)}, CONFIG)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")

    with pytest.raises(CheckpointError, match=r"is an adapter\. Name it under 'adapter'"):
        open_checkpoint(folder, "lora")
