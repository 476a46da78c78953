"""The kinship command on real fine-tunes: exactness in every dtype, and what rounding a stored child does to it."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import kinray
from tests.helpers import make_model

pytestmark = [pytest.mark.real, pytest.mark.slow]

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights(real_models: dict[str, Path]) -> dict[str, Weights]:
    return {name: load_file(folder / "model.safetensors") for name, folder in real_models.items()}


def delta(model: Weights, base: Weights) -> torch.Tensor:
    return torch.cat([(model[name].double() - base[name].double()).reshape(-1) for name in base])


def stored(folder: Path, model: Weights, dtype: torch.dtype, real: Path) -> Path:
    config = json.loads((real / "config.json").read_text())
    return make_model(folder, {name: tensor.to(dtype) for name, tensor in model.items()}, config)


@pytest.mark.parametrize(
    "dtypes",
    [(torch.float16,) * 4, (torch.float32, torch.bfloat16, torch.float16, torch.float32)],
    ids=["float16", "mixed"],
)
def test_kinship_is_exact_in_every_dtype(
    tmp_path: Path, real_models: dict[str, Path], weights: dict[str, Weights], dtypes: tuple[torch.dtype, ...]
) -> None:
    rounded = [
        {name: tensor.to(dtype) for name, tensor in model.items()}
        for model, dtype in zip(weights.values(), dtypes, strict=True)
    ]
    paths = [stored(tmp_path / str(at), model, dtypes[at], real_models["base"]) for at, model in enumerate(rounded)]
    deltas = torch.stack([delta(model, rounded[0]) for model in rounded[1:]])

    result = kinray.kinship_of(paths[0], paths[1:])

    gram = (deltas @ deltas.T).numpy()
    square = gram.diagonal()
    np.testing.assert_allclose(result.cs, gram / np.sqrt(np.outer(square, square)), atol=1e-6)
    np.testing.assert_allclose(result.pcc, torch.corrcoef(deltas).numpy(), atol=1e-6)
    for a, b in combinations(range(3), 2):
        apart = float(torch.linalg.vector_norm(deltas[a] - deltas[b])) ** 2
        assert abs(result.ed[a, b] ** 2 - apart) <= 1e-6 * (square[a] + square[b])


def test_distance_of_real_near_twins_is_good_to_1e_6(
    tmp_path: Path, real_models: dict[str, Path], weights: dict[str, Weights]
) -> None:
    base, math, science = (weights[name] for name in ("base", "math", "science"))
    twin = {name: math[name].float() + 0.01 * (science[name].float() - base[name].float()) for name in math}
    path = stored(tmp_path / "twin", twin, torch.float32, real_models["base"])

    result = kinray.kinship_of(real_models["base"], [real_models["math"], path])

    assert result.cs[0, 1] > 0.99
    expected = float(torch.linalg.vector_norm(delta(twin, base) - delta(math, base)))
    assert result.ed[0, 1] == pytest.approx(expected, rel=1e-6)


def test_rounding_a_stored_average_to_bfloat16_loses_a_fifth_of_its_kinship(
    tmp_path: Path, real_models: dict[str, Path], weights: dict[str, Weights]
) -> None:
    """These founders moved by about 0.1 % of their weights, less than a step of bfloat16 (0.4 %) for most of them."""
    names = ("math", "science", "truth")
    pairs = list(combinations(range(3), 2))
    children = []
    for a, b in pairs:
        left, right = weights[names[a]], weights[names[b]]
        average = {name: (left[name].float() + right[name].float()) / 2 for name in left}
        children.append(stored(tmp_path / f"{a}{b}", average, torch.bfloat16, real_models["base"]))
    merges = [f"{a},{b}:0.5,0.5" for a, b in pairs]

    result = kinray.kinship_of(real_models["base"], [*(real_models[name] for name in names), *children], merges=merges)

    for at, (a, b) in enumerate(pairs):
        kept, exact = 3 + at, 6 + at
        assert 0.80 < result.cs[kept, exact] < 0.84
        assert result.cs[kept, a] < result.cs[exact, a] - 0.1
        assert result.cs[kept, b] < result.cs[exact, b] - 0.1
