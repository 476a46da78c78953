"""Hashed random numbers, against the published hash in plain Python integers."""

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kinray.core import masks
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


def kept(place: tuple[str, str, int, int], chances: Tensor | float, count: int) -> Tensor:
    """Tell which of ones are kept, (count,) bool."""
    digest, tensor, parent, start = place
    row = torch.ones(count)
    HashedMasks(digest, tensor).drop(row, chances, parent, start)
    assert row.unique().tolist() in ([], [0], [1], [0, 1])
    return row == 1


def numbers(digest: str, tensor: str, parent: int, start: int, count: int, bits: int = 16) -> Tensor:
    """Find the upper bits of each element's number by asking whether it is below a chance, from the highest bit on."""
    found = torch.zeros(count)
    for bit in range(1, bits + 1):
        found += 0.5**bit * ~kept((digest, tensor, parent, start), found + 0.5**bit, count)
    return found


def expected(tensor: str, parent: int, index: int) -> int:
    text = json.dumps(["d", tensor, parent, index >> 32], separators=(",", ":")).encode()
    first, second = (int.from_bytes(hashlib.sha256(text).digest()[at : at + 4], "little") for at in (0, 4))
    return triple32(index + first & WORD, second)


places = (st.text(max_size=20), st.integers(0, 63), st.integers(0, 1 << 34), st.integers(1, 40))


@given(*places, st.floats(0, 1, exclude_max=True))
def test_what_is_kept_is_what_the_published_hash_says(tensor: str, parent: int, start: int, count: int, chance: float) -> None:
    got = kept(("d", tensor, parent, start), chance, count)

    limit = min(round(chance * 2**32), WORD)
    assert got.tolist() == [expected(tensor, parent, start + place) < limit for place in range(count)]


@given(*places, st.integers(0, 2**32 - 1))
def test_each_element_may_have_a_chance_of_its_own(tensor: str, parent: int, start: int, count: int, seed: int) -> None:
    chances = torch.rand(count, generator=torch.Generator().manual_seed(seed))

    got = kept(("d", tensor, parent, start), chances, count)

    hashes = np.array([expected(tensor, parent, start + place) for place in range(count)], np.float32)
    assert got.tolist() == (hashes < chances.numpy() * np.float32(2**32)).tolist()


@pytest.mark.parametrize("chance", [0.0, 1e-9, 0.3, 0.999999, "each its own"])
def test_devices_agree(chance: float | str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, count = ("d", "t", 1, 12345), 200_000
    chances = torch.rand(count, generator=torch.Generator().manual_seed(0)) if isinstance(chance, str) else chance
    here = kept(place, chances, count)

    monkeypatch.setattr(masks, "_drop_by_numpy", masks._drop_by_torch)  # which is what a GPU does

    assert torch.equal(kept(place, chances, count), here)


def test_numbers_of_a_tensor_of_more_than_32_bits_go_on_over_the_page() -> None:
    start = (1 << 32) - 3

    got = kept(("d", "t", 0, start), 0.5, 6)

    assert got.tolist() == [expected("t", 0, start + place) < 2**31 for place in range(6)]


def test_numbers_are_pinned_for_ever() -> None:
    got = numbers("0" * 64, "model.norm.weight", 1, 0, 3, bits=16)

    assert (got * 2**16).int().tolist() == [60073, 60712, 65035]


def test_blocks_do_not_show() -> None:
    whole = kept(("d", "t", 0, 0), 0.5, 1000)

    assert torch.equal(torch.cat([kept(("d", "t", 0, start), 0.5, 125) for start in range(0, 1000, 125)]), whole)


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

    assert 0 <= float(got.min()) < float(got.max()) < 1
    counts = torch.histc(got, bins=10, min=0, max=1)
    assert float((counts - 10_000).abs().max()) < 500  # five standard errors


def test_every_bit_is_set_half_of_the_time() -> None:
    got = (numbers("d", "t", 3, 0, 100_000, bits=20) * 2**20).int()

    for bit in range(20):
        assert float((got >> bit & 1).float().mean()) == pytest.approx(0.5, abs=0.008)  # five standard errors


def test_no_numbers_for_no_elements() -> None:
    assert numbers("d", "t", 0, 0, 0).shape == (0,)
