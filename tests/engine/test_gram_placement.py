"""Where a shard's weights live changes where they are read, not what comes out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kinray.checkpoints.models import FittedModel, Models
from kinray.engine.gram import gram_pass
from kinray.engine.placement import PlacedModel, placed
from kinray.kinship.family import open_family
from tests.helpers import ARCHITECTURE, make_model, random_tensors

CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """A base and two models, one of a larger vocabulary."""
    rows = {"base": 10, "a": 10, "b": 12}
    folders = [
        make_model(
            tmp_path / name,
            random_tensors(seed, {"embed.weight": (size, 6), "mlp.weight": (5, 6)}),
            {"architectures": [ARCHITECTURE], "vocab_size": size},
        )
        for seed, (name, size) in enumerate(rows.items())
    ]
    return open_family(folders[0], folders[1:]).models


def test_weights_that_fit_stay_on_the_device(models: Models) -> None:
    resident = placed(models, models.names, CPU, free=10 * models.nbytes())

    source = resident.sources[models.digests[1]]
    assert isinstance(source, PlacedModel)
    assert source.load("mlp.weight") is source.load("mlp.weight")
    assert isinstance(resident.sources[models.digests[2]], FittedModel)
    expected, got = (gram_pass(each, models.names, rows={"embed.weight": 10}) for each in (models, resident))
    np.testing.assert_array_equal(got.gram_TMM, expected.gram_TMM)


def test_weights_that_do_not_fit_stay_mapped(models: Models) -> None:
    assert placed(models, models.names, CPU, free=models.nbytes()) is models
    assert placed(models, models.names, CPU) is models


def test_a_shard_counts_its_own_tensors_only(models: Models) -> None:
    assert placed(models, ["mlp.weight"], CPU, free=1000) is not models
    assert placed(models, models.names, CPU, free=1000) is models


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("resident", [False, True])
def test_gpu_gives_the_same_within_rounding(models: Models, resident: bool) -> None:
    cuda = torch.device("cuda")
    expected = gram_pass(models, models.names)

    got = gram_pass(placed(models, models.names, cuda) if resident else models, models.names, device=cuda)

    np.testing.assert_allclose(got.gram_TMM, expected.gram_TMM, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.sums_TM, expected.sums_TM, rtol=1e-5, atol=1e-5)
