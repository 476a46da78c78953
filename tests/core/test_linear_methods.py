"""linear, task arithmetic and slerp, against their formulas in numpy float64."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS, Params
from kinray.core.statistics import Float64
from kinray.errors import RecipeError

floats = st.floats(-4, 4, width=32).map(lambda x: round(x, 3))
vectors = hnp.arrays(np.float64, (3, 11), elements=floats)
fractions = st.floats(0, 1).map(lambda x: round(x, 3))
weights = st.floats(-2, 2).map(lambda x: round(x, 3))


def run(method: str, rows: Float64, **params: bool | float | tuple[float, ...]) -> Float64:
    """Merge float64 rows [base, parents …] with one of the methods."""
    base, *parents = (torch.from_numpy(row).float() for row in rows)
    named: Params = {name.rstrip("_"): value for name, value in params.items()}
    merged: Tensor = METHODS[method].merge(base, parents, named, HashedMasks("d", "t"))
    return merged.double().numpy()


def numpy_slerp(t: float, a: Float64, b: Float64) -> Float64:
    """The formula of Shoemake between two vectors of any length."""
    angle = np.arccos(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def cosine(a: Float64, b: Float64) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@given(vectors, weights, weights)
def test_linear_is_the_weighted_mean(rows: Float64, w: float, v: float) -> None:
    assume(abs(w + v) > 0.1)

    expected = (w * rows[1] + v * rows[2]) / (w + v)

    np.testing.assert_allclose(run("linear", rows, weight=(w, v)), expected, atol=1e-4)


@given(vectors, weights, weights)
def test_linear_without_normalize_is_the_weighted_sum(rows: Float64, w: float, v: float) -> None:
    expected = w * rows[1] + v * rows[2]

    np.testing.assert_allclose(run("linear", rows, weight=(w, v), normalize=False), expected, atol=1e-5)


@given(vectors, weights, weights, weights)
def test_task_arithmetic_adds_weighted_deltas(rows: Float64, w: float, v: float, scale: float) -> None:
    base, a, b = rows
    expected = base + scale * (w * (a - base) + v * (b - base))

    np.testing.assert_allclose(run("task_arithmetic", rows, weight=(w, v), lambda_=scale), expected, atol=1e-4)


@given(vectors)
def test_task_arithmetic_with_normalize_averages_deltas(rows: Float64) -> None:
    expected = 0.25 * rows[1] + 0.75 * rows[2]

    np.testing.assert_allclose(run("task_arithmetic", rows, weight=(1, 3), normalize=True), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_weights_that_cancel_are_refused(method: str) -> None:
    with pytest.raises(RecipeError, match=f"weights of '{method}' add up to 0. Change them or set normalize to false"):
        run(method, np.ones((3, 2)), weight=(1, -1), normalize=True)


@given(vectors, fractions)
def test_slerp_is_shoemakes_formula(rows: Float64, t: float) -> None:
    _, a, b = rows
    assume(min(np.linalg.norm(a), np.linalg.norm(b)) > 0.1)
    assume(abs(cosine(a, b)) < 0.999)

    np.testing.assert_allclose(run("slerp", rows, t=t), numpy_slerp(t, a, b), atol=2e-5)


@given(vectors)
def test_slerp_starts_at_the_first_and_ends_at_the_second(rows: Float64) -> None:
    assume(min(np.linalg.norm(rows[1]), np.linalg.norm(rows[2])) > 0.1)

    np.testing.assert_allclose(run("slerp", rows, t=0.0), rows[1], atol=1e-5)
    np.testing.assert_allclose(run("slerp", rows, t=1.0), rows[2], atol=1e-5)


@given(vectors, fractions)
def test_slerp_keeps_the_length_of_equally_long_models(rows: Float64, t: float) -> None:
    assume(min(np.linalg.norm(rows[1]), np.linalg.norm(rows[2])) > 0.1)
    unit = np.stack([rows[0], *(row / np.linalg.norm(row) for row in rows[1:])])
    assume(abs(cosine(unit[1], unit[2])) < 0.999)

    assert np.linalg.norm(run("slerp", unit, t=t)) == pytest.approx(1, abs=1e-5)


@given(vectors, fractions)
def test_slerp_backwards_is_slerp_from_the_other_end(rows: Float64, t: float) -> None:
    assume(min(np.linalg.norm(rows[1]), np.linalg.norm(rows[2])) > 0.1)
    assume(abs(cosine(rows[1], rows[2])) < 0.999)

    np.testing.assert_allclose(run("slerp", rows, t=t), run("slerp", rows[[0, 2, 1]], t=1 - t), atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("angle", "linear"), [(0.02, True), (0.0310, True), (0.0320, False), (0.1, False)])
def test_slerp_is_linear_above_the_threshold(angle: float, linear: bool, sign: int) -> None:
    a, b = np.array([1.0, 0.0]), sign * np.array([np.cos(angle), np.sin(angle)])
    assert (np.cos(angle) > 0.9995) == linear

    got = run("slerp", np.stack([a, a, b]), t=0.25)

    expected = 0.75 * a + 0.25 * b if linear else numpy_slerp(0.25, a, b)
    np.testing.assert_allclose(got, expected, atol=1e-5 if sign > 0 else 1e-4)


def test_slerp_of_a_zero_tensor_is_finite() -> None:
    got = run("slerp", np.array([[1.0, 1.0], [0.0, 0.0], [3.0, 4.0]]), t=0.5)

    np.testing.assert_allclose(got, np.sin(np.pi / 4) * np.array([3.0, 4.0]), atol=1e-6)


def test_linear_family_keeps_equal_parents_to_the_last_bit() -> None:
    parent = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    for method in ("linear", "slerp"):
        assert torch.equal(METHODS[method].merge(parent, [parent, parent.clone()], {}, HashedMasks("d", "t")), parent)
