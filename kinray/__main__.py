"""``kinray COMMAND``: one command for all entry points."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "evolve": "search for a good merge",
    "kinship": "measure how alike models' weight changes are",
    "merge": "merge models by a recipe in mergekit's syntax",
    "methods": "list the merge methods and their parameters",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the commands and return its exit code."""
    from kinray import __version__

    arguments = list(sys.argv[1:] if argv is None else argv)
    lines = "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="kinray",
        description="Good merges of fine-tuned language models, guided by model kinship.",
        epilog=f"commands:\n{lines}\n\nkinray COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kinray {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do")
    if not arguments:
        parser.print_help()
        return 0
    chosen = parser.parse_args(arguments[:1]).command
    result: int = import_module(f"kinray.{chosen}.cli").main(arguments[1:])
    return result


if __name__ == "__main__":
    sys.exit(main())
