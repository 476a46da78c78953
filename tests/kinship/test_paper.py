"""The paper's convention, against closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

import kinray
from kinray.kinship.measure import Convention
from tests.helpers import ARCHITECTURE, make_model

# Deltas of two models in two tensors of 2 and 4 elements. The first tensor's cosine is -1, the second's 0.6.
BASE = {"first": torch.zeros(2), "second": torch.zeros(4)}
A = {"first": torch.tensor([3.0, -3.0]), "second": torch.tensor([5.0, 0.0, 0.0, 0.0])}
B = {"first": torch.tensor([-1.0, 1.0]), "second": torch.tensor([3.0, 4.0, 0.0, 0.0])}


def table(tmp_path: Path, convention: Convention, *, split: bool = False, tied: bool = False) -> kinray.kinship_of:
    models = [BASE, A, B]
    config = {"architectures": [ARCHITECTURE], "vocab_size": 2, "tie_word_embeddings": tied}
    if tied:
        models = [{"embed_tokens.weight": model["first"], "second": model["second"]} for model in models]
    base, a, b = (make_model(tmp_path / str(at), model, config) for at, model in enumerate(models))
    return kinray.kinship_of(base, [a, b], convention=convention, split=split)


def test_cosine_of_the_paper_has_no_sign(tmp_path: Path) -> None:
    whole = (3 * -1 + -3 * 1 + 5 * 3) / np.sqrt((9 + 9 + 25) * (1 + 1 + 9 + 16))

    assert table(tmp_path, "kinray").cs[0, 1] == pytest.approx(whole)
    assert table(tmp_path, "paper").cs[0, 1] == pytest.approx(abs(whole))


def test_cosine_below_zero_differs_by_its_sign(tmp_path: Path) -> None:
    B["second"] = -B["second"]
    try:
        ours, paper = table(tmp_path / "x", "kinray"), table(tmp_path / "y", "paper")
    finally:
        B["second"] = -B["second"]

    assert ours.cs[0, 1] < 0
    assert paper.cs[0, 1] == -ours.cs[0, 1]
    assert paper.pcc[0, 1] == ours.pcc[0, 1]
    assert paper.ed[0, 1] == ours.ed[0, 1]


def test_split_averages_tensors_by_their_elements(tmp_path: Path) -> None:
    result = table(tmp_path, "paper", split=True)

    assert result.cs[0, 1] == pytest.approx((2 * 1.0 + 4 * 0.6) / 6)
    second = np.corrcoef([5, 0, 0, 0], [3, 4, 0, 0])[0, 1]
    assert result.pcc[0, 1] == pytest.approx((2 * -1.0 + 4 * second) / 6)
    assert result.ed[0, 1] == pytest.approx((2 * np.sqrt(32) + 4 * np.sqrt(20)) / 6)


def test_tied_embedding_comes_twice(tmp_path: Path) -> None:
    result = table(tmp_path, "paper", tied=True)

    assert result.ed[0, 1] == pytest.approx(np.sqrt(2 * 32 + 20))
    assert table(tmp_path / "ours", "kinray", tied=True).ed[0, 1] == pytest.approx(np.sqrt(32 + 20))


@pytest.mark.parametrize("metric", ["pcc", "cs", "ed"])
@pytest.mark.parametrize("split", [False, True])
def test_paper_is_a_plain_reading_of_its_formulae(tmp_path: Path, metric: str, split: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    models = [{name: torch.randn(size, generator=draw) for name, size in (("a", 700), ("b", 90), ("c", 33))} for _ in range(3)]
    paths = [
        make_model(tmp_path / str(at), m, {"architectures": [ARCHITECTURE], "vocab_size": 2}) for at, m in enumerate(models)
    ]

    def plain(left: torch.Tensor, right: torch.Tensor) -> float:
        if metric == "pcc":
            return float(torch.corrcoef(torch.stack([left, right]))[0, 1])
        if metric == "ed":
            return float(torch.linalg.vector_norm(left - right))
        return float(abs(left @ right) / (left.norm() * right.norm()))

    moved = [[model[name] - models[0][name] for name in models[0]] for model in models[1:]]
    if split:
        expected = sum(plain(x, y) * x.numel() for x, y in zip(*moved, strict=True)) / sum(x.numel() for x in moved[0])
    else:
        expected = plain(torch.cat(moved[0]), torch.cat(moved[1]))

    result = kinray.kinship_of(paths[0], paths[1:], convention="paper", split=split)

    assert getattr(result, metric)[0, 1] == pytest.approx(expected, rel=1e-5, abs=1e-6)
