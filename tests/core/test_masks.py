"""Hashed random numbers, against SplitMix64 in plain Python integers."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinray.core import masks
from kinray.core.masks import HashedMasks

CPU = torch.device("cpu")
WORD = (1 << 64) - 1


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as it is published: state += golden ratio, then two rounds of mixing."""
    state, out = seed, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        out.append(z ^ (z >> 31))
    return out


def test_reference_gives_the_published_numbers_of_seed_zero() -> None:
    assert splitmix64(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.text(max_size=20), st.integers(0, 63), st.integers(1, 40))
def test_numbers_are_the_top_bits_of_splitmix64(tensor: str, parent: int, count: int) -> None:
    text = json.dumps(["d", tensor, parent], separators=(",", ":")).encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")

    got = HashedMasks("d", tensor).uniform(parent, count, CPU)

    assert got.tolist() == [(word >> 40) / 2**24 for word in splitmix64(seed, count)]


def test_numbers_are_pinned_for_ever() -> None:
    got = HashedMasks("0" * 64, "model.norm.weight").uniform(1, 3, CPU)

    assert (got * 2**24).int().tolist() == [16608251, 15569815, 5094637]


@pytest.mark.parametrize("count", [1, 5, 8, 9, 16, 23])
def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    whole = HashedMasks("d", "t").uniform(0, 64, CPU)
    monkeypatch.setattr(masks, "_CHUNK", 8)

    assert torch.equal(HashedMasks("d", "t").uniform(0, count, CPU), whole[:count])


def test_longer_tensor_begins_with_the_numbers_of_a_shorter_one() -> None:
    source = HashedMasks("d", "t")

    assert torch.equal(source.uniform(0, 1000, CPU)[:37], source.uniform(0, 37, CPU))


@pytest.mark.parametrize(("digest", "tensor", "parent"), [("e", "t", 0), ("d", "u", 0), ("d", "t", 1)])
def test_another_child_tensor_or_parent_has_other_numbers(digest: str, tensor: str, parent: int) -> None:
    here = HashedMasks("d", "t").uniform(0, 10_000, CPU)
    there = HashedMasks(digest, tensor).uniform(parent, 10_000, CPU)

    correlation = torch.corrcoef(torch.stack([here, there]))[0, 1]
    assert abs(correlation) < 0.05  # five standard errors


def test_numbers_are_uniform_in_zero_to_one() -> None:
    got = HashedMasks("d", "t").uniform(0, 100_000, CPU)

    assert got.dtype == torch.float32
    assert 0 <= float(got.min()) < float(got.max()) < 1
    counts = torch.histc(got, bins=10, min=0, max=1)
    assert float((counts - 10_000).abs().max()) < 500  # five standard errors


def test_no_numbers_for_no_elements() -> None:
    assert HashedMasks("d", "t").uniform(0, 0, CPU).shape == (0,)
