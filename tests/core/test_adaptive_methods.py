"""SCE, Model Stock and RAM, on examples worked by hand and against numpy in float64."""

import numpy as np
import pytest
import torch

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS
from kinray.core.recipe import ParamValue
from kinray.core.statistics import Float64

RNG = np.random.default_rng(11)


def merge(method: str, base: Float64, parents: list[Float64], **params: ParamValue) -> Float64:
    tensors = [torch.from_numpy(np.float32(parent)) for parent in parents]
    return METHODS[method].merge(torch.from_numpy(np.float32(base)), tensors, params, HashedMasks("d", "t")).double().numpy()


def test_sce_by_hand() -> None:
    # Energies 9+1 = 10 and 1+9+20 = 30 give weights 1/4 and 3/4; signs of the sums: +, +, +.
    base = np.zeros(3)
    a, b = np.array([3.0, -1.0, 0.0]), np.array([-1.0, 3.0, np.sqrt(20)])

    np.testing.assert_allclose(merge("sce", base, [a, b]), [3, 3, np.sqrt(20)], rtol=1e-6)


def test_sce_averages_those_that_agree_by_their_energy_however_small_the_deltas() -> None:
    base = np.zeros(4)
    a, b = np.array([1.0, 1, 1, 1]) * 1e-4, np.array([3.0, 3, 3, 3]) * 1e-4

    np.testing.assert_allclose(merge("sce", base, [a, b]), np.full(4, (0.1 * 1 + 0.9 * 3) * 1e-4), rtol=1e-5)


def test_sce_keeps_the_share_of_positions_with_most_variance_and_of_equals_the_first() -> None:
    # Variances 1, 4, 0, 1, 0: three differ, two thirds of them are two.
    base = np.zeros(5)
    a, b = np.array([1.0, 2.0, 5.0, 1.0, 0.0]), np.array([3.0, 6.0, 5.0, 3.0, 0.0])

    child = merge("sce", base, [a, b], select_topk=0.7)

    assert (child != 0).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("parents", [2, 3])
@pytest.mark.parametrize("by_row", [False, True])
def test_model_stock_is_the_formula_in_numpy(parents: int, by_row: bool) -> None:
    base = RNG.standard_normal((4, 20))
    shared = RNG.standard_normal((4, 20))
    thetas = [base + 1e-2 * (shared + RNG.standard_normal((4, 20))) for _ in range(parents)]
    base, thetas = np.float64(np.float32(base)), [np.float64(np.float32(theta)) for theta in thetas]
    rows = [(theta - base) if by_row else (theta - base).reshape(1, -1) for theta in thetas]
    cosines = [
        (rows[i] * rows[j]).sum(1) / np.linalg.norm(rows[i], axis=1) / np.linalg.norm(rows[j], axis=1)
        for i in range(parents)
        for j in range(i)
    ]
    cosine = np.mean(cosines, axis=0)
    ratio = (parents * cosine / (1 + (parents - 1) * cosine))[:, None]

    child = merge("model_stock", base, thetas, filter_wise=by_row)

    np.testing.assert_allclose(child, base + ratio * (np.mean(thetas, axis=0) - base), atol=5e-7)


def test_model_stock_of_opposite_changes_is_the_base() -> None:
    base, step = RNG.standard_normal(10), RNG.standard_normal(10)

    for by_row in (False, True):
        child = merge("model_stock", base, [base + step, base - step], filter_wise=by_row)
        np.testing.assert_allclose(child, base, atol=1e-6)


def test_ram_averages_shared_changes_and_keeps_unique_ones_by_hand() -> None:
    base = np.full(4, 10.0)
    a, b = np.array([11.0, 12.0, 10.0, 10.0]), np.array([13.0, 10.0, 15.0, 10.000001])

    np.testing.assert_array_equal(merge("ram", base, [a, b]), [12, 12, 15, 10])


def test_ramplus_scales_unique_changes_by_the_ratio_of_shared_to_unique_ones() -> None:
    # a: one shared, one unique, ratio 1; b: one shared, two unique, ratio 1/2.
    base = np.zeros(4)
    a, b = np.array([1.0, 2.0, 0.0, 0.0]), np.array([3.0, 0.0, 5.0, 1.0])

    child = merge("ramplus_tl", base, [a, b], r=0.5, alpha=0.75)

    np.testing.assert_allclose(child, [2, 2 * 1.375, 5 * 1.25, 1.25], rtol=1e-6)
