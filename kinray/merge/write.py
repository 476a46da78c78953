"""Write an output as a Hugging Face folder: weights, config, tokenizer, recipe and model card, there whole or not at all."""

from collections.abc import Callable
from html import escape
from os.path import exists, expanduser
from pathlib import Path

import yaml

from kinray.checkpoints.vocabulary import write_tokenizer
from kinray.checkpoints.writer import SHARD_BYTES, copy_tokenizer, folder_replacing, needing_room, write_config
from kinray.engine.export import Written, verify, write_model
from kinray.errors import printable
from kinray.merge.document import Reference, read_recipe
from kinray.merge.open import Shelf
from kinray.merge.output import Output
from kinray.merge.plan import plan_merges


def write_output(
    output: Output,
    target: Path,
    recipe: str,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    threads: int | None = None,
    processes: bool = False,
    check: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Written:
    """Make a model and write its folder.

    Args:
        output: the model.
        target: the folder; one that is there is replaced when the new one is whole.
        recipe: text of the recipe file, kept beside the weights.
        dtype: of the weights, instead of the recipe's.
        shard_bytes: largest file.
        threads: that work at once.
        processes: whether they are forked processes instead (``kinray.engine.workers``).
        check: whether to read all weights back and compare them.
        progress: told of the bytes written.

    Raises:
        RunError: when the disk has too little room, a weight is not finite, or what is read back differs.
    """
    chosen = dtype or output.dtype
    tensors = output.tensors(chosen)
    with needing_room(target.parent, sum(tensor.nbytes for tensor in tensors)), folder_replacing(target) as folder:
        written = write_model(
            folder,
            tensors,
            parents=output.parents,
            shard_bytes=shard_bytes,
            threads=threads,
            processes=processes,
            checksums=check,
            progress=progress,
        )
        write_config(output.folder, output.config, chosen, folder)
        if output.vocabulary is None:
            copy_tokenizer(output.folder, folder)
        else:
            write_tokenizer(output.vocabulary, folder)
        (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
        (folder / "README.md").write_text(card(target.name, output, recipe), encoding="utf-8")
        if check:
            verify(folder, tensors, written)
    return written


def make_model(recipe: str | Path, target: str | Path, *, dtype: str | None = None, device: str = "cpu", seed: int = 0) -> None:
    """Merge models by a recipe in mergekit's syntax, as ``kinray merge`` does.

    Args:
        recipe: a YAML file.
        target: the folder to write; one that is there is replaced when the new one is whole.
        dtype: bfloat16, float16 or float32, instead of the recipe's.
        device: where to compute, ``cpu`` or ``cuda``.
        seed: another draw of random masks, where the recipe does not say.

    Raises:
        ConfigError: for a recipe that cannot be read.
        KinrayError: for what is wrong with its merges or models, before any work; RunError when the result cannot be written.
    """
    documents, text = read_recipe(Path(recipe))
    output = plan_merges(documents, Shelf(), device=device, seed=seed)
    write_output(output, Path(target), text, dtype=dtype)


def card(name: str, output: Output, recipe: str) -> str:
    """Write the model card: what was merged, how, and the recipe."""
    hub = [place for model in output.models for place in _places(model) if not exists(expanduser(place))]
    front = {"library_name": "transformers", "tags": ["merge", "kinray"]} | ({"base_model": sorted(set(hub))} if hub else {})
    listed = "\n".join(f"- `{printable(model).replace('`', '´')}`" for model in output.models)
    notes = "\n".join(f"- {escape(printable(notice), quote=False)}" for notice in output.notices)
    fence = "```"
    while fence in recipe:
        fence += "`"
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {escape(printable(name))}\n\nA merge of language models by {', '.join(output.methods)}, made with kinray.",
        f"## Models\n\n{listed}",
        f"## Notes\n\n{notes}" if notes else "",
        f"## Recipe\n\n{fence}yaml\n{recipe.strip()}\n{fence}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _places(model: str) -> list[str]:
    """Return where a model and its adapter lie, as the hub knows them."""
    reference = Reference.model_validate(model)
    return [place for place in (reference.model, reference.adapter) if place]
