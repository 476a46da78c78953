"""What all commands have in common: their exit codes, the arguments that they read alike, and how they say things."""

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kinray.errors import one_line, printable

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def positive(text: str) -> int:
    """Read a whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def bad_input(error: Exception) -> int:
    """Say what is wrong in one line, and return the exit code for it."""
    print(f"Error: {one_line(str(error))}", file=sys.stderr)
    return EXIT_BAD_INPUT


def note(text: str) -> None:
    """Say what a person should know, beside the output."""
    print(f"Note: {printable(text)}", file=sys.stderr)


def show(text: str) -> None:
    """Print lines of output; names in them cannot disturb the terminal."""
    print("\n".join(printable(line) for line in text.split("\n")))


@contextmanager
def importing() -> Iterator[None]:
    """Keep the garbage collector off what imports leave for good.

    It would walk through torch's objects while they come and at exit, which takes 0.4 s, and in a fork copy their memory.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
