"""Model folders with an index, a config or files that lie, in every command. More: tests/checkpoints/test_folder.py."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.abuse.refusing import Refusing

NORM = "model.norm.weight"
Spoil = Callable[[Path], None]


def index(weight_map: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return spoil


def in_shards(change: Callable[[Path, dict[str, str]], None]) -> Spoil:
    """Spread the model over two files with an index, and change these."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        place = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
        for file in set(place.values()):
            save_file({name: tensor for name, tensor in tensors.items() if place[name] == file}, folder / file)
        change(folder, place)
        index(place)(folder)

    return spoil


def missing_shard(folder: Path, place: dict[str, str]) -> None:
    (folder / "model-1.safetensors").unlink()


def shard_is_a_folder(folder: Path, place: dict[str, str]) -> None:
    missing_shard(folder, place)
    (folder / "model-1.safetensors").mkdir()


def tensor_in_two_shards(folder: Path, place: dict[str, str]) -> None:
    shard = load_file(folder / "model-1.safetensors")
    other = next(name for name in place if name not in shard)
    save_file(shard | {other: torch.ones(1)}, folder / "model-1.safetensors")


def tensor_of_another_shard(folder: Path, place: dict[str, str]) -> None:
    place[NORM] = "model-0.safetensors" if place[NORM] == "model-1.safetensors" else "model-1.safetensors"


def one_shard_by_two_names(folder: Path, place: dict[str, str]) -> None:
    place[NORM] = f"./{place[NORM]}"


def upwards(folder: Path, place: dict[str, str]) -> None:
    place[NORM] = "../a/model.safetensors"


def absolute(folder: Path, place: dict[str, str]) -> None:
    place[NORM] = str(folder.parent / "a" / "model.safetensors")


def link_out_of_the_folder(folder: Path, place: dict[str, str]) -> None:
    missing_shard(folder, place)
    (folder / "model-1.safetensors").symlink_to(folder.parent / "a" / "model.safetensors")


def link_to_itself(folder: Path, place: dict[str, str]) -> None:
    missing_shard(folder, place)
    (folder / "model-1.safetensors").symlink_to("model-1.safetensors")


def link_by_way_of_a_folder(folder: Path, place: dict[str, str]) -> None:
    (folder / "sub").symlink_to(folder.parent / "a")
    place[NORM] = "sub/model.safetensors"


def pickle_in_the_index(folder: Path, place: dict[str, str]) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"")
    place[NORM] = "pytorch_model.bin"


def control_characters(folder: Path, place: dict[str, str]) -> None:
    place[NORM] = "\x1b[2J\x07\r\nError: all is well.safetensors"


def index_of_no_json(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{'weight_map': {}}")


def index_without_end(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map":' * 100_000)


def index_of_a_gigabyte(folder: Path) -> None:
    """Sparse: it takes no room on the disk."""
    with (folder / "model.safetensors.index.json").open("wb") as stream:
        os.ftruncate(stream.fileno(), 1 << 30)


INDEX: dict[str, tuple[Spoil, str]] = {
    "not JSON": (index_of_no_json, "index.json is not valid JSON"),
    "nested without end": (index_without_end, "index.json is not valid JSON"),
    "1 GB": (index_of_a_gigabyte, "index.json has 1073741824 bytes, more than"),
    "no map": (index(None), "has no weight_map from tensors to files"),
    "a map to lists": (index({NORM: ["model.safetensors"]}), "has no weight_map from tensors to files"),
    "an empty map": (index({}), "holds no tensors"),
    "missing shard": (in_shards(missing_shard), "model-1.safetensors is missing. Copy or download it again"),
    "shard that is a folder": (in_shards(shard_is_a_folder), "model-1.safetensors is missing"),
    "tensor in two shards": (in_shards(tensor_in_two_shards), "is in model-[01].safetensors and in model-[01].safetensors"),
    "tensor in another shard": (in_shards(tensor_of_another_shard), f"holds '{NORM}', but it does not"),
    "one shard by two names": (in_shards(one_shard_by_two_names), "is in model-[01].safetensors and in|but it does not"),
    "upwards": (in_shards(upwards), r"'../a/model.safetensors' points outside of"),
    "absolute path": (in_shards(absolute), "points outside of"),
    "link out of the folder": (in_shards(link_out_of_the_folder), "is a link that leaves"),
    "link to itself": (in_shards(link_to_itself), "model-1.safetensors is missing"),
    "link of a folder that leads out": (in_shards(link_by_way_of_a_folder), "is a link that leaves"),
    "pickle": (in_shards(pickle_in_the_index), "'pytorch_model.bin', but only safetensors is read.*safe_serialization=True"),
    "name that clears the screen": (in_shards(control_characters), r"\\x1b\[2J\\x07\\r\\nError: all is well"),
    "name with a NUL": (index({NORM: "model\0.safetensors"}), r"model\\x00.safetensors is missing"),
    "name that is no text": (index({NORM: "\ud800.safetensors"}), r"\\ud800.safetensors is missing"),
    "name of 10 000 characters": (index({NORM: "x" * 10_000 + ".safetensors"}), "characters left out.*is missing"),
}


@pytest.mark.parametrize("case", INDEX)
def test_index_that_lies(refusing: Refusing, case: str) -> None:
    spoil, message = INDEX[case]
    spoil(refusing.spoilt)

    for line in refusing.everywhere():
        assert re.search(message, line), line


CONFIG: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "config.json is not valid JSON"),
    "not JSON": ("architectures: [A]", "config.json is not valid JSON"),
    "not text": (b"\xff\xfe{}", "config.json is not valid JSON"),
    "nested without end": ('{"a":' * 100_000, "config.json is not valid JSON"),
    "number of 5000 digits": ('{"vocab_size": ' + "9" * 5000 + "}", "config.json is not valid JSON"),
    "a list": ("[]", "must hold a mapping, not list"),
    "no architecture": ('{"vocab_size": 10}', "names no architecture"),
    "architecture that is a mapping": ('{"architectures": [{"a": 1}]}', "names no architecture"),
    "another architecture": ('{"architectures": ["Other"]}', "is a Other, but the base"),
    "architecture that rings the bell": ('{"architectures": ["\\u0007\\u001b]0;x\\u0007"]}', r"is a \\x07\\x1b\]0;x\\x07, but"),
    "quantised": ('{"architectures": ["TinyForCausalLM"], "quantization_config": {}}', "is quantised"),
    "other heads": (
        '{"architectures": ["TinyForCausalLM"], "hidden_size": [1e999]}',
        r"has hidden_size \[inf\] but the base",
    ),
}


@pytest.mark.parametrize("case", CONFIG)
def test_config_that_lies(refusing: Refusing, case: str) -> None:
    content, message = CONFIG[case]
    (refusing.spoilt / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())

    for line in refusing.everywhere():
        assert re.search(message, line), line


@pytest.mark.parametrize("settings", [{"vocab_size": "10"}, {"vocab_size": -1}, {"text_config": []}, {"vocab_size": True}])
def test_sizes_in_the_config_that_fit_no_tensor(refusing: Refusing, settings: dict[str, Any]) -> None:
    refusing.change_config(**settings)
    refusing.change_tensors(lambda tensors: tensors.update({"lm_head.weight": torch.ones(9, 6)}))

    for line in refusing.everywhere():
        assert "Tensor 'lm_head.weight' has shape (9, 6) in 'b' but (10, 6) in" in line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "consolidated.00.pth"])
def test_folder_with_a_pickle_alone_is_told_how_to_convert_it(refusing: Refusing, name: str) -> None:
    (refusing.spoilt / "model.safetensors").rename(refusing.spoilt / name)

    for line in refusing.everywhere():
        assert re.search(f"has only {name}, a pickle, which can run code.*save_pretrained", line), line


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickle_in_the_place_of_a_folder_is_told_how_to_convert_it(refusing: Refusing, name: str) -> None:
    shutil.rmtree(refusing.spoilt)
    (refusing.folder / name).write_bytes(b"\x80\x04.")

    lines = [
        refusing.merge(f"merge_method: linear\nmodels: [{{model: a}}, {{model: {name}}}]"),
        refusing.kinship("a", name),
        refusing.evolve(founders=["a", {"name": "b", "model": name}]),
    ]

    for line in lines:
        assert re.search(f"{name} is a pickle, which can run code.*save_pretrained", line), line


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "config.json", "generation_config.json", "chat_template.jinja", "modeling.py"]
)
def test_link_that_would_bring_a_private_file_into_the_child(refusing: Refusing, name: str) -> None:
    (refusing.folder / "private").write_text("secret")
    (refusing.spoilt / name).unlink(missing_ok=True)
    (refusing.spoilt / name).symlink_to(refusing.folder / "private")

    for line in refusing.everywhere():
        assert re.search(f"{name} is a link that leaves", line), line


def test_model_that_is_a_file(refusing: Refusing) -> None:
    shutil.rmtree(refusing.spoilt)
    refusing.spoilt.write_text("")

    for line in refusing.everywhere():
        assert "there is no folder b" in line
