"""The header of a safetensors file: what we read of files that the library writes, and of files that lie."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kinray.checkpoints.header import read_header
from kinray.errors import CheckpointError

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def literal(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file byte by byte; a header that is no bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "literal.safetensors"
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return file


def entry(begin: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_file_of_the_library_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.ones(number, 3).to(dtype) for number, dtype in enumerate(DTYPES, start=1)}
    save_file(tensors | {"point": torch.tensor(1.5), "empty": torch.zeros(0, 4)}, tmp_path / "m.safetensors")

    infos = {info.name: info for info in read_header(tmp_path / "m.safetensors")}

    with safe_open(tmp_path / "m.safetensors", "pt") as theirs:
        assert set(infos) == set(theirs.keys())
        for name, info in infos.items():
            tensor = theirs.get_tensor(name)
            raw = (tmp_path / "m.safetensors").read_bytes()[info.begin : info.end]
            assert (info.shape, info.dtype) == (tuple(tensor.shape), DTYPES[tensor.dtype])
            assert (info.numel, info.floating) == (tensor.numel(), tensor.is_floating_point())
            assert raw == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_literal_bytes(tmp_path: Path) -> None:
    header = b'{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},'
    header += b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   '
    file = literal(tmp_path, header, bytes(8))

    a, b = read_header(file)

    assert (a.name, a.dtype, a.shape, a.begin - len(header), a.nbytes) == ("a", "F32", (), 8, 4)
    assert (b.name, b.dtype, b.shape, b.begin - len(header), b.nbytes) == ("b", "BF16", (2, 1), 12, 4)


def test_empty_tensors_may_stand_anywhere(tmp_path: Path) -> None:
    header = {"a": entry(0, 8), "y": entry(8, 8), "x": entry(0, 0), "b": entry(8, 12), "z": entry(12, 12, [3, 0])}

    assert [info.name for info in read_header(literal(tmp_path, header, bytes(12)))] == ["x", "a", "y", "b", "z"]


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "starts at byte .*: gap or overlap"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "gap or overlap"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "gap or overlap"),
        ({"a": entry(4, 8)}, 8, "gap or overlap"),
        ({"a": entry(0, 8)}, 7, "it is truncated. Copy or download it again"),
        ({"a": entry(0, 8)}, 9, "it is too long"),
        ({}, 1, "it is too long"),
        ({"a": entry(0, 8, [3])}, 8, "'a' of F32 .3. has 8 bytes"),
        ({"a": entry(8, 0, [2])}, 8, "has -8 bytes"),
        ({"a": entry(0, 4, dtype="F8_E4M3")}, 4, "has dtype 'F8_E4M3', which kinray does not read"),
        ({"a": entry(0, 4, dtype=["F32"])}, 4, "not valid safetensors"),
        ({"a": entry(0, 4, "1")}, 4, "sizes that are not whole numbers"),
        ({"a": entry(0, 4, {"0": 1})}, 4, "sizes that are not whole numbers"),
        ({"a": entry(0, 4, [1.0])}, 4, "sizes that are not whole numbers"),
        ({"a": entry(0, 4, [True])}, 4, "sizes that are not whole numbers"),
        ({"a": entry(0, 4, [-1, -1])}, 4, "sizes that are not whole numbers"),
        ({"a": entry(0, 4, [1 << 62, 1 << 62])}, 4, "sizes that are not whole numbers"),
        ({"a": entry(0, 4, [1 << 47, 1 << 47, 1 << 47])}, 4, "has 4 bytes"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 62]}}, 4, "not whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, 4, "not whole numbers"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, 4, "not valid safetensors"),
        ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, 4, "not valid safetensors"),
        ({"a": 5}, 4, "not valid safetensors"),
        ([], 0, "it is not a mapping"),
        (b"", 0, "not valid safetensors"),
        (b"\xff\xfe{}", 0, "not valid safetensors"),
        (b"[" * 100_000, 0, "not valid safetensors"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', 4, "a name is there twice"),
        (b'{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,4]}}', 4, "a name is there twice"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', 4, "not valid safetensors"),
    ],
)
def test_header_that_lies_is_refused(tmp_path: Path, header: Any, size: int, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(literal(tmp_path, header, bytes(size)))


@pytest.mark.parametrize("length", [3, 100, 1 << 40, (1 << 64) - 1])
def test_header_beyond_the_end_of_the_file_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(CheckpointError, match=f"not a whole safetensors file: it has 10 bytes and names a header of {length}"):
        read_header(literal(tmp_path, b"{}", length=length))


@pytest.mark.parametrize("size", [0, 1, 7])
def test_file_without_room_for_a_length_is_refused(tmp_path: Path, size: int) -> None:
    file = tmp_path / "short.safetensors"
    file.write_bytes(bytes(size))

    with pytest.raises(CheckpointError, match=f"it has {size} bytes"):
        read_header(file)


def test_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    whole = (tmp_path / "m.safetensors").read_bytes()

    for size in range(len(whole)):
        (tmp_path / "m.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"m.safetensors"):
            read_header(tmp_path / "m.safetensors")


def test_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Cannot read .*: No such file"):
        read_header(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match=r"Cannot read .*: Is a directory"):
        read_header(tmp_path)


@settings(max_examples=200)
@given(st.data())
def test_what_we_accept_the_library_accepts(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    header = {"a": entry(0, 8), "b": entry(8, 12, [1, 1])}
    text = bytearray(json.dumps(header).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b'0123456789",:{}[]-ab \x00\xff'))
    file = literal(tmp_path_factory.getbasetemp(), bytes(text), bytes(12))

    try:
        ours = {info.name for info in read_header(file)}
    except CheckpointError:
        return
    try:
        with safe_open(file, "pt") as theirs:
            assert ours == set(theirs.keys())
    except SafetensorError as error:
        pytest.fail(f"kinray accepts {bytes(text)!r}, safetensors says {error}")
