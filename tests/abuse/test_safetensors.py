"""Weight files that lie, in every command. More headers: tests/checkpoints/test_header.py."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kinray.core.methods import METHODS
from tests.abuse.refusing import Refusing
from tests.checkpoints.test_header import entry

NORM, EMBEDDING = "model.norm.weight", "model.embed_tokens.weight"


def write(file: Path, header: Any, data: bytes = b"", length: int | None = None, order: str = "little") -> None:
    """Write a file byte by byte; a header that is no bytes is written as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    file.write_bytes(size.to_bytes(8, "big" if order == "big" else "little") + text + data)


def of(header: Any, size: int = 0, **how: Any) -> Callable[[Path], None]:
    return lambda file: write(file, header, bytes(size), **how)


def header_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def data_cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def something_behind(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def big_endian_length(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:8][::-1] + data[8:])


def header_of_100_megabytes(file: Path) -> None:
    """Sparse: it takes no room on the disk."""
    with file.open("wb") as stream:
        stream.write((100_000_000).to_bytes(8, "little"))
        os.ftruncate(stream.fileno(), 100_000_008)


def largest_header_of_nothing(file: Path) -> None:
    write(file, b'{"a":[' + b"{}," * 3_000_000 + b"{}]}")


def text_file(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")


def nothing(file: Path) -> None:
    file.write_bytes(b"")


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "header cut off": (header_cut_off, "not a whole safetensors file.* Copy or download it again"),
    "data cut off": (data_cut_off, "it is truncated. Copy or download it again"),
    "something behind the data": (something_behind, "it is too long. Copy or download it again"),
    "empty file": (nothing, "it has 0 bytes"),
    "a pointer of git LFS": (text_file, "not a whole safetensors file"),
    "header longer than the file": (of({}, length=1 << 40), f"names a header of {1 << 40}"),
    "length that is a big-endian number": (big_endian_length, "names a header of [0-9]{15,}"),
    "header of 100 MB": (header_of_100_megabytes, "names a header of 100000000 bytes, more than the 10000000"),
    "largest header, of rubbish": (largest_header_of_nothing, "has a header that is not valid safetensors"),
    "header nested without end": (of(b"[" * 1_000_000), "not valid safetensors"),
    "header that is a list": (of([]), "not a mapping"),
    "overlap": (of({"a": entry(0, 8), "b": entry(4, 12)}, 12), "gap or overlap"),
    "gap": (of({"a": entry(0, 4), "b": entry(8, 12)}, 12), "gap or overlap"),
    "dtype of no name": (of({"a": entry(0, 4, dtype="F33")}, 4), "dtype 'F33', which kinray does not read"),
    "dtype that is a list": (of({"a": entry(0, 4, dtype=["F32"])}, 4), "not valid safetensors"),
    "a name twice": (of(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', 4), "a name is there twice"),
    "shape of more bytes than there are": (of({"a": entry(0, 4, [1 << 40, 1 << 40])}, 4), "has 4 bytes"),
    "negative sizes": (of({"a": entry(0, 4, [-1, -1])}, 4), "sizes that are not whole numbers"),
    "sizes of 5000 digits": (
        of(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', 4),
        "not valid safetensors",
    ),
    "NaN in the header": (of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', 4), "not whole numbers"),
    "no tensors": (of({"__metadata__": {"format": "pt"}}), "holds no tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_file_that_lies(refusing: Refusing, case: str) -> None:
    spoil, message = CASES[case]
    spoil(refusing.spoilt / "model.safetensors")

    for line in refusing.everywhere():
        assert re.search(message, line), line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weight_that_is_not_finite_is_named_with_its_model(refusing: Refusing, value: float, dtype: torch.dtype) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EMBEDDING] = tensors[EMBEDDING].to(dtype)
        tensors[EMBEDDING][3, 2] = value

    refusing.change_tensors(spoil)

    for line in refusing.everywhere():
        assert f"Model 'b': tensor '{EMBEDDING}' holds NaN or infinity in 1 of 60 places" in line


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_hides_a_weight_that_is_not_finite(refusing: Refusing, method: str, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EMBEDDING][3, 2] = value

    refusing.change_tensors(spoil)
    parameters = {"t": 0.5, "density": 0.3, "epsilon": 0.1, "gamma": 0.1, "select_topk": 0.3}
    known = {parameter.name for parameter in METHODS[method].parameters}
    starts = METHODS[method].first_is_base
    recipe = {
        "merge_method": method,
        "models": [{"model": "b"}] if starts or method == "passthrough" else [{"model": "a"}, {"model": "b"}],
        "parameters": {name: number for name, number in parameters.items() if name in known},
    }
    if METHODS[method].uses_base or starts:
        recipe["base_model"] = "a" if starts else "base"

    line = refusing.merge(yaml.safe_dump(recipe))

    assert f"Model 'b': tensor '{EMBEDDING}' holds NaN or infinity in 1 of 60 places" in line


def test_tensors_of_no_elements_are_not_confused_with_weights(refusing: Refusing) -> None:
    refusing.change_tensors(lambda tensors: tensors.update({NORM: torch.zeros(0)}))

    for line in refusing.everywhere():
        assert f"Tensor '{NORM}' has shape (0,) in 'b' but (6,) in" in line


def test_whole_numbers_in_the_place_of_weights(refusing: Refusing) -> None:
    refusing.change_tensors(lambda tensors: tensors.update({NORM: torch.ones(6, dtype=torch.int64)}))

    for line in refusing.everywhere():
        assert f"Tensor '{NORM}' of 'b' is I64, which holds no weights" in line
