"""nearswap and Arcee Fusion, on examples worked by hand and against numpy in float64."""

import numpy as np
import torch

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS
from kinray.core.recipe import ParamValue
from kinray.core.statistics import Float64


def merge(method: str, first: Float64, second: Float64, **params: ParamValue) -> Float64:
    tensors = [torch.from_numpy(np.float32(tensor)) for tensor in (first, second)]
    return METHODS[method].merge(None, tensors, params, HashedMasks("d", "t")).double().numpy()


def test_nearswap_swaps_near_weights_whole_and_moves_far_ones_by_t() -> None:
    first, second = np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.25, 1.5, 3.0, -3.0])

    np.testing.assert_allclose(merge("nearswap", first, second, t=0.5), [1.25, 1.5, 1.5, 0.5], rtol=1e-6)


def test_nearswap_with_t_zero_is_the_first_model() -> None:
    assert merge("nearswap", np.array([1.0, 2.0]), np.array([3.0, 2.0]), t=0.0).tolist() == [1, 2]


def test_arcee_fusion_is_the_formula_in_numpy() -> None:
    rng = np.random.default_rng(3)
    first = np.float64(np.float32(rng.standard_normal((8, 30))))
    second = np.float64(np.float32(first + 0.1 * rng.standard_normal((8, 30))))
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) + 1e-8 for x in (second, first))
    importance = np.abs(second - first) * (p * np.log(p / q)).sum(1, keepdims=True)
    ordered = np.sort(importance.reshape(-1))
    lower, median, upper = (ordered[int(quantile * (ordered.size - 1))] for quantile in (0.25, 0.5, 0.75))
    expected = np.where(importance >= median + 1.5 * (upper - lower), second, first)

    child = merge("arcee_fusion", first, second)

    np.testing.assert_allclose(child, expected, atol=1e-6)
    assert 0.01 < (child != first).mean() < 0.3


def test_arcee_fusion_sees_a_divergence_that_float32_would_lose() -> None:
    # One row changes ten times as much as the others, all by far less than float32's resolution of a divergence.
    rng = np.random.default_rng(4)
    first = 0.02 * rng.standard_normal((16, 64))
    step = 1e-5 * rng.standard_normal((16, 64))
    step[5] *= 10

    changed = merge("arcee_fusion", first, first + step) != np.float64(np.float32(first))

    assert changed[5].mean() > 0.5
