"""``kinray merge``: make a model from a recipe in mergekit's syntax."""

import argparse
import re
import sys
import threading
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from time import perf_counter

from kinray.checkpoints.writer import SHARD_BYTES
from kinray.errors import ConfigError, KinrayError
from kinray.report.command import EXIT_INTERRUPTED, bad_input, importing, note, positive, show
from kinray.signals import interrupt_once, when_told_to_stop

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(
        prog="kinray merge",
        description="Merge models by a recipe in mergekit's syntax and write the result as a Hugging Face folder. "
        "Merges are computed in float32 and cast once, at the end.",
    )
    add = result.add_argument
    add("recipe", type=Path, metavar="RECIPE.yaml", help="what to merge and how")
    add("output", type=Path, nargs="?", metavar="OUT", help="the folder to write; may be left out with --explain")
    add("--dtype", choices=["bfloat16", "float16", "float32"], help="of the weights (default: the recipe's, else the base's)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (default: a GPU if there is one)")
    add("--shard-size", type=_size, default=SHARD_BYTES, metavar="SIZE", help="largest weight file (default: 5GB)")
    add(
        "--threads",
        type=positive,
        metavar="N",
        help="tensors that are merged at once, each by a worker of its own (default: one for each core)",
    )
    add("--seed", type=int, default=0, metavar="N", help="another draw of random masks (default: 0, the recipe's)")
    add("--overwrite", action="store_true", help="replace OUT if it exists, once the new one is whole")
    add("--verify", action="store_true", help="read the written weights back from the disk and compare every tensor")
    add("--explain", action="store_true", help="print effective parameters and each parent's weight, by groups of tensors")
    return result


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB or 500MB")
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    arguments = parser().parse_args(argv)
    with when_told_to_stop(interrupt_once):
        try:
            return _merge(arguments)
        except (KinrayError, OSError) as error:
            return bad_input(error)
        except KeyboardInterrupt:
            print("Stopped. Nothing was written.", file=sys.stderr)
            return EXIT_INTERRUPTED


def _merge(arguments: argparse.Namespace) -> int:
    started = perf_counter()
    target = None if arguments.output is None else Path(expanduser(arguments.output)).resolve()
    if target is None and not arguments.explain:
        raise ConfigError("Name the folder to write (kinray merge RECIPE.yaml OUT), or add --explain to only look.")
    if target is not None:
        _check_vacant(target, overwrite=arguments.overwrite)
    with importing():
        from kinray.merge.document import read_recipe

        documents, text = read_recipe(arguments.recipe)
        from rich.console import Console

        from kinray.merge.open import Shelf
        from kinray.merge.plan import plan_merges
        from kinray.merge.write import write_output
        from kinray.report.progress import byte_bar
    device = _device(arguments.device)
    output = plan_merges(documents, Shelf(), device=device, seed=arguments.seed)
    for notice in output.notices:
        note(notice)
    if arguments.explain:
        from kinray.merge.explain import explain

        show(explain(output))
    if target is None:
        return 0
    dtype = arguments.dtype or output.dtype
    total = sum(making.nbytes for making in output.tensors(dtype))
    with byte_bar("merging", total, Console(stderr=True)) as progress:
        written = write_output(
            output,
            target,
            text,
            dtype=dtype,
            shard_bytes=arguments.shard_size,
            threads=arguments.threads,
            processes=device == "cpu" and sys.platform == "linux" and threading.active_count() == 1,
            check=arguments.verify,
            progress=progress,
        )
    checked = ", read back and compared" if arguments.verify else ""
    seconds = perf_counter() - started
    show(f"Wrote {arguments.output}: {written.nbytes / 1e9:.2f} GB of {dtype}{checked}, in {seconds:.1f} s.")
    return 0


def _check_vacant(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file. Name a folder to write.")
    if not target.name:
        raise ConfigError(f"{target} cannot be written as a model folder. Name another one.")
    if target.is_mount():
        raise ConfigError(f"{target} is a mount point, which no new folder can take the place of. Name a folder in it.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{target} exists and is not empty. Name another folder, or add --overwrite.")
    if not (target / "config.json").is_file():
        raise ConfigError(
            f"{target} holds no model (no config.json). --overwrite replaces a model's folder with all that is in it, and no "
            "other. Name another folder."
        )


def _device(asked: str) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA GPU here. Use --device cpu.")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
