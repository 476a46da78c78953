"""``kinray kinship``: how alike the weight changes of models are."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kinray.core.kinship import METRICS
from kinray.errors import ConfigError, KinrayError
from kinray.files import write_atomically
from kinray.report.command import EXIT_INTERRUPTED, bad_input, note, positive, show
from kinray.report.wording import plural
from kinray.signals import interrupt_once, when_told_to_stop

PLOTS = (".png", ".svg", ".html")
MERGES = """planned merges (--merge-of), which need no weights: [METHOD:]MODELS[:VALUES]
  METHOD  linear (default), task_arithmetic or slerp
  MODELS  numbers of models as in the table, from 0; each planned merge takes the next number
  VALUES  a weight for each model, or parameters by name; a linear merge takes its weights as given
  such as 0,2:0.5,0.5   slerp:0,1:t=0.3   task_arithmetic:0,1:1,1,lambda=0.5   linear:0,1:2,1,normalize=true"""


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(
        prog="kinray kinship",
        description="Measure how alike the weight changes of fine-tuned models are (Hu et al., arXiv 2410.12613).",
        epilog=MERGES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("models", nargs="+", metavar="MODEL", help="fine-tunes of the base: folders, hub ids, or LoRA adapters on the base")
    add("--base", required=True, help="the pretrained model: a folder or hub id")
    add("--metric", choices=[*METRICS, "all"], default="all", help="what to print and draw (default: all)")
    add("--per-layer", action="store_true", help="compare tensor by tensor as well")
    add("--json", type=Path, metavar="FILE", help="write everything as JSON ('-' for standard output)")
    add("--plot", type=Path, metavar="FILE", help="draw a heat map: .png, .svg or .html")
    add("--merge-of", nargs="+", action="extend", default=[], metavar="MERGE", help="add merges that are not made; see below")
    add(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="work in Ray actors, of the cluster at ADDRESS or of this machine"
    )
    add("--shards", type=positive, metavar="N", help="actors on Ray (default: one for each GPU, else for each CPU)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute (default: auto)")
    add("--convention", choices=["kinray", "paper"], default="kinray", help="paper: what the paper's code prints")
    add("--split", action="store_true", help="with --convention paper: its average over tensors")
    add("--no-cache", action="store_true", help="measure again what is known")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    arguments = parser().parse_args(argv)
    with when_told_to_stop(interrupt_once):
        return _told(arguments)


def _told(arguments: argparse.Namespace) -> int:
    """Print what was asked, or why that cannot be."""
    try:
        _check(arguments)
        return _kinship(arguments)
    except KinrayError as error:
        return bad_input(error)
    except BrokenPipeError:  # whoever read the output has seen enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return bad_input(error)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _check(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together, or a place that cannot be written, before any work."""
    if arguments.shards is not None and arguments.ray is None:
        raise ConfigError("--shards is a number of Ray actors. Add --ray, or leave it out.")
    if arguments.split and arguments.convention != "paper":
        raise ConfigError("--split is the paper's average over tensors. Add --convention paper, or use --per-layer.")
    if arguments.plot is not None and arguments.plot.suffix.lower() not in PLOTS:
        raise ConfigError(f"--plot {arguments.plot}: the name must end in one of {', '.join(PLOTS)}.")
    for option, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path is not None and path.is_dir():
            raise ConfigError(f"{option} {path}: it is a folder. Name a file.")
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{option} {path}: there is no folder {path.parent}. Make it first.")


def _kinship(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from kinray.kinship.family import open_family
    from kinray.kinship.measure import check_merges, statistics_of, table_of
    from kinray.kinship.show import layers_text, table_text
    from kinray.report.progress import byte_bar

    family = open_family(arguments.base, arguments.models)
    check_merges(arguments.merge_of, len(family.names))
    for notice in family.notices:
        note(notice)
    console = Console(stderr=True)
    statistics = statistics_of(
        family,
        device=arguments.device,
        ray=arguments.ray,
        shards=arguments.shards,
        bar=lambda total: byte_bar("reading", total, console),
        cache=not arguments.no_cache,
    )
    kinship = table_of(
        family,
        statistics,
        arguments.merge_of,
        per_layer=arguments.per_layer,
        convention=arguments.convention,
        split=arguments.split,
    )
    metrics = METRICS if arguments.metric == "all" else (arguments.metric,)
    text = json.dumps(kinship.as_json(), indent=1, allow_nan=False) + "\n"
    to_screen = str(arguments.json) == "-"
    if arguments.json is not None and not to_screen:
        write_atomically(arguments.json, text.encode())
    if arguments.plot is not None:
        from kinray.report.heatmap import write_heatmap

        write_heatmap(arguments.plot, kinship.models, {metric: kinship.matrix(metric) for metric in metrics})
    if to_screen:
        sys.stdout.write(text)
    else:
        print(f"{plural(len(kinship.models), 'model')}, {kinship.parameters / 1e6:,.1f} M parameters\n")
        show(table_text(kinship, metrics))
        if arguments.per_layer:
            show("\n" + layers_text(kinship, metrics))
    sys.stdout.flush()
    return 0
