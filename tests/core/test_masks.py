"""Hashed random numbers, against the published hash in plain Python integers."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kinray.core.masks import HashedMasks

WORD = (1 << 32) - 1


def triple32(x: int, key: int) -> int:
    """The hash as it is published, with a second key added after its first round."""
    x ^= x >> 17
    x = x * 0xED5AD4BB & WORD
    x = x + key & WORD
    x ^= x >> 11
    x = x * 0xAC4C1B51 & WORD
    x ^= x >> 15
    x = x * 0x31848BAB & WORD
    return x ^ x >> 14


def numbers(digest: str, tensor: str, parent: int, start: int, count: int) -> Tensor:
    return HashedMasks(digest, tensor).uniform(parent, start, torch.empty(count))


def expected(tensor: str, parent: int, index: int) -> float:
    text = json.dumps(["d", tensor, parent, index >> 32], separators=(",", ":")).encode()
    first, second = (int.from_bytes(hashlib.sha256(text).digest()[at : at + 4], "little") for at in (0, 4))
    return (triple32(index + first & WORD, second) >> 8) / 2**24


@given(st.text(max_size=20), st.integers(0, 63), st.integers(0, 1 << 34), st.integers(1, 40))
def test_numbers_are_the_top_bits_of_the_published_hash(tensor: str, parent: int, start: int, count: int) -> None:
    got = numbers("d", tensor, parent, start, count)

    assert got.tolist() == [expected(tensor, parent, start + place) for place in range(count)]


def test_numbers_of_a_tensor_of_more_than_32_bits_go_on_over_the_page() -> None:
    start = (1 << 32) - 3

    assert numbers("d", "t", 0, start, 6).tolist() == [expected("t", 0, start + place) for place in range(6)]


def test_numbers_are_pinned_for_ever() -> None:
    got = numbers("0" * 64, "model.norm.weight", 1, 0, 3)

    assert (got * 2**24).int().tolist() == [15378906, 15542468, 16649172]


def test_blocks_do_not_show() -> None:
    whole = numbers("d", "t", 0, 0, 1000)

    assert torch.equal(torch.cat([numbers("d", "t", 0, start, 125) for start in range(0, 1000, 125)]), whole)


@pytest.mark.parametrize(("digest", "tensor", "parent"), [("e", "t", 0), ("d", "u", 0), ("d", "t", 1)])
def test_another_child_tensor_or_parent_has_other_numbers(digest: str, tensor: str, parent: int) -> None:
    here, there = numbers("d", "t", 0, 0, 10_000), numbers(digest, tensor, parent, 0, 10_000)

    for shift in (0, 1, 2, 64):
        correlation = torch.corrcoef(torch.stack([here[: 10_000 - shift], there[shift:]]))[0, 1]
        assert abs(correlation) < 0.05  # five standard errors


def test_neighbours_are_not_correlated() -> None:
    got = numbers("d", "t", 0, 0, 100_000)

    for lag in (1, 2, 3, 16, 1024, 4096):
        assert abs(torch.corrcoef(torch.stack([got[:-lag], got[lag:]]))[0, 1]) < 0.016  # five standard errors


def test_numbers_are_uniform_in_zero_to_one() -> None:
    got = numbers("d", "t", 0, 0, 100_000)

    assert got.dtype == torch.float32
    assert 0 <= float(got.min()) < float(got.max()) < 1
    counts = torch.histc(got, bins=10, min=0, max=1)
    assert float((counts - 10_000).abs().max()) < 500  # five standard errors


def test_every_bit_is_set_half_of_the_time() -> None:
    got = (numbers("d", "t", 3, 0, 100_000) * 2**24).int()

    for bit in range(24):
        assert float((got >> bit & 1).float().mean()) == pytest.approx(0.5, abs=0.008)  # five standard errors


def test_no_numbers_for_no_elements() -> None:
    assert numbers("d", "t", 0, 0, 0).shape == (0,)
