"""Kinship of merges that were not made, against the same merges made and measured in float64."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import kinray
from kinray.core.parameters import Varied
from kinray.core.planned import PlannedMerge, with_planned
from kinray.errors import RecipeError
from kinray.kinship.planning import parse_merge
from tests.helpers import ARCHITECTURE, make_model

CONFIG = {"architectures": [ARCHITECTURE], "vocab_size": 10}
SHAPES = {"embed.weight": (10, 40), "layers.0.mlp.weight": (30, 40), "layers.1.mlp.weight": (30, 40), "norm.weight": (40,)}
Weights = dict[str, np.ndarray]


def models_at(angle: float) -> list[dict[str, Tensor]]:
    """Draw a base and three models whose weights stand at about ``angle`` (radians) to each other."""
    draw = torch.Generator().manual_seed(3)
    models: list[dict[str, Tensor]] = [{} for _ in range(4)]
    for name, shape in SHAPES.items():
        base = torch.randn(*shape, generator=draw)
        models[0][name] = base
        for model in models[1:]:
            own = torch.randn(*shape, generator=draw)
            model[name] = base * math.cos(angle) + own * math.sin(angle)
    return models


def made(method: str, weights: list[Weights], base: Weights, values: dict[str, float | list[float]]) -> Weights:
    """Merge by the method's formula, tensor by tensor in float64, written without kinray."""
    return {name: made_tensor(method, [w[name] for w in weights], base[name], values) for name in base}


def made_tensor(method: str, parents: list[np.ndarray], base: np.ndarray, values: dict[str, float | list[float]]) -> np.ndarray:
    if method == "slerp":
        t, (a, b) = values["t"], parents
        cosine = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        if abs(cosine) > 0.9995:
            return (1 - t) * a + t * b
        angle = math.acos(cosine)
        return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    if method == "linear":
        return sum(weight * parent for weight, parent in zip(values["weight"], parents, strict=True))
    return base + sum(weight * (parent - base) for weight, parent in zip(values["weight"], parents, strict=True))


def measured(base: Weights, models: list[Weights]) -> dict[str, np.ndarray]:
    whole = np.stack([np.concatenate([model[name].ravel() - base[name].ravel() for name in base]) for model in models])
    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    apart = np.linalg.norm(whole[:, None] - whole[None], axis=2)
    return {"pcc": np.corrcoef(whole), "cs": unit @ unit.T, "ed": apart}


def compare(tmp_path: Path, models: list[dict[str, Tensor]], merges: list[PlannedMerge], children: list[Weights]) -> None:
    paths = [make_model(tmp_path / str(at), model, CONFIG) for at, model in enumerate(models)]
    wide = [{name: tensor.double().numpy() for name, tensor in model.items()} for model in models]

    result = kinray.kinship_of(paths[0], paths[1:], merges=merges)

    expected = measured(wide[0], [*wide[1:], *children])
    np.testing.assert_allclose(result.pcc, expected["pcc"], atol=1e-5)
    np.testing.assert_allclose(result.cs, expected["cs"], atol=1e-5)
    np.testing.assert_allclose(result.ed, expected["ed"], rtol=1e-5, atol=1e-5)


def wide_of(models: list[dict[str, Tensor]]) -> list[Weights]:
    return [{name: tensor.double().numpy() for name, tensor in model.items()} for model in models]


@pytest.mark.parametrize("angle", [0.005, 0.02, 0.5, 1.4])
@pytest.mark.parametrize(
    ("method", "parents", "values"),
    [
        ("linear", (0, 2), {"weight": [0.3, 0.7]}),
        ("linear", (0, 1, 2), {"weight": [0.5, 0.9, -0.2]}),
        ("task_arithmetic", (0, 1), {"weight": [0.8, 0.6]}),
        ("slerp", (1, 2), {"t": 0.3}),
    ],
)
def test_planned_merge_has_the_kinship_of_the_made_one(
    tmp_path: Path, angle: float, method: str, parents: tuple[int, ...], values: dict[str, float | list[float]]
) -> None:
    models = models_at(angle)
    wide = wide_of(models)
    child = made(method, [wide[1 + at] for at in parents], wide[0], values)
    params = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if method == "linear":
        params["normalize"] = False

    compare(tmp_path, models, [PlannedMerge(method, parents, params)], [child])


@pytest.mark.parametrize("angle", [0.01, 0.8])
def test_planned_merges_of_planned_merges(tmp_path: Path, angle: float) -> None:
    models = models_at(angle)
    wide = wide_of(models)
    first = made("slerp", [wide[1], wide[2]], wide[0], {"t": 0.4})
    second = made("task_arithmetic", [first, wide[3]], wide[0], {"weight": [0.7, 0.5]})
    third = made("slerp", [second, first], wide[0], {"t": 0.8})

    plans = [parse_merge(text) for text in ("slerp:0,1:t=0.4", "task_arithmetic:3,2:0.7,0.5", "slerp:4,3:t=0.8")]

    compare(tmp_path, models, plans, [first, second, third])


@pytest.mark.parametrize("angle", [0.01, 0.8])
def test_parameters_may_differ_from_layer_to_layer(tmp_path: Path, angle: float) -> None:
    models = models_at(angle)
    wide = wide_of(models)
    t = {"embed.weight": 0.5, "layers.0.mlp.weight": 0.1, "layers.1.mlp.weight": 0.9, "norm.weight": 0.5}
    child = {name: made_tensor("slerp", [wide[1][name], wide[2][name]], wide[0][name], {"t": t[name]}) for name in SHAPES}

    plan = PlannedMerge("slerp", (0, 1), {"t": Varied((("mlp", (0.1, 0.9)),))})

    compare(tmp_path, models, [plan], [child])


def test_merge_close_to_a_parent_keeps_the_digits_of_its_distance(tmp_path: Path) -> None:
    models = models_at(0.02)
    wide = wide_of(models)
    child = made("linear", [wide[1], wide[2]], wide[0], {"weight": [0.99999, 0.00001]})
    paths = [make_model(tmp_path / str(at), model, CONFIG) for at, model in enumerate(models)]

    result = kinray.kinship_of(paths[0], paths[1:], merges=["0,1:0.99999,0.00001"])

    assert result.ed[0, 3] == pytest.approx(measured(wide[0], [wide[1], child])["ed"][0, 1], rel=1e-6)


def test_a_parent_that_is_planned_later_is_refused() -> None:
    from kinray.core.statistics import Statistics

    one = Statistics(("b", "x"), ("t",), np.ones(1, np.int64), np.ones((1, 2)), np.eye(2)[None])

    with pytest.raises(RecipeError, match="Planned merge 1 names model 1, but there are the models 0 to 0"):
        with_planned(one, [PlannedMerge("linear", (0, 1))])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,2:0.5,0.5", PlannedMerge("linear", (0, 2), {"weight": (0.5, 0.5), "normalize": False})),
        ("0,2", PlannedMerge("linear", (0, 2), {"normalize": True})),
        ("linear:0,2:2,1,normalize=true", PlannedMerge("linear", (0, 2), {"normalize": True, "weight": (2.0, 1.0)})),
        ("slerp:1,0:t=0.25", PlannedMerge("slerp", (1, 0), {"t": 0.25})),
        ("task_arithmetic:0,1:1,1,lambda=0.5", PlannedMerge("task_arithmetic", (0, 1), {"lambda": 0.5, "weight": (1.0, 1.0)})),
    ],
)
def test_planned_merges_are_read(text: str, expected: PlannedMerge) -> None:
    assert parse_merge(text) == expected
