"""One pass over the models' weights that leaves their sufficient statistics.

Shape suffixes: T tensors · M models, the base first · P pairs.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.models import FittedModel, Models
from kinray.core.statistics import Float64, Statistics, squared_distances
from kinray.engine.products import Kernel, in_flight, near_twins
from kinray.errors import CheckpointError

TWINS_ABOVE = 0.9
"""Cosine in a tensor above which a distance is measured from the direct difference. The metric asks for it above 0.99 over
all tensors; in a tensor at 0.9 the products still give a distance to 1e-7 / (2·(1 − 0.9)) = 5e-7."""

_STRETCH = 8
"""Buffers' worth of a tensor in one task of a thread."""

Progress = Callable[[int], None]
"""Called with the number of bytes read since the last call."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class _Stretch:
    """A part of one tensor of all models: M one-dimensional views."""

    place: int
    pieces: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(piece.numel() * piece.element_size() for piece in self.pieces)


def tensor_statistics(tensors: Sequence[torch.Tensor]) -> tuple[int, Float64, Float64]:
    """Compute the statistics of one tensor of each model.

    Args:
        tensors: M tensors of one shape and any floating dtypes, the base's first, on one device.

    Returns:
        count of elements, sums_M and gram_MM (float64) of the rows [θ0, δ1 … δN].
    """
    models, device = len(tensors), tensors[0].device
    sums_m, gram_mm = np.zeros(models), np.zeros((models, models))
    kernel = Kernel(models, _dtype(tensors), device)
    for _, (sums, gram) in _in_order(_stretches(0, tensors, device), kernel.products):
        sums_m += sums
        gram_mm += gram
    return tensors[0].numel(), sums_m, gram_mm


def gram_pass(
    models: Models,
    names: Sequence[str],
    progress: Progress = lambda _: None,
    rows: Mapping[str, int] | None = None,
    device: torch.device = CPU,
) -> Statistics:
    """Read the named tensors of all models once and return their statistics.

    Works in as many threads as torch is set to (``torch.set_num_threads``, ``OMP_NUM_THREADS``). Near-twins are read a second
    time, for their distance.

    Args:
        models: the base and the founders.
        names: of tensors.
        progress: told of the bytes read.
        rows: tensors of which only the first rows count, such as those of the common vocabulary.
        device: where to compute.

    Raises:
        CheckpointError: when a model holds NaN or infinity, naming the model and the tensor.
    """
    statistics = Statistics.zeros(models.digests, names)
    sources = [models.sources[digest] for digest in models.digests]
    cut = rows or {}

    def stretches() -> Iterator[_Stretch]:
        for place, name in enumerate(names):
            tensors = [_load(source, name, cut.get(name)) for source in sources]
            statistics.count_T[place] = tensors[0].numel()
            yield from _stretches(place, tensors, device)

    kernels = _Kernels(len(sources), device)
    for stretch, (sums, gram) in _in_order(stretches(), kernels.products):
        statistics.sums_TM[stretch.place] += sums
        statistics.gram_TMM[stretch.place] += gram
        progress(stretch.nbytes)
    for place, name in enumerate(names):
        if not np.isfinite(statistics.gram_TMM[place]).all():
            check_finite(name, {source.name: _load(source, name, cut.get(name)) for source in sources})
            raise CheckpointError(f"Tensor '{name}' holds values so large that the models' differences are not finite.")
    apart_TMM = _distances(statistics, lambda number, name: _load(sources[number], name, cut.get(name)), device)
    return Statistics(
        statistics.models, statistics.tensors, statistics.count_T, statistics.sums_TM, statistics.gram_TMM, apart_TMM
    )


class _Kernels:
    """The kernel for each dtype that is met."""

    def __init__(self, models: int, device: torch.device) -> None:
        self._made = {dtype: Kernel(models, dtype, device) for dtype in (torch.float32, torch.float64)}

    def products(self, pieces: Sequence[torch.Tensor]) -> tuple[Float64, Float64]:
        return self._made[_dtype(pieces)].products(pieces)


def _distances(statistics: Statistics, load: Callable[[int, str], torch.Tensor], device: torch.device) -> Float64:
    """Return (T, M, M) squared distances, those of near-twins measured again from their direct difference."""
    apart_TMM = squared_distances(statistics.gram_TMM)
    for place, name in enumerate(statistics.tensors):
        pairs = near_twins(statistics.gram_TMM[place], TWINS_ABOVE)
        if not pairs:
            continue
        involved = sorted({number for pair in pairs for number in pair})
        tensors = [load(number, name) for number in involved]
        local = [(involved.index(i), involved.index(j)) for i, j in pairs]
        measure = partial(Kernel(len(tensors), _dtype(tensors), device).squared_distances, pairs=local)
        squares_p = np.zeros(len(pairs))
        for _, squares in _in_order(_stretches(place, tensors, device), measure):
            squares_p += squares
        for (i, j), square in zip(pairs, squares_p, strict=True):
            apart_TMM[place, i, j] = apart_TMM[place, j, i] = square
    return apart_TMM


def _load(source: WeightSource, name: str, rows: int | None) -> torch.Tensor:
    if rows is not None and isinstance(source, FittedModel):
        source = source.model
    tensor = source.load(name)
    return tensor if rows is None else tensor[:rows]


def _dtype(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _stretches(place: int, tensors: Sequence[torch.Tensor], device: torch.device) -> Iterator[_Stretch]:
    length = _STRETCH * in_flight(len(tensors), device)
    for pieces in zip(*(torch.split(tensor.reshape(-1), length) for tensor in tensors), strict=True):
        yield _Stretch(place, pieces)


def _in_order(stretches: Iterator[_Stretch], work: Callable[[Sequence[torch.Tensor]], Any]) -> Iterator[tuple[_Stretch, Any]]:
    """Work on stretches in threads and give the results in the order of the stretches, so that sums are always the same."""
    threads = torch.get_num_threads()
    if threads == 1:
        for stretch in stretches:
            yield stretch, work(stretch.pieces)
        return
    waiting: deque[tuple[_Stretch, Future[Any]]] = deque()
    with _pool(threads) as pool:
        for stretch in stretches:
            waiting.append((stretch, pool.submit(work, stretch.pieces)))
            if len(waiting) > 2 * threads:
                done, result = waiting.popleft()
                yield done, result.result()
        for done, result in waiting:
            yield done, result.result()


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give threads that each compute alone; torch's own number of threads is put back afterwards."""
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def check_finite(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError for the first model, by name, whose tensor holds NaN or infinity."""
    for model, tensor in tensors.items():
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise CheckpointError(
                f"Model '{model}': tensor '{name}' holds NaN or infinity in {bad} of {tensor.numel()} places. "
                "Use another checkpoint of it."
            )
