"""Kinship of children that nobody made, against the same children made in float32 and compared with numpy."""

from pathlib import Path

import numpy as np
import pytest

from kinray.checkpoints.models import Models
from kinray.core.algebra import KinshipMap, MissingProduct, is_linear
from kinray.core.kinship import METRICS, Metric
from kinray.core.recipe import Recipe
from kinray.core.statistics import Float64
from kinray.engine.gram import gram_pass
from kinray.engine.materialise import Materialiser
from tests.helpers import family, merge, random_tensors, step_by_step

Members = tuple[Recipe, Recipe, Recipe, Recipe]


@pytest.fixture(params=[0.005, 5.0], ids=["narrow", "wide"])
def spread(request: pytest.FixtureRequest) -> float:
    """Length of the founders' deltas over that of the base."""
    assert isinstance(request.param, float)
    return request.param


@pytest.fixture
def models(spread: float, tmp_path: Path) -> Models:
    """Three founders near the base (slerp is linear), or far from it and from each other (slerp turns)."""
    base = random_tensors(0)
    founders = [{name: base[name] + spread * delta for name, delta in random_tensors(seed).items()} for seed in (1, 2, 3)]
    return family(tmp_path, [base, *founders])


@pytest.fixture
def members(models: Models) -> Members:
    base, f1, f2, f3 = (spec.founder for spec in models.specs)
    return base, f1, f2, f3


@pytest.fixture
def kinship_map(models: Models) -> KinshipMap:
    return KinshipMap(gram_pass(models, models.names))


def delta_of(models: Models, recipe: Recipe) -> Float64:
    """Make a child by the pure methods, step by step in float32, and concatenate its deltas in float64."""
    made = ((name, step_by_step(models, recipe, name)) for name in models.names)
    return np.concatenate([(t.double() - models.base.load(name).double()).reshape(-1).numpy() for name, t in made])


def measured(metric: Metric, a: Float64, b: Float64) -> float:
    if metric == "pcc":
        return float(np.corrcoef(a, b)[0, 1])
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if metric == "cs" else np.linalg.norm(a - b))


def assert_agrees(models: Models, kinship_map: KinshipMap, a: Recipe, b: Recipe) -> None:
    x, y = delta_of(models, a), delta_of(models, b)
    for metric in METRICS:
        expected = measured(metric, x, y)
        assert kinship_map.between(metric, a, b) == pytest.approx(expected, rel=1e-5, abs=1e-5), metric


def test_kinship_of_founders(models: Models, members: Members, kinship_map: KinshipMap) -> None:
    _, f1, f2, _ = members

    assert_agrees(models, kinship_map, f1, f2)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("linear", {"weight": (0.2, 0.8)}),
        ("linear", {"weight": (0.7, 0.6), "normalize": False}),
        ("slerp", {"t": 0.3}),
        ("task_arithmetic", {"weight": (0.9, 0.4), "lambda": 1.3}),
        ("nuslerp", {"weight": (0.3, 0.7)}),
        ("multislerp", {"weight": (0.3, 0.7)}),
        ("karcher", {}),
        ("model_stock", {}),
    ],
)
def test_kinship_of_a_child_with_every_founder(
    models: Models, members: Members, kinship_map: KinshipMap, method: str, params: dict[str, float]
) -> None:
    base, f1, f2, f3 = members

    for child in (merge(method, f1, f2, **params), merge(method, f1, f2, base=base, **params)):
        assert is_linear(child)
        for other in (f1, f2, f3):
            assert_agrees(models, kinship_map, child, other)


def test_kinship_through_four_generations(models: Models, members: Members, kinship_map: KinshipMap) -> None:
    _, f1, f2, f3 = members
    first = merge("slerp", f1, f2, t=0.4)
    second = merge("task_arithmetic", first, f3, weight=(0.5, 0.7))
    third = merge("slerp", second, f1, t=0.7)
    fourth = merge("linear", third, first, f2, weight=(1.0, 2.0, 1.0))

    for a, b in [(second, f2), (third, second), (fourth, first), (fourth, f3)]:
        assert_agrees(models, kinship_map, a, b)


def test_founders_lie_on_either_side_of_the_threshold(models: Models, spread: float) -> None:
    for name in ("embed.weight", "mlp.weight", "norm.weight"):
        f1, f2 = (models.sources[digest].load(name).reshape(-1).double() for digest in models.digests[1:3])
        cosine = float(f1 @ f2 / (f1.norm() * f2.norm()))

        assert cosine > 0.9995 if spread < 1 else abs(cosine) < 0.9


def test_coefficients_of_a_child_are_those_of_its_formula(members: Members, kinship_map: KinshipMap) -> None:
    _, f1, f2, f3 = members
    child = merge("linear", f1, merge("linear", f2, f3, weight=(1.0, 3.0)), weight=(0.5, 0.7), normalize=False)

    row = kinship_map.row(child)

    # δ = (Σc − 1)·θ0 + Σ cᵢ·δᵢ
    assert row is not None
    np.testing.assert_allclose(row, np.tile([0.2, 0.5, 0.7 / 4, 0.7 * 3 / 4], (len(row), 1)), atol=1e-12)


def test_model_is_its_own_kin(members: Members, kinship_map: KinshipMap) -> None:
    base, f1, f2, _ = members
    child = merge("slerp", f1, f2)

    assert kinship_map.between("pcc", child, child) == pytest.approx(1)
    assert kinship_map.between("ed", child, merge("slerp", f1, f2)) == pytest.approx(0, abs=1e-6)
    assert np.isnan(kinship_map.between("cs", base, f1))


def test_order_of_the_pair_does_not_matter(members: Members, kinship_map: KinshipMap) -> None:
    _, f1, f2, f3 = members
    child = merge("slerp", f1, f2)

    assert kinship_map.between("pcc", child, f3) == pytest.approx(kinship_map.between("pcc", f3, child), abs=1e-12)


def test_child_outside_the_family_needs_to_be_measured(models: Models, members: Members, kinship_map: KinshipMap) -> None:
    base, f1, f2, f3 = members
    child = merge("ties", f1, f2, base=base, density=0.5)
    with pytest.raises(MissingProduct, match="products not measured") as missing:
        kinship_map.between("pcc", f3, child)
    assert missing.value.recipes == (child,)

    kinship_map.add_products(child, Materialiser(models).products(child, models.names))

    assert_agrees(models, kinship_map, child, f3)
    assert_agrees(models, kinship_map, merge("slerp", f1, f3), child)
    assert kinship_map.row(child) is None


def test_linear_child_of_such_a_child_needs_to_be_measured_too(
    models: Models, members: Members, kinship_map: KinshipMap
) -> None:
    base, f1, f2, f3 = members
    parent = merge("ties", f1, f2, base=base, density=0.5)
    child = merge("linear", parent, f3)
    kinship_map.add_products(parent, Materialiser(models).products(parent, models.names))
    with pytest.raises(MissingProduct, match="products not measured") as missing:
        kinship_map.between("cs", child, f1)
    assert not is_linear(child)
    assert not is_linear(merge("nuslerp", f1, f2, nuslerp_flatten=False))
    assert missing.value.recipes == (child,)

    kinship_map.add_products(child, Materialiser(models).products(child, models.names))

    assert_agrees(models, kinship_map, child, f1)


def test_two_such_children_need_their_own_product(models: Models, members: Members, kinship_map: KinshipMap) -> None:
    base, f1, f2, f3 = members
    a = merge("ties", f1, f2, base=base, density=0.5)
    b = merge("dare_ties", f2, f3, base=base, density=0.5)
    maker = Materialiser(models)
    for child in (a, b):
        kinship_map.add_products(child, maker.products(child, models.names))
    with pytest.raises(MissingProduct, match="products not measured") as missing:
        kinship_map.between("pcc", a, b)
    assert missing.value.recipes == (a, b)

    kinship_map.add_dot(b, a, maker.dot(a, b, models.names))

    assert_agrees(models, kinship_map, a, b)
    assert kinship_map.between("cs", a, a) == pytest.approx(1)


def test_products_add_over_tensors(models: Models, members: Members) -> None:
    base, f1, f2, _ = members
    child = merge("ties", f1, f2, base=base, density=0.5)
    maker = Materialiser(models)

    whole = maker.products(child, models.names)
    parts = [maker.products(child, [name]) for name in models.names]

    assert whole.square == pytest.approx(sum(part.square for part in parts))
    assert whole.total == pytest.approx(sum(part.total for part in parts))
    np.testing.assert_allclose(whole.dots_TM, np.concatenate([part.dots_TM for part in parts]))
