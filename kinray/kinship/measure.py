"""Measure kinship: from the cache where it can be, else by one pass over the models, here or on Ray."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

from kinray.checkpoints.folder import EMBEDDINGS
from kinray.core.statistics import Statistics
from kinray.errors import ConfigError
from kinray.files import cache_folder
from kinray.kinship.family import Family, open_family
from kinray.kinship.table import Convention, Kinship, kinship_table, paper_table

Device = Literal["auto", "cpu", "cuda"]
Progress = Callable[[int], None]
Bar = Callable[[int], AbstractContextManager[Progress]]
"""Shows a pass over a number of bytes while the block runs."""


def kinship_of(
    base: str | Path,
    models: Sequence[str | Path],
    *,
    merges: Sequence[object] = (),
    per_layer: bool = False,
    device: Device = "auto",
    convention: Convention = "kinray",
    split: bool = False,
) -> Kinship:
    """Measure how alike the weight changes of models are.

    Args:
        base: folder or hub id of the pretrained model.
        models: folders, hub ids or folders of LoRA adapters, fine-tunes of the base.
        merges: ``kinray.core.planned.PlannedMerge`` values, or texts such as ``slerp:0,1:t=0.3``: merges that are not made,
            which become further models of the table.
        per_layer: whether to compare tensor by tensor as well.
        device: where to compute.
        convention: ``paper`` for what the paper's code prints.
        split: with the paper's convention, its average over tensors.

    Returns:
        names and float64 arrays; NaN where kinship is undefined.

    Raises:
        KinrayError: when a model cannot be read or does not fit, before any data is read.
    """
    family = open_family(base, models)
    statistics = statistics_of(family, device=device)
    return table_of(family, statistics, merges, per_layer=per_layer, convention=convention, split=split)


def table_of(
    family: Family,
    statistics: Statistics,
    merges: Sequence[object] = (),
    *,
    per_layer: bool = False,
    convention: Convention = "kinray",
    split: bool = False,
) -> Kinship:
    """Compute the table of models, and of planned merges, from their statistics."""
    names = list(family.names)
    if merges:
        from kinray.core.planned import PlannedMerge, with_planned
        from kinray.kinship.planning import parse_merge

        planned = [merge if isinstance(merge, PlannedMerge) else parse_merge(str(merge)) for merge in merges]
        statistics = with_planned(statistics, planned)
        names += [str(merge) if isinstance(merge, str) else f"planned-{at}" for at, merge in enumerate(merges, 1)]
    if convention == "paper":
        return paper_table(names, statistics, tied_tensors(family), split=split, per_layer=per_layer)
    return kinship_table(names, statistics, per_layer=per_layer)


def check_merges(merges: Sequence[str], models: int) -> None:
    """Raise RecipeError for planned merges that cannot be read or name no model, before any data is read."""
    if not merges:
        return
    import numpy as np

    from kinray.core.planned import with_planned
    from kinray.kinship.planning import parse_merge

    size = models + 1
    one = Statistics(tuple(map(str, range(size))), ("one",), np.ones(1, np.int64), np.zeros((1, size)), np.eye(size)[None])
    with_planned(one, [parse_merge(merge) for merge in merges])


def statistics_of(
    family: Family,
    *,
    device: Device = "auto",
    ray: str | None = None,
    shards: int | None = None,
    bar: Bar = lambda _: nullcontext(lambda _: None),
    cache: bool = True,
) -> Statistics:
    """Return the statistics of a family, from the cache or by one pass.

    Args:
        family: the models.
        device: where to compute.
        ray: address of a Ray cluster, empty for one of this machine's own; None for no Ray.
        shards: actors on Ray.
        bar: shows the pass.
        cache: whether to look into the cache; what is measured is always kept there.
    """
    from kinray.records.statistics_cache import StatisticsCache

    kept = StatisticsCache(cache_folder() / "statistics", family.models.digests[0], family.rows)
    twice = family.models.digests[0] in family.models.digests[1:]  # its weights in one row, its change in another
    if cache and not twice and (known := kept.load(family.models.digests, family.models.names)) is not None:
        return known
    with bar(family.nbytes) as progress:
        if ray is None:
            statistics = _measure_here(family, device, progress)
        else:
            from kinray.cluster.founders import measure_on_ray

            statistics = measure_on_ray(family.models, family.rows, device, ray, shards, progress)
    if family.unchanged and not twice:
        kept.save(statistics)
    return statistics


def _measure_here(family: Family, device: Device, progress: Progress) -> Statistics:
    import torch

    from kinray.engine.gram import gram_pass

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("--device is cuda, but torch sees no GPU here. Use auto or cpu.")
    where = torch.device("cuda" if available and device != "cpu" else "cpu")
    return gram_pass(family.models, family.models.names, progress, family.rows, where)


def tied_tensors(family: Family) -> list[str]:
    """Name the embedding that the output layer shares, which a state dict lists twice; nothing where they are not tied."""
    config = family.models.base.config
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    return [name for name in family.models.names if tied and name.endswith(EMBEDDINGS)][:1]
