"""Kinship from statistics, against numpy on the concatenated deltas in float64."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kinray.core.kinship import METRICS, Moments, group_kinship, kinship, kinship_matrix
from kinray.core.statistics import Float64, Statistics

deltas = hnp.arrays(np.float64, (3, 24), elements=st.floats(-10, 10, width=32).map(lambda x: round(x, 3)))


def matrix_of(metric: str, rows: Float64, parts: int = 4) -> Float64:
    """Compute kinship of (N, n) deltas that are spread over several tensors."""
    blocks = np.array_split(np.vstack([np.ones(rows.shape[1]), rows]), parts, axis=1)
    models = ("base", *(f"f{number}" for number in range(len(rows))))
    statistics = Statistics(
        models,
        tuple(f"t{number}" for number in range(parts)),
        np.array([block.shape[1] for block in blocks], np.int64),
        np.array([block.sum(1) for block in blocks]),
        np.array([block @ block.T for block in blocks]),
    )
    return kinship_matrix(metric, statistics)  # type: ignore[arg-type]


def _vary(rows: Float64) -> bool:
    return bool((rows.std(1) > 0.01).all())


@given(deltas)
def test_pcc_is_numpys_correlation_of_whole_deltas(rows: Float64) -> None:
    assume(_vary(rows))

    np.testing.assert_allclose(matrix_of("pcc", rows), np.corrcoef(rows), atol=1e-8)


@given(deltas)
def test_cs_is_the_signed_cosine_of_whole_deltas(rows: Float64) -> None:
    assume(_vary(rows))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    np.testing.assert_allclose(matrix_of("cs", rows), unit @ unit.T, atol=1e-10)


@given(deltas)
def test_ed_is_the_euclidean_distance_of_whole_deltas(rows: Float64) -> None:
    expected = np.linalg.norm(rows[:, None] - rows[None, :], axis=2)

    np.testing.assert_allclose(matrix_of("ed", rows), expected, atol=1e-5)


def test_opposite_deltas_have_cosine_minus_one() -> None:
    row = np.array([1.0, -2.0, 3.0, 0.5])

    assert matrix_of("cs", np.stack([row, -row]))[0, 1] == pytest.approx(-1, abs=1e-12)


@given(deltas)
def test_model_has_kinship_one_and_distance_zero_with_itself(rows: Float64) -> None:
    assume(_vary(rows))

    for metric, expected in (("pcc", 1.0), ("cs", 1.0), ("ed", 0.0)):
        np.testing.assert_allclose(np.diagonal(matrix_of(metric, rows)), expected, atol=1e-12)


@given(deltas, st.floats(0.01, 100))
def test_scaling_one_delta_changes_neither_pcc_nor_cs(rows: Float64, factor: float) -> None:
    assume(_vary(rows))
    scaled = rows * np.array([[factor], [1.0], [1.0]])

    for metric in ("pcc", "cs"):
        np.testing.assert_allclose(matrix_of(metric, scaled), matrix_of(metric, rows), atol=1e-8)


@given(deltas)
def test_kinship_is_symmetric_and_within_its_bounds(rows: Float64) -> None:
    assume(_vary(rows))

    for metric in METRICS:
        matrix = matrix_of(metric, rows)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert (matrix >= 0).all() if metric == "ed" else (abs(matrix) <= 1).all()


def test_zero_delta_has_a_distance_but_no_correlation() -> None:
    rows = np.array([[0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0]])

    assert np.isnan(matrix_of("pcc", rows)[0]).all()
    assert np.isnan(matrix_of("cs", rows)[0]).all()
    assert matrix_of("ed", rows)[0, 1] == pytest.approx(5)


@pytest.mark.parametrize("value", [0.1257302210933933, -0.1321048632913019, 1e-4, 7.0])
def test_constant_delta_has_a_cosine_but_no_correlation(value: float) -> None:
    rows = np.stack([np.full(30_001, value), np.linspace(-1, 2, 30_001)])

    assert np.isnan(matrix_of("pcc", rows)[0]).all()
    assert matrix_of("cs", rows)[0, 0] == pytest.approx(1)


def test_mean_of_a_delta_matters_to_cs_and_not_to_pcc() -> None:
    row = np.array([1.0, -1.0, 2.0, -2.0])
    rows = np.stack([row, row + 10])

    assert matrix_of("pcc", rows)[0, 1] == pytest.approx(1)
    assert matrix_of("cs", rows)[0, 1] == pytest.approx(10 / np.sqrt(10 * 410))


def test_one_pair_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, 1.0])
    moments = Moments(3.0, a.sum(), b.sum(), a @ a, b @ b, a @ b)

    assert kinship("pcc", moments) == pytest.approx(-0.5)
    assert kinship("cs", moments) == pytest.approx(5 / np.sqrt(70))
    assert kinship("ed", moments) == pytest.approx(3)


def test_group_kinship_is_the_mean_over_pairs() -> None:
    matrix = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.9], [0.4, 0.9, 1.0]])

    assert group_kinship(matrix) == pytest.approx(0.5)
    assert np.isnan(group_kinship(matrix[:1, :1]))
