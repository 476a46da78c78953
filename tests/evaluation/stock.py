"""The reference: lm-eval and transformers as they come, which know nothing of kinray."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinray.checkpoints.models import ModelSpec, open_models
from kinray.core.recipe import Recipe
from kinray.engine.materialise import Materialiser


@dataclass(frozen=True)
class StockResult:
    """What ``lm_eval.simple_evaluate`` says of one task: aggregates by ``metric,filter``, and samples."""

    results: dict[str, Any]
    samples: list[dict[str, Any]]

    def values(self, metric: str) -> list[Any]:
        """List a metric's value of each item, in the order of the items."""
        return [sample[metric] for sample in sorted(self.samples, key=lambda sample: int(sample["doc_id"]))]


def simple_evaluate(
    folder: Path,
    tasks: Mapping[str, Sequence[int] | None],
    paths: Sequence[Path],
    *,
    dtype: str = "float32",
    seed: int = 0,
    max_length: int | None = None,
    **options: Any,
) -> dict[str, StockResult]:
    """Evaluate a folder as a user of lm-eval would, on some items of each task or on all."""
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    samples = {task: list(items) for task, items in tasks.items() if items is not None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # a second for pip's list of packages
        evaluated = evaluator.simple_evaluate(
            HFLM(pretrained=str(folder), dtype=dtype, batch_size=8, device="cpu", max_length=max_length),
            tasks=list(tasks),
            task_manager=TaskManager(include_path=[str(path) for path in paths], include_defaults=False),
            samples=samples or None,
            fewshot_random_seed=seed,
            bootstrap_iters=0,
            **options,
        )
    return {task: StockResult(evaluated["results"][task], evaluated["samples"][task]) for task in tasks}


def write_merged(folder: Path, recipe: Recipe, specs: Sequence[ModelSpec], dtype: torch.dtype) -> Path:
    """Write a child with safetensors' own writer, beside the base's config and tokenizer."""
    shutil.copytree(specs[0].folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = dict(Materialiser(open_models(specs)).tensors(recipe, dtype))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder
