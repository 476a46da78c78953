"""The Gram pass holds what the metrics promise, and neither blocks, threads nor order show in it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kinray.core.kinship import kinship_by_tensor, kinship_matrix
from kinray.core.statistics import Statistics
from kinray.engine import products
from kinray.engine.gram import gram_pass, tensor_statistics
from tests.helpers import family

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def fine_tunes(scale: float, shapes: dict[str, tuple[int, ...]], kin: float = 0.3, count: int = 3) -> list[dict[str, Tensor]]:
    """Draw a base of weights near 0.02 and fine-tunes that moved by ``scale`` of them, partly alike, and none centred."""
    draw = torch.Generator().manual_seed(7)
    models: list[dict[str, Tensor]] = [{} for _ in range(count + 1)]
    for name, shape in shapes.items():
        base = torch.randn(*shape, generator=draw) * 0.02
        common = torch.randn(*shape, generator=draw) + 0.1
        models[0][name] = base
        for model in models[1:]:
            own = torch.randn(*shape, generator=draw) - 0.05
            model[name] = base + 0.02 * scale * (kin**0.5 * common + (1 - kin) ** 0.5 * own)
    return models


def deltas(models: list[dict[str, Tensor]]) -> np.ndarray:
    wide = np.stack([np.concatenate([tensor.double().numpy().ravel() for tensor in model.values()]) for model in models])
    return wide[1:] - wide[0]


@pytest.mark.parametrize("dtypes", [*[[dtype] * 4 for dtype in DTYPES], [*DTYPES, torch.float64]], ids=str)
def test_kinship_is_numpys_in_float64_on_whole_deltas(tmp_path: Path, dtypes: list[torch.dtype]) -> None:
    models = fine_tunes(0.01, {"a.weight": (300, 211), "b.weight": (70001,), "c.weight": (5,)})
    stored = [{name: tensor.to(dtype) for name, tensor in model.items()} for model, dtype in zip(models, dtypes, strict=True)]
    opened, whole = family(tmp_path, stored), deltas(stored)

    statistics = gram_pass(opened, opened.names)

    norms = np.linalg.norm(whole, axis=1)
    np.testing.assert_allclose(kinship_matrix("pcc", statistics), np.corrcoef(whole), atol=1e-6)
    np.testing.assert_allclose(kinship_matrix("cs", statistics), whole @ whole.T / np.outer(norms, norms), atol=1e-6)
    square = ((whole[:, None] - whole[None]) ** 2).sum(2)
    error = np.abs(kinship_matrix("ed", statistics) ** 2 - square)
    assert (error <= 1e-6 * (norms[:, None] ** 2 + norms[None] ** 2)).all()


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-5])
def test_distance_of_near_twins_is_good_to_1e_6_of_itself(tmp_path: Path, apart: float) -> None:
    models = fine_tunes(0.5, {"a.weight": (300, 211), "b.weight": (7001,)}, kin=1 - apart**2)
    opened, whole = family(tmp_path, models), deltas(models)

    statistics = gram_pass(opened, opened.names)

    assert kinship_matrix("cs", statistics)[0, 1] > 0.99
    expected = np.linalg.norm(whole[:, None] - whole[None], axis=2)
    np.testing.assert_allclose(kinship_matrix("ed", statistics), expected, rtol=1e-6)
    tensor = expected_of(models, "b.weight")
    np.testing.assert_allclose(kinship_by_tensor("ed", statistics)[opened.names.index("b.weight")], tensor, rtol=1e-6)


def expected_of(models: list[dict[str, Tensor]], name: str) -> np.ndarray:
    part = deltas([{name: model[name]} for model in models])
    return np.linalg.norm(part[:, None] - part[None], axis=2)


def test_one_large_common_shift_does_not_spoil_the_correlation() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 300_000, generator=draw)
    base, left, right = torch.zeros(300_000), noise[0] + 30, noise[1] + 30

    count, sums, gram = tensor_statistics([base, left, right])

    statistics = Statistics(("base", "a", "b"), ("t",), np.array([count]), sums[None], gram[None])
    expected = np.corrcoef(np.stack([left.double().numpy(), right.double().numpy()]))
    # The deltas' means are 30 times their spread, so an error of 1e-9 in the products is one of 1e-6 here.
    np.testing.assert_allclose(kinship_matrix("pcc", statistics), expected, atol=2e-5)


@pytest.mark.parametrize("flight", [1, 1 << 16, 1 << 30])
def test_blocks_in_flight_and_threads_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flight: int) -> None:
    models = fine_tunes(0.01, {"a.weight": (600, 211), "b.weight": (9,)})
    opened = family(tmp_path, models)
    expected = gram_pass(opened, opened.names)
    monkeypatch.setitem(products._IN_FLIGHT, "cpu", flight)

    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            got = gram_pass(opened, opened.names)
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
        np.testing.assert_array_equal(got.gram_TMM, expected.gram_TMM)
        np.testing.assert_array_equal(got.sums_TM, expected.sums_TM)
        np.testing.assert_array_equal(got.squares, expected.squares)


@given(st.integers(1, 40), st.integers(0, 2**31), st.floats(1e-3, 1e3), st.sampled_from([-1.0, 1.0]))
def test_scaling_a_delta_leaves_pcc_and_cs_alone(count: int, seed: int, scale: float, sign: float) -> None:
    base, left, right = torch.randn(3, count + 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor = sign * scale

    plain = tensor_statistics([base, base + left, base + right])
    scaled = tensor_statistics([base, base + left * factor, base + right])

    for metric in ("pcc", "cs"):
        one, other = (
            kinship_matrix(metric, Statistics(("0", "1", "2"), ("t",), np.array([n]), s[None], g[None]))[0, 1]  # type: ignore[arg-type]
            for n, s, g in (plain, scaled)
        )
        assert other == pytest.approx(sign * one, abs=1e-6)


@given(st.integers(2, 300), st.integers(0, 2**31), st.permutations([1, 2, 3]))
def test_order_of_models_does_not_matter_and_a_model_is_its_own_kin(count: int, seed: int, order: list[int]) -> None:
    tensors = list(torch.randn(4, count, generator=torch.Generator().manual_seed(seed)))

    def matrices(models: list[Tensor]) -> list[np.ndarray]:
        n, s, g = tensor_statistics(models)
        statistics = Statistics(("0", "1", "2", "3"), ("t",), np.array([n]), s[None], g[None])
        return [kinship_matrix(metric, statistics) for metric in ("pcc", "cs", "ed")]

    straight, turned = matrices(tensors), matrices([tensors[0], *(tensors[at] for at in order)])

    at = [place - 1 for place in order]
    for one, other in zip(straight, turned, strict=True):
        np.testing.assert_allclose(one[np.ix_(at, at)], other, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.diag(straight[0]), 1.0, atol=1e-12)
    np.testing.assert_allclose(np.diag(straight[1]), 1.0, atol=1e-12)
    assert not straight[2].diagonal().any()
