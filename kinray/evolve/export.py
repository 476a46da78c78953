"""Export the best model of a search as a Hugging Face folder with its recipe and a model card."""

from pathlib import Path

from kinray.checkpoints.folder import read_json
from kinray.checkpoints.writer import copy_tokenizer, folder_replacing, write_config
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
    from kinray.engine.export import makings, write_model
    from kinray.engine.materialise import Materialiser

    models, dtype = prepared.models, prepared.config.merge.dtype
    source = models.specs[0].folder
    tensors = makings(Materialiser(models, statistics), recipe, dtype)
    with folder_replacing(target) as folder:
        written = write_model(folder, tensors, parents=len(models.specs) - 1).nbytes
        copy_tokenizer(source, folder)
        write_config(source, read_json(source / "config.json", "base"), dtype, folder)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return written
