"""Export the best model of a search as a Hugging Face folder with its recipe and a model card."""

from pathlib import Path

from kinray.checkpoints.writer import folder_replacing
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
    from kinray.engine.export import write_recipe
    from kinray.engine.materialise import Materialiser

    materialiser = Materialiser(prepared.models, statistics)
    with folder_replacing(target) as folder:
        written = write_recipe(folder, materialiser, recipe, prepared.config.merge.dtype).nbytes
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    return written
