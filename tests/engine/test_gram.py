"""The Gram pass over model folders, against numpy float64 on the concatenated deltas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kinray.core.kinship import kinship_matrix
from kinray.core.statistics import Float64
from kinray.engine import products as blocks
from kinray.engine.gram import gram_pass, tensor_statistics
from kinray.errors import CheckpointError
from tests.helpers import family, make_model, random_tensors

MIXED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def rows_of(tensors: list[Tensor]) -> Float64:
    """Form [θ0, δ1 …] in float64 from what is stored."""
    wide = np.stack([tensor.double().reshape(-1).numpy() for tensor in tensors])
    wide[1:] -= wide[0]
    return wide


@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.float16,) * 3, MIXED, MIXED[::-1]],
    ids=["float32", "bfloat16", "float16", "mixed", "mixed, other base"],
)
def test_statistics_of_one_tensor_are_numpys(dtypes: tuple[torch.dtype, ...]) -> None:
    tensors = [torch.randn(37, 11, generator=torch.Generator().manual_seed(n)).to(d) for n, d in enumerate(dtypes)]
    rows = rows_of(tensors)

    count, sums, products = tensor_statistics(tensors)

    assert count == 407
    np.testing.assert_allclose(sums, rows.sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(products, rows @ rows.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 24])
def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, numel: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8)
    tensors = [torch.randn(numel, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    rows = rows_of(tensors)

    count, sums, products = tensor_statistics(tensors)

    assert count == numel
    np.testing.assert_allclose(sums, rows.sum(1), atol=1e-5)
    np.testing.assert_allclose(products, rows @ rows.T, atol=1e-5)


def test_tensors_that_are_not_contiguous_or_have_no_dimensions() -> None:
    turned = [torch.arange(6.0).reshape(2, 3).T, torch.ones(3, 2)]
    points = [torch.tensor(2.0), torch.tensor(5.0)]

    assert tensor_statistics(turned)[1].tolist() == rows_of(turned).sum(1).tolist()
    assert tensor_statistics(points)[2].tolist() == [[4, 6], [6, 9]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kinship_of_folders_is_numpys_on_whole_deltas(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = [random_tensors(seed, dtype=dtype) for seed in range(4)]
    models = family(tmp_path, tensors)
    whole = np.concatenate([rows_of([model[name] for model in tensors]) for name in models.names], axis=1)[1:]

    statistics = gram_pass(models, models.names)

    unit = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(kinship_matrix("pcc", statistics), np.corrcoef(whole), atol=1e-6)
    np.testing.assert_allclose(kinship_matrix("cs", statistics), unit @ unit.T, atol=1e-6)
    distances = np.linalg.norm(whole[:, None] - whole[None], axis=2)
    np.testing.assert_allclose(kinship_matrix("ed", statistics), distances, atol=1e-4)


def test_passes_over_parts_add_up_to_the_pass_over_all(tmp_path: Path) -> None:
    models = family(tmp_path, [random_tensors(seed) for seed in range(3)])

    whole = gram_pass(models, models.names)
    parts = gram_pass(models, models.names[2:]) + gram_pass(models, models.names[:2])

    order = [parts.tensors.index(name) for name in whole.tensors]
    np.testing.assert_array_equal(whole.gram_TMM, parts.gram_TMM[order])
    assert whole.models == parts.models == models.digests


def test_progress_counts_all_bytes(tmp_path: Path) -> None:
    models = family(tmp_path, [random_tensors(seed) for seed in range(3)])
    seen: list[int] = []

    gram_pass(models, models.names, seen.append)

    assert sum(seen) == models.nbytes() == 3 * 4 * models.parameters


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("who", ["base", "f2"])
def test_values_that_are_no_numbers_are_named(tmp_path: Path, bad: float, who: str) -> None:
    tensors = [random_tensors(seed, dtype=torch.bfloat16) for seed in range(3)]
    models = family(tmp_path, tensors)
    changed = tensors[0 if who == "base" else 2]
    changed["mlp.weight"][1, 2] = bad
    make_model(tmp_path / who, changed)  # after the digest was taken, which would refuse it too

    with pytest.raises(CheckpointError, match=f"Model '{who}': tensor 'mlp.weight' holds NaN or infinity in 1 of 30 places"):
        gram_pass(models, models.names)


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    tensors = [random_tensors(seed, dtype=torch.float64) for seed in range(2)]
    tensors[1]["scale"][0] = 1e300
    models = family(tmp_path, tensors)

    with pytest.raises(CheckpointError, match="Tensor 'scale' holds values so large"):
        gram_pass(models, models.names)
