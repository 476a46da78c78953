"""Written folders: what safetensors and transformers read back, and what a failure leaves behind."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kinray.checkpoints import writer as writer_module
from kinray.checkpoints.folder import open_checkpoint
from kinray.checkpoints.header import read_header
from kinray.checkpoints.writer import CODES, WeightWriter, check_room, copy_tokenizer, data_of, folder_replacing
from kinray.errors import RunError
from tests.helpers import random_tensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write(folder: Path, tensors: dict[str, Tensor], dtype: str, shard_bytes: int = 1 << 30) -> int:
    """Write tensors in an order that is not that of the files."""
    writer = WeightWriter(folder, {name: (CODES[dtype], tensor.shape) for name, tensor in tensors.items()}, shard_bytes)
    for name in sorted(tensors, reverse=True):
        writer.write(name, data_of(tensors[name]))
    writer.finish()
    return writer.nbytes


def read_all(folder: Path) -> dict[str, Tensor]:
    """Read every file with safetensors' own loader."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_reads_back_the_same_bits(tmp_path: Path, dtype: str) -> None:
    tensors = random_tensors(0, dtype=DTYPES[dtype])
    tensors |= {"turned": tensors["mlp.weight"].T, "point": tensors["scale"][0], "none": tensors["scale"][:0]}

    size = write(tmp_path, tensors, dtype)

    back = read_all(tmp_path)
    assert size == sum(tensor.nbytes for tensor in tensors.values())
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_several_shards_have_an_index(tmp_path: Path) -> None:
    tensors = random_tensors(0, dict.fromkeys("abcde", (8,)))

    write(tmp_path, tensors, "float32", shard_bytes=64)

    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 32
    assert list(index["weight_map"].values()) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 1, 2, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])


def test_weights_begin_where_a_mapping_can_be_read_as_numbers(tmp_path: Path) -> None:
    for length in range(1, 9):
        write(tmp_path, {"n" * length: torch.ones(2)}, "float32")

        (info,) = read_header(tmp_path / "model.safetensors")
        assert info.begin % 8 == 0


def test_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    tensors = random_tensors(0, {"small": (2,), "large": (100,), "last": (2,)})

    write(tmp_path, tensors, "float32", shard_bytes=64)

    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_all(tmp_path).items())


def test_transformers_loads_what_we_write_bit_for_bit(tmp_path: Path) -> None:
    config = LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2)
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "theirs")
    theirs = open_checkpoint(tmp_path / "theirs", "theirs")
    ours = tmp_path / "ours"
    ours.mkdir()
    shutil.copy(tmp_path / "theirs" / "config.json", ours)

    write(ours, {name: theirs.load(name) for name in theirs.tensors}, "bfloat16", shard_bytes=2000)

    back = LlamaForCausalLM.from_pretrained(ours, dtype=torch.bfloat16).state_dict()
    assert len(list(ours.glob("*.safetensors"))) > 1
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in back.items())
    assert open_checkpoint(ours, "ours").nbytes == theirs.nbytes


def test_a_large_tensor_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_MOST_AT_ONCE", 100)
    tensors = random_tensors(0, {"a": (1000,), "b": (3,)})

    write(tmp_path, tensors, "float32")

    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_all(tmp_path).items())


def test_tensors_keep_dtypes_of_their_own(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(3).bfloat16(), "positions": torch.arange(5)}
    files = WeightWriter(tmp_path, {"weight": ("BF16", (3,)), "positions": ("I64", (5,))})
    for name, tensor in tensors.items():
        files.write(name, data_of(tensor))
    files.finish()

    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_all(tmp_path).items())


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))

    with pytest.raises(RunError, match=r"4.00 GB are needed and 0.00 GB are free"):
        WeightWriter(tmp_path, {"a": ("F32", (1000, 1000, 1000))})

    assert list(tmp_path.iterdir()) == []


def test_room_is_looked_for_under_the_nearest_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda place: asked.append(place) or SimpleNamespace(free=1 << 30))

    check_room(tmp_path / "not" / "there", 1)

    assert asked == [tmp_path]


def test_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"

    with folder_replacing(target) as temporary:
        (temporary / "a").write_text("new")
        assert temporary.parent == target.parent
        assert not target.exists()

    assert (target / "a").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def _write_and_stop(target: Path) -> None:
    with folder_replacing(target) as temporary:
        (temporary / "a").write_text("new")
        raise KeyboardInterrupt("stop")


@pytest.mark.parametrize("there_before", [True, False])
def test_failure_leaves_what_was_there(tmp_path: Path, there_before: bool) -> None:
    target = tmp_path / "model"
    if there_before:
        target.mkdir()
        (target / "a").write_text("old")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        _write_and_stop(target)

    left = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    assert left == ({Path("model/a"): "old"} if there_before else {})


def test_old_folder_is_replaced_and_gone(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("old")

    with folder_replacing(target) as temporary:
        (temporary / "new").write_text("new")
        assert (target / "old").read_text() == "old"

    assert [file.name for file in tmp_path.rglob("*")] == ["model", "new"]


def test_tokenizer_files_are_copied_as_far_as_there_are_any(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "pytorch_model.bin"):
        (source / name).write_text(name)

    copy_tokenizer(source, target)

    assert {file.name: file.read_text() for file in target.iterdir()} == {
        "tokenizer.json": "tokenizer.json",
        "chat_template.jinja": "chat_template.jinja",
    }
