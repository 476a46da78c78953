"""Export the best model of a search as a Hugging Face folder with its recipe and a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from kinray.checkpoints.folder import read_json
from kinray.checkpoints.writer import copy_tokenizer, folder_replacing, write_weights
from kinray.core.recipe import Recipe
from kinray.core.statistics import Statistics
from kinray.evolve.prepare import Prepared


def export_model(prepared: Prepared, recipe: Recipe, statistics: Statistics, texts: dict[str, str], target: Path) -> int:
    """Write a model folder, whole or not at all.

    Args:
        prepared: the search.
        recipe: the model.
        statistics: of the founders, so that the weights are those that were scored.
        texts: further files by name, such as README.md.
        target: the folder, replaced if it exists.

    Returns:
        bytes of weights written.

    Raises:
        RunError: when there is too little room.
    """
    from kinray.engine.materialise import Materialiser
    from kinray.evaluation.resident import DTYPES

    models, dtype = prepared.models, prepared.config.merge.dtype
    source = models.specs[0].folder
    shapes = {name: models.base.tensors[name].shape for name in models.names}
    tensors = Materialiser(models, statistics).tensors(recipe, DTYPES[dtype])
    with folder_replacing(target) as folder:
        written = write_weights(folder, shapes, dtype, tensors)
        copy_tokenizer(source, folder)
        config = _config(read_json(source / "config.json", "base"), dtype)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if "auto_map" in config:
            for code in source.glob("*.py"):
                shutil.copyfile(code, folder / code.name)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return written


def _config(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "torch_dtype", "dtype")}
    return kept | {"dtype": dtype}
