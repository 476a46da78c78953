"""``kinray evolve``: search for a good merge."""

import argparse
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from kinray.config import Config, load_config
from kinray.errors import KinrayError, RunError, one_line
from kinray.report.command import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from kinray.signals import interrupt, when_told_to_stop


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    result = argparse.ArgumentParser(
        prog="kinray evolve",
        description="Search for a good merge of fine-tuned models, guided by model kinship. Without a configuration it runs "
        "the built-in demo, which makes its own tiny models.",
    )
    result.add_argument("config", nargs="?", type=Path, metavar="CONFIG.yaml", help="what to search (default: the demo)")
    result.add_argument("--output", metavar="DIR", help="the run folder (a path or a URI), instead of the configuration's")
    result.add_argument("--resume", metavar="DIR", help="continue the run in this folder; --set may raise its budgets")
    result.add_argument("--dry-run", action="store_true", help="check everything, print the first generation and the cost")
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as search.k=4 (repeatable)"
    )
    result.add_argument("--verbose", action="store_true", help="show every child and the workers' logs")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input, 130 when interrupted."""
    arguments = parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        with when_told_to_stop(interrupt):
            return _evolve(arguments, console)
    except (KinrayError, OSError) as error:
        message = escape(one_line(str(error)))
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]Error:[/] {message}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        console.print("Stopped at once.")
        return EXIT_INTERRUPTED


def _evolve(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.resume is not None and (arguments.config or arguments.output or arguments.dry_run):
        raise RunError("--resume continues a run as it was configured. Leave out CONFIG, --output and --dry-run.")
    from kinray.evolve.session import dry_run, resume, start

    if arguments.resume is not None:
        return resume(arguments.resume, arguments.set, console, verbose=arguments.verbose)
    config = _config(arguments)
    if arguments.dry_run:
        return dry_run(config, console, verbose=arguments.verbose)
    return start(config, console, verbose=arguments.verbose)


def _config(arguments: argparse.Namespace) -> Config:
    output = [f"output={arguments.output!r}"] if arguments.output is not None else []
    if arguments.config is not None:
        return load_config(arguments.config, [*arguments.set, *output])
    with as_file(files("kinray.demo") / "demo.yaml") as path:
        return load_config(path, [*arguments.set, *output])
