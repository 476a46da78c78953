"""nuslerp, multislerp and the Karcher mean, against their formulas on whole vectors in numpy float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS
from kinray.core.recipe import ParamValue
from kinray.core.statistics import Float64

RNG = np.random.default_rng(7)


def merge(method: str, base: Float64 | None, parents: list[Float64], **params: ParamValue) -> Float64:
    tensors = [torch.from_numpy(parent).float() for parent in parents]
    origin = None if base is None else torch.from_numpy(base).float()
    child: Tensor = METHODS[method].merge(origin, tensors, params, HashedMasks("d", "t"))
    return child.double().numpy()


def draw(shape: tuple[int, ...], count: int) -> list[Float64]:
    return [np.float64(np.float32(RNG.standard_normal(shape))) for _ in range(count)]


def arc(a: Float64, b: Float64, t: float) -> Float64:
    angle = np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def test_nuslerp_of_quarter_turn_by_hand() -> None:
    child = merge("nuslerp", None, [np.array([2.0, 0.0]), np.array([0.0, 4.0])], weight=(1.0, 1.0))

    np.testing.assert_allclose(child, np.array([2, 4]) * np.sqrt(0.5), rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.2, 0.0), (1.0, -1.0)])
@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp_goes_along_the_arc_by_the_second_share(weights: tuple[float, float], with_base: bool) -> None:
    base, a, b = draw((40,), 3)
    origin = base if with_base else np.zeros(40)
    t = weights[1] / sum(weights) if sum(weights) else 0.5

    child = merge("nuslerp", base if with_base else None, [a, b], weight=weights)

    np.testing.assert_allclose(child, origin + arc(a - origin, b - origin, t), atol=2e-6)


@pytest.mark.parametrize("first_axis", [False, True])
def test_nuslerp_without_flatten_turns_each_vector(first_axis: bool) -> None:
    a, b = draw((5, 7), 2)

    child = merge("nuslerp", None, [a, b], weight=(1.0, 2.0), nuslerp_flatten=False, nuslerp_row_wise=first_axis)

    rows = (a.T, b.T) if first_axis else (a, b)
    expected = np.stack([arc(x, y, 2 / 3) for x, y in zip(*rows, strict=True)])
    np.testing.assert_allclose(child, expected.T if first_axis else expected, atol=2e-6)


def test_nuslerp_of_opposite_vectors_stays_on_the_line_between_them() -> None:
    (a,) = draw((6,), 1)

    np.testing.assert_allclose(merge("nuslerp", None, [a, -a], weight=(3.0, 1.0)), a / 2, atol=1e-6)


@pytest.mark.parametrize("parents", [2, 3, 5])
@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_is_the_mean_direction_with_the_mean_norm(parents: int, with_base: bool) -> None:
    base, *thetas = draw((30,), 1 + parents)
    origin = base if with_base else np.zeros(30)
    weights = np.arange(1, parents + 1) / np.arange(1, parents + 1).sum()
    norms = [np.linalg.norm(theta - origin) for theta in thetas]
    mean = sum(w * (theta - origin) / n for w, theta, n in zip(weights, thetas, norms, strict=True))
    expected = origin + mean / np.linalg.norm(mean) * (weights @ norms)

    child = merge("multislerp", base if with_base else None, thetas, weight=tuple(range(1, parents + 1)))

    np.testing.assert_allclose(child, expected, atol=3e-6)


def test_multislerp_of_parents_that_cancel_is_their_weighted_sum() -> None:
    (a,) = draw((6,), 1)

    np.testing.assert_allclose(merge("multislerp", None, [a, -a]), np.zeros(6), atol=1e-6)
    np.testing.assert_array_equal(merge("multislerp", a, [a, a, a]), a)


def test_karcher_of_two_is_the_middle_of_the_arc() -> None:
    a, b = draw((25,), 2)
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    middle = arc(unit_a, unit_b, 0.5) * (np.linalg.norm(a) + np.linalg.norm(b)) / 2

    np.testing.assert_allclose(merge("karcher", None, [a, b]), middle, atol=2e-6)


def test_karcher_mean_has_ways_to_all_parents_that_add_up_to_zero() -> None:
    parents = draw((12,), 4)

    child = merge("karcher", None, parents, max_iter=200.0, tol=1e-9)

    assert np.linalg.norm(child) == pytest.approx(np.mean([np.linalg.norm(p) for p in parents]), rel=1e-6)
    at = child / np.linalg.norm(child)
    ways = []
    for parent in parents:
        unit = parent / np.linalg.norm(parent)
        angle = np.arccos(unit @ at)
        ways.append(angle / np.sin(angle) * (unit - (unit @ at) * at))
    assert np.linalg.norm(sum(ways)) < 1e-5


def test_karcher_leaves_zero_tensors_out_of_the_direction_but_not_of_the_norm() -> None:
    (a,) = draw((6,), 1)

    np.testing.assert_allclose(merge("karcher", None, [a, np.zeros(6)]), a / 2, rtol=1e-6)
    np.testing.assert_array_equal(merge("karcher", None, [np.zeros(6), np.zeros(6)]), np.zeros(6))


def test_karcher_of_opposite_parents_is_finite() -> None:
    (a,) = draw((6,), 1)

    assert np.isfinite(merge("karcher", None, [a, -a])).all()


def test_passthrough_scales_its_one_model() -> None:
    (a,) = draw((6,), 1)

    np.testing.assert_allclose(merge("passthrough", None, [a], scale=0.5), a / 2, rtol=1e-6)
