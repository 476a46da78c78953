"""Digests: the same for the same tensors wherever they lie, another one for another bit, and never a stale one."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinray.checkpoints import identity
from kinray.checkpoints.folder import open_checkpoint
from kinray.checkpoints.identity import digest, model_digest
from kinray.errors import CheckpointError
from kinray.files import cache_folder
from tests.helpers import make_model, random_tensors


def digest_of(folder: Path) -> str:
    return digest(open_checkpoint(folder, folder.name))


def test_digest_is_the_sha256_of_names_dtypes_shapes_and_contents(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", {"b": torch.zeros(2, 1), "a": torch.ones(3).bfloat16(), "c": torch.zeros(0)})
    contents = {"a": bytes.fromhex("803f803f803f"), "b": bytes(8), "c": b""}
    parts = [
        [name, dtype, shape, hashlib.sha256(contents[name]).hexdigest()]
        for name, dtype, shape in [("a", "BF16", [3]), ("b", "F32", [2, 1]), ("c", "F32", [0])]
    ]

    expected = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()

    assert digest_of(folder) == expected


def test_digest_ignores_files_order_path_time_and_config(tmp_path: Path) -> None:
    tensors = random_tensors(0)
    one = make_model(tmp_path / "one", tensors)
    other = make_model(tmp_path / "deep" / "other", dict(reversed(tensors.items())), {"architectures": ["X"]}, shards=3)
    os.utime(one / "model.safetensors", (1, 1))

    assert digest_of(one) == digest_of(other)


@pytest.mark.parametrize("change", ["bit", "name", "dtype", "shape", "sign of zero"])
def test_digest_changes_with_every_part_of_a_model(tmp_path: Path, change: str) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    before = digest_of(make_model(tmp_path / "before", tensors))
    match change:
        case "bit":
            tensors["b"].view(torch.int32)[1] ^= 1
        case "name":
            tensors["c"] = tensors.pop("b")
        case "dtype":
            tensors["a"] = torch.zeros(2, 3, dtype=torch.int32)
        case "shape":
            tensors["a"] = torch.zeros(3, 2)
        case "sign of zero":
            tensors["a"][0, 0] = -0.0

    assert digest_of(make_model(tmp_path / "after", tensors)) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    folder = make_model(tmp_path / "chat", {"a": torch.ones(3), "b": torch.tensor([[1.0, bad, 2.0], [bad, 0, 0]]).to(dtype)})

    with pytest.raises(CheckpointError, match="Model 'chat': tensor 'b' holds NaN or infinity in 2 of 6 places"):
        digest_of(folder)
    with pytest.raises(CheckpointError, match="tensor 'b' holds NaN"):  # and nothing of it is remembered
        digest_of(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_largest_and_smallest_numbers_are_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    edge = torch.tensor([limits.max, limits.min, limits.tiny, limits.smallest_normal / 4, -0.0], dtype=dtype)

    assert len(digest_of(make_model(tmp_path / "m", {"a": edge, "b": torch.tensor([0x7F80], dtype=torch.int16)}))) == 64


def test_second_digest_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "m", random_tensors(0))
    first = digest_of(folder)
    monkeypatch.setattr(identity, "_digest_contents", lambda *_: pytest.fail("contents were read again"))
    seen: list[int] = []

    again = digest(open_checkpoint(folder, "m"), seen.append)

    assert again == first
    assert sum(seen) == open_checkpoint(folder, "m").nbytes


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_model(tmp_path / "m", random_tensors(0)), "m")
    seen: list[int] = []

    digest(checkpoint, seen.append)

    assert sum(seen) == checkpoint.nbytes


@pytest.mark.parametrize("keep_time", [False, True], ids=["new time", "same time, new file"])
def test_rewritten_file_of_the_same_size_has_its_own_digest(tmp_path: Path, keep_time: bool) -> None:
    folder = make_model(tmp_path / "m", {"a": torch.zeros(4)})
    file = folder / "model.safetensors"
    before, times = digest_of(folder), file.stat()

    save_file({"a": torch.ones(4)}, folder / "new", metadata={"format": "pt"})
    (folder / "new").replace(file)
    later = times.st_mtime_ns + (0 if keep_time else 1)
    os.utime(file, ns=(times.st_atime_ns, later))

    assert file.stat().st_size == times.st_size
    assert digest_of(folder) != before
    assert digest_of(folder) == digest_of(make_model(tmp_path / "same", {"a": torch.ones(4)}))


def test_file_rewritten_in_place_has_its_own_digest(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", {"a": torch.zeros(4)})
    file = folder / "model.safetensors"
    before, inode = digest_of(folder), file.stat().st_ino
    os.utime(file, (1, 1))

    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x01")

    assert file.stat().st_ino == inode
    assert digest_of(folder) != before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"digest": 5}', '{"digest": "short"}', "\0"])
def test_damaged_cache_entry_is_made_again(tmp_path: Path, content: str) -> None:
    folder = make_model(tmp_path / "m", random_tensors(0))
    first = digest_of(folder)
    (entry,) = (cache_folder() / "digests").iterdir()
    entry.write_text(content)

    assert digest_of(folder) == first
    assert json.loads(entry.read_text())["digest"] == first


def test_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setenv("KINRAY_CACHE", str(blocked))
    folder = make_model(tmp_path / "m", random_tensors(0))

    assert digest_of(folder) == digest_of(folder)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("KINRAY_CACHE")

    assert cache_folder() == tmp_path / "kinray"
    monkeypatch.setenv("KINRAY_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"


def adapter(folder: Path, alpha: float, factor: float) -> Path:
    """Write a LoRA adapter of one layer by hand."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": alpha}))
    prefix = "base_model.model.mlp"
    factors = {f"{prefix}.lora_A.weight": torch.full((2, 6), float(factor)), f"{prefix}.lora_B.weight": torch.ones(5, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    return folder


def test_digest_of_an_adapted_model_covers_model_adapter_and_scale(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", random_tensors(0))
    same, other = make_model(tmp_path / "same", random_tensors(0), shards=2), make_model(tmp_path / "other", random_tensors(1))
    plain, again = adapter(tmp_path / "a", alpha=2, factor=1), adapter(tmp_path / "b", alpha=2, factor=1)
    digest_of_plain = model_digest(base, plain, "chat")

    assert digest_of_plain == model_digest(same, again, "math")
    others = [
        model_digest(base, None, "chat"),
        model_digest(other, plain, "chat"),
        model_digest(base, adapter(tmp_path / "scaled", alpha=4, factor=1), "chat"),
        model_digest(base, adapter(tmp_path / "trained", alpha=2, factor=3), "chat"),
    ]
    assert len({digest_of_plain, *others}) == 5
