"""One pass over the models' weights that leaves their sufficient statistics.

Shape suffixes: T tensors · M models, the base first · B elements of a block.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from kinray.checkpoints.models import Models
from kinray.core.statistics import Float64, Statistics
from kinray.errors import CheckpointError

BLOCK = 1 << 15
"""Elements of each model in flight: M rows of float64 stay in the cache, and no tensor is ever copied whole."""

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


def tensor_statistics(tensors: Sequence[torch.Tensor]) -> tuple[int, Float64, Float64]:
    """Compute the statistics of one tensor of each model.

    Deltas are formed in float32, products and sums in float64.

    Args:
        tensors: M tensors of one shape and any floating dtypes, the base's first.

    Returns:
        count of elements, sums_M and gram_MM (float64) of the rows [θ0, δ1 … δN].
    """
    flat = [tensor.reshape(-1) for tensor in tensors]
    models, count, device = len(flat), flat[0].numel(), flat[0].device
    gram_mm = torch.zeros(models, models, dtype=torch.float64, device=device)
    sums_m = torch.zeros(models, dtype=torch.float64, device=device)
    rows_mb = torch.empty(models, min(BLOCK, count), dtype=torch.float32, device=device)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        block = rows_mb[:, : stop - start]
        for row, tensor in zip(block, flat, strict=True):
            row.copy_(tensor[start:stop])
        block[1:] -= block[0]
        wide = block.double()
        gram_mm.addmm_(wide, wide.T)
        sums_m += wide.sum(1)
    return count, sums_m.cpu().numpy(), gram_mm.cpu().numpy()


def gram_pass(models: Models, names: Sequence[str], progress: Progress = lambda _: None) -> Statistics:
    """Read the named tensors of all models once and return their statistics.

    Raises:
        CheckpointError: when a model holds NaN or infinity, naming the model and the tensor.
    """
    statistics = Statistics.zeros(models.digests, names)
    sources = [models.sources[digest] for digest in models.digests]
    for place, name in enumerate(names):
        tensors = [source.load(name) for source in sources]
        count, sums_m, gram_mm = tensor_statistics(tensors)
        if not np.isfinite(gram_mm).all():
            _refuse(name, {source.name: tensor for source, tensor in zip(sources, tensors, strict=True)})
        statistics.count_T[place], statistics.sums_TM[place], statistics.gram_TMM[place] = count, sums_m, gram_mm
        progress(sum(source.tensors[name].nbytes for source in sources))
    return statistics


def _refuse(name: str, tensors: dict[str, torch.Tensor]) -> None:
    for model, tensor in tensors.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise CheckpointError(
                f"Model '{model}': tensor '{name}' holds NaN or infinity in {bad} of {tensor.numel()} places. "
                "Use another checkpoint of it."
            )
    raise CheckpointError(f"Tensor '{name}' holds values so large that the models' differences are not finite.")
