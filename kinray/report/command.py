"""What all commands have in common: their exit codes, and the arguments that they read alike."""

import argparse

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def positive(text: str) -> int:
    """Read a whole number from 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)
